"""Searches that train weights and bit-widths together, which MetaMix is compared with."""

from __future__ import annotations

from typing import Any, Literal

import keras
import tensorflow as tf

import keras_metamix as kmm
from keras_metamix.keras_internals import loss_of
from keras_metamix.layers.mode import QuantizationMode, quantization_mode
from keras_metamix.metamix.updates import meta_update
from keras_metamix.training import descend, track_loss

Kind = Literal["moving", "joint"]


class JointSearchModel(kmm.MetaMixModel):
    """A MetaMixModel whose search step trains the weights too, on the mixture of the candidates.

    Attributes:
      kind: "moving": as MetaMix, with a bit-meta update before each search step, but the
        meta-state moves with the search (the ablation of MetaMix Fig. 7a). "joint": the search
        step alone, from the float network, as DNAS and EdMIPS are described there.
    """

    kind: Kind = "joint"

    def train_step(self, data: Any) -> dict[str, Any]:
        if self.phase != "bit_search":
            return super().train_step(data)
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        logs: dict[str, Any] = {}
        if self.kind == "moving":
            _, _, logs = meta_update(self, x, y, weight)
        weights = "mixture" if self.weights_searched else "off"
        mode = QuantizationMode("mixture", weights, streams=False)
        variables, alphas = self.trainable_variables, self.architecture_variables
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch([v.value for v in (*variables, *alphas)])
            with quantization_mode(mode):
                predictions = self(x, training=True)
            task = loss_of(self, x, y, predictions, weight)
            distance, costs = self.objective.distance(self.mac_layers)
            total = task + self.objective.strength * distance
        of_weights = tape.gradient(task, [v.value for v in variables])
        of_alphas = tape.gradient(total, [v.value for v in alphas])
        track_loss(self, descend(self.optimizer, of_weights, variables, task), x)
        descend(self.search_optimizer, of_alphas, alphas, total)
        metrics = self.compute_metrics(x, y, predictions, sample_weight=weight)
        return metrics | logs | {"search_loss": task, **costs}
