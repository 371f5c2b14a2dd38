"""Averages of the weights during weight training, which then become the weights."""

from __future__ import annotations

from typing import Any

import keras

from keras_metamix.calibration import reestimate_batch_norm
from keras_metamix.layers.mode import quantization_mode
from keras_metamix.training import training_batches


class AveragedWeights(keras.callbacks.Callback):
    """Lets the optimizer's moving average (`use_ema`) begin and end well; put it behind
    `MetaMixCallback`.

    Keras averages from the first step on and takes the averages as weights when `fit` ends. But
    what selection leaves behind is no part of the network as chosen, and its weight steps are set
    anew then: here the average begins with weight training. And the batch-norm statistics of the
    last steps are not those of averaged weights: they are estimated again from training batches.

    Args:
      batches: how many batches estimate them.
      data: what these are taken from; default: what `fit` trains on.
    """

    def __init__(self, batches: int = 32, data: Any = None):
        super().__init__()
        self.batches, self.data = batches, data
        self._begun = False

    def get_state(self) -> dict[str, Any]:
        """Whether averaging has begun."""
        return {"begun": self._begun}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes what `get_state` gave."""
        self._begun = state["begun"]

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        model: Any = self.model
        if self._begun or model.phase != "weight_training":
            return
        self._begun = True
        # As keras.callbacks.SwapEMAWeights reaches them: Keras has no public name for the averages.
        averages = model.optimizer._model_variables_moving_average
        for variable, average in zip(model.trainable_variables, averages, strict=True):
            average.assign(variable)

    def on_train_end(self, logs: dict | None = None) -> None:
        model: Any = self.model
        with quantization_mode(model.evaluation_mode()):
            batches = training_batches(model, self.data, self.batches)
            reestimate_batch_norm(model.network, batches)
