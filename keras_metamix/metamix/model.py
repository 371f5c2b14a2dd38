"""The model that trains through MetaMix's three phases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf
from keras import tree

from keras_metamix.assignment import BitAssignment, SearchSpace
from keras_metamix.calibration import calibrate_weights
from keras_metamix.checks import require_number
from keras_metamix.distillation import DEFAULT_WEIGHT, Teacher, labels_of
from keras_metamix.graph.layer_bits import candidate_pairs, mac_layers, read_bits, write_bits
from keras_metamix.graph.layer_costs import layer_costs
from keras_metamix.graph.quantize import link, quantize, require_network
from keras_metamix.layers.mode import QuantizationMode, inside_mode, quantization_mode
from keras_metamix.metamix.loss import (
    DEFAULT_STRENGTH,
    CostForm,
    chosen_cost,
    cost_loss,
    require_cost,
)
from keras_metamix.metamix.selection import LayerScores, layer_scores
from keras_metamix.pair_costs import PairCosts, bop_costs
from keras_metamix.training import (
    Progress,
    arguments_from_config,
    begin_fit,
    build_optimizer,
    descend,
    track_loss,
)
from keras_metamix.workers import adapt_to_workers, has_synchronized_norm

Phase = Literal["bit_meta", "bit_search", "weight_training"]
PHASES: tuple[Phase, ...] = ("bit_meta", "bit_search", "weight_training")


@keras.saving.register_keras_serializable("keras_metamix")
class MetaMixModel(keras.Model):
    """A Keras model whose layers' bit-widths are searched while it trains.

    Make it with `from_float`, compile it as any model (`search_optimizer` trains the
    architecture parameters), and fit it with a `MetaMixCallback`, which moves `phase`:

    - "bit_meta": one update of weights, batch norm and activation steps from the average of the
      candidates' losses (Eq. 1), weights in float;
    - "bit_search": on each mini-batch a bit-meta update, then an update of the architecture
      parameters alone (Eq. 2 to 5);
    - "weight_training": bits fixed, weights and streams quantized, everything but the
      architecture parameters trains.

    Attributes:
      network: the searchable functional model.
      space: its SearchSpace.
      calibrated: whether step sizes were set from data.
      float_layers: names of layers that were left in float.
    """

    def __init__(
        self,
        network: keras.Model,
        space: SearchSpace,
        phase: Phase = "bit_meta",
        calibrated: bool = False,
        float_layers: Sequence[str] = (),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.network, self.space, self.calibrated = network, space, calibrated
        self.float_layers = tuple(float_layers)
        self.search_optimizer: Any = None
        self.search_optimizer_is_default = True
        self._objective: tuple[float, float, CostForm, PairCosts] | None = None
        self._teacher: Teacher | None = None
        self.training_data: Any = None
        self.built = True
        self._progress = Progress(self, "phase", PHASES, phase)
        self._traced: Phase | None = None
        link(network)
        require_network(network, space, self.name)
        if space.weight_bits_tied:
            for layer in self.mac_layers:
                layer.weight_quantizer.follow(layer.input_quantizer)
        adapt_to_workers(self)

    @classmethod
    def from_float(
        cls,
        model: keras.Model,
        space: SearchSpace | None = None,
        float_layers: Iterable[str] = (),
    ) -> MetaMixModel:
        """Rewrites a functional or Sequential Keras model; the float model stays as it is.

        Args:
          model: the float model; models and composite layers inside it are opened.
          space: the candidates.
          float_layers: names of layers to leave in float, so that no file can be exported.

        Raises:
          TypeError: the model has no graph.
          ValueError: a layer that is not supported; names it.
        """
        space = space or SearchSpace()
        network, names = quantize(model, space, float_layers)
        return cls(network, space, float_layers=sorted(names), name=f"{model.name}_metamix")

    @property
    def mac_layers(self) -> list[Any]:
        """The quantized MAC layers in network order."""
        return mac_layers(self.network)

    @property
    def architecture_variables(self) -> list[keras.Variable]:
        """The alphas, and nothing else."""
        choosers = []
        for layer in self.mac_layers:
            tied = self.space.weight_bits_tied
            choosers += [layer.input_quantizer] + ([] if tied else [layer.weight_quantizer])
        return [chooser.alpha for chooser in choosers if chooser.searched]

    @property
    def _weights_searched(self) -> bool:
        return any(layer.weight_quantizer.searched for layer in self.mac_layers)

    def candidate_scores(self) -> dict[str, LayerScores]:
        """Log-probability of every candidate pair of bit-widths of every MAC layer."""
        tied = self.space.weight_bits_tied
        return {
            layer.name: layer_scores(layer.input_quantizer, layer.weight_quantizer, tied)
            for layer in self.mac_layers
        }

    @property
    def bit_assignment(self) -> BitAssignment:
        """The bit-widths assigned at present."""
        return read_bits(self.network)

    def assign_bits(self, bits: BitAssignment) -> None:
        """Writes the bit-widths into the layers' variables; phase and steps stay."""
        write_bits(self.network, bits, self.name)

    def set_bits(self, bits: BitAssignment) -> None:
        """Fixes an assignment by hand and enters weight training; no search is needed.

        Raises:
          ValueError: the assignment is of another model, or not within the search space.
        """
        self.assign_bits(bits)
        if self.phase != "weight_training":  # the weights were in float: their steps are stale
            calibrate_weights(self.network)
        self.phase = "weight_training"

    @property
    def phase(self) -> Phase:
        """ "bit_meta", "bit_search" or "weight_training"."""
        return self._progress.read()

    @phase.setter
    def phase(self, phase: Phase) -> None:
        if phase not in PHASES:
            raise ValueError(f"phase: expected one of {list(PHASES)}, found {phase!r}.")
        if phase == self.phase:
            return
        before = self.evaluation_mode()
        self._progress.write(phase)
        if self.evaluation_mode() != before:
            self.test_function = self.predict_function = None
        if self.train_function is not None:
            self.make_train_function()

    def require_quantized(self) -> None:
        """Raises ValueError unless the model is in weight training."""
        if self.phase != "weight_training":
            raise ValueError(
                f"expected a model in phase 'weight_training', found {self.phase!r}: let fit with "
                "MetaMixCallback finish, or fix an assignment with set_bits."
            )

    # --- forward passes --------------------------------------------------------------------

    def evaluation_mode(self) -> QuantizationMode:
        """What `call` does in the present phase."""
        if self.phase == "weight_training":
            return QuantizationMode(streams=self.space.stream_bits is not None)
        weights = "assigned" if self._weights_searched else "off"
        return QuantizationMode(weights=weights, streams=False)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if inside_mode():
            return self.network(inputs, training=training)
        with quantization_mode(self.evaluation_mode()):
            return self.network(inputs, training=training)

    def build(self, input_shape: Any) -> None:
        """The network is built already."""

    # --- training --------------------------------------------------------------------------

    def compile(
        self,
        *args: Any,
        search_optimizer: Any = None,
        teacher: keras.Model | None = None,
        distillation: float = DEFAULT_WEIGHT,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`.

        Args:
          search_optimizer: trains the architecture parameters; default Adam with the paper's
            betas (0.5, 0.999) and weight decay 1e-3, and a learning rate that the callback
            sets to 1 / (number of search steps), since Adam moves alpha by at most that each.
          teacher: a trained network whose logits this one learns in every phase, beside the
            labels; see `distillation.py`. It is not saved: a loaded model has no teacher.
          distillation: the teacher's share of the training loss, in (0, 1].
        """
        self._teacher = None if teacher is None else Teacher(teacher, distillation, self)
        super().compile(*args, **kwargs)
        self.search_optimizer_is_default = search_optimizer is None
        self.search_optimizer = keras.optimizers.get(
            search_optimizer
            or keras.optimizers.Adam(1e-3, beta_1=0.5, beta_2=0.999, weight_decay=1e-3)
        )
        build_optimizer(self.optimizer, self.trainable_variables)
        if self.optimizer is not None and not self.search_optimizer.built:
            self.search_optimizer.build(self.architecture_variables)

    def bop_costs(self) -> PairCosts:
        """BOPs of every pair of each layer's candidates (Eq. 6)."""
        pairs = {layer.name: candidate_pairs(layer) for layer in self.mac_layers}
        return bop_costs(layer_costs(self.network), pairs)

    def set_objective(
        self,
        target: float,
        strength: float | None = None,
        form: CostForm = "relative",
        costs: PairCosts | None = None,
    ) -> None:
        """The cost term of bit-search, Eq. 3 and 4; `MetaMixCallback` calls this.

        Args:
          target: the budget T, in the unit of the costs.
          strength, form: see `MetaMixCallback`.
          costs: prices of every pair of each layer's candidates; default: BOPs.

        Raises:
          ValueError: a bad argument, or a price that is missing; names it.
        """
        costs = self.bop_costs() if costs is None else costs
        require_cost(form, strength)
        require_number(costs.target, target, 0, above=True)
        for layer in self.mac_layers:
            costs.row(layer.name, candidate_pairs(layer))
        strength = DEFAULT_STRENGTH[form] if strength is None else strength
        self._objective = (float(target), float(strength), form, costs)

    def fit(
        self, x: Any = None, y: Any = None, batch_size: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As `keras.Model.fit`; sets step sizes from the first batch if nobody has."""
        begin_fit(self, x, y, batch_size)
        try:
            return super().fit(x, y, batch_size, *args, **kwargs)
        finally:
            self.training_data = None

    def make_train_function(self, force: bool = False) -> Any:
        """As Keras'; also made anew when the phase is another one, loaded with weights perhaps."""
        force, self._traced = force or self._traced != self.phase, self.phase
        return super().make_train_function(force)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        task = super().compute_loss(x, labels_of(y), y_pred, sample_weight, training)
        return self._teacher.loss(task, y, y_pred, sample_weight) if self._teacher else task

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return super().compute_metrics(x, labels_of(y), y_pred, sample_weight)

    def train_step(self, data: Any) -> dict[str, Any]:
        if self._teacher:
            data = self._teacher.teach(data)
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        if self.phase == "weight_training":
            predictions, logs = self._weight_update(x, y, weight), {}
        else:
            predictions, logs = self._meta_update(x, y, weight)
        if self.phase == "bit_search":
            logs |= self._search_update(x, y, weight)
        return self.compute_metrics(x, y, predictions, sample_weight=weight) | logs

    def _weight_update(self, x: Any, y: Any, weight: Any) -> Any:
        """One update of everything but the architecture parameters, bits as assigned."""
        variables = self.trainable_variables
        with tf.GradientTape() as tape:
            with quantization_mode(self.evaluation_mode()):
                predictions = self(x, training=True)
            loss = self._compute_loss(x, y, predictions, weight, training=True)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [v.value for v in variables])
        track_loss(self, descend(self.optimizer, gradients, variables, loss), x)
        return predictions

    def _meta_mode(self, index: Any) -> QuantizationMode:
        """Candidate number `index` in every searched layer (Eq. 1).

        With searched weights the pairs rotate: each step takes every activation candidate once,
        beside a weight candidate that moves on from step to step.
        """
        if not self._weights_searched:
            return QuantizationMode("forced", "off", streams=False, forced=index)
        weight = index
        if not self.space.weight_bits_tied:
            count = len(self.space.layer_candidates(edge=False)[1])
            weight = (index + tf.cast(self.optimizer.iterations, "int32")) % count
        return QuantizationMode("forced", "forced", False, forced=index, forced_weights=weight)

    def _meta_update(self, x: Any, y: Any, weight: Any) -> Any:
        """One update from the average of the candidates' losses (Eq. 1).

        A loop, one candidate after the other: their activations are never held together. Batch
        norm that replicas share cannot stand in a loop of TensorFlow's: Python loops then.

        Returns:
          The last candidate's predictions, and each candidate's loss, by name.
        """
        variables = self.trainable_variables
        count = len(self.space.activation_bits)
        trained = [False] * len(variables)

        def candidate(index: Any, losses: Any, sums: Any, _: Any) -> Any:
            with tf.GradientTape() as tape, quantization_mode(self._meta_mode(index)):
                predictions = self(x, training=True)
                loss = self._compute_loss(x, y, predictions, weight, training=True) / count
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, [v.value for v in variables])
            for number, gradient in enumerate(gradients):
                trained[number] = gradient is not None
            sums = [s if g is None else s + g for s, g in zip(sums, gradients, strict=True)]
            return index + 1, losses + tf.one_hot(index, count) * loss, sums, predictions

        zeros = [tf.zeros(v.shape, v.dtype) for v in variables]
        state = (tf.constant(0), tf.zeros(count), zeros, self._empty_predictions(x))
        if has_synchronized_norm(self.network):
            for _ in range(count):
                state = candidate(*state)
        else:
            state = tf.while_loop(
                lambda index, *_: index < count, candidate, state, parallel_iterations=1
            )
        _, losses, sums, predictions = state
        loss = tf.reduce_sum(losses)
        gradients = [g if used else None for g, used in zip(sums, trained, strict=True)]
        track_loss(self, descend(self.optimizer, gradients, variables, loss), x)
        replicas = self.distribute_strategy.num_replicas_in_sync
        each = tf.unstack(losses * count * replicas)
        names = [f"loss_{bits}_bits" for bits in self.space.activation_bits]
        return predictions, dict(zip(names, each, strict=True))

    def _empty_predictions(self, x: Any) -> Any:
        """Zeros of the network's output shape for a batch like `x`."""
        batch = tf.shape(tree.flatten(x)[0])[0]

        def zeros(output: Any) -> Any:
            return tf.zeros(tf.concat([[batch], output.shape[1:]], 0), output.dtype)

        return tree.map_structure(zeros, self.network.output)

    def _search_update(self, x: Any, y: Any, weight: Any) -> dict[str, Any]:
        """One update of the architecture parameters; all else is constant."""
        if self._objective is None:
            raise ValueError("bit_search needs a budget: MetaMixCallback(target_bops=...).")
        target, strength, form, costs = self._objective
        variables = self.architecture_variables
        weights = "mixture" if self._weights_searched else "off"
        mode = QuantizationMode("mixture", weights, streams=False, statistics="frozen")
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([v.value for v in variables])
            with quantization_mode(mode):
                predictions = self(x, training=True)
            task = self._compute_loss(x, y, predictions, weight, training=True)
            chosen = chosen_cost(self.mac_layers, costs, self.space.weight_bits_tied)
            distance = cost_loss(chosen, target / costs.paper_unit, form)
            replicas = self.distribute_strategy.num_replicas_in_sync
            loss = task + strength * distance / replicas
        gradients = tape.gradient(loss, [v.value for v in variables])
        applied = descend(self.search_optimizer, gradients, variables, loss)
        task = tf.where(tf.math.is_finite(applied), task, math.nan)
        return {"search_loss": task * replicas, costs.log: chosen * costs.paper_unit}

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "network": keras.saving.serialize_keras_object(self.network),
            "space": self.space.to_dict(),
            "phase": self.phase,
            "calibrated": self.calibrated,
            "float_layers": list(self.float_layers),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MetaMixModel:
        return cls(**arguments_from_config(cls.__name__, config, custom_objects))

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        if config:
            config["search_optimizer"] = keras.saving.serialize_keras_object(self.search_optimizer)
            config["search_optimizer_is_default"] = self.search_optimizer_is_default
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        config = keras.saving.deserialize_keras_object(config)
        default = config.pop("search_optimizer_is_default", True)
        self.compile(**config)
        self.search_optimizer_is_default = default
