"""The model that trains through MetaMix's three phases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self, get_args

import keras

from keras_metamix.assignment import BitAssignment, SearchSpace
from keras_metamix.calibration import calibrate_weights
from keras_metamix.checks import one_of
from keras_metamix.cost import as_budgets, require_all_reachable
from keras_metamix.distillation import DEFAULT_WEIGHT, Teacher, labels_of
from keras_metamix.graph.quantize import quantize
from keras_metamix.layers.bit_choice import BitChoice
from keras_metamix.layers.mode import QuantizationMode
from keras_metamix.layers.weight_quantizer import Rule
from keras_metamix.metamix.loss import CostForm, Objective, make_objective
from keras_metamix.metamix.updates import meta_update, search_update
from keras_metamix.quantized_model import QuantizedModel
from keras_metamix.training import Progress, restart_averages

Meta = Literal["whole", "split"]
Phase = Literal["bit_meta", "bit_search", "weight_training"]
MetaWeights = Literal["quantized", "float"]
PHASES: tuple[Phase, ...] = ("bit_meta", "bit_search", "weight_training")
METAS: tuple[Meta, ...] = ("whole", "split")


@keras.saving.register_keras_serializable("keras_metamix")
class MetaMixModel(QuantizedModel):
    r"""A Keras model whose layers' bit-widths are searched while it trains.

    Make it with `from_float`, compile it as any model (`search_optimizer` trains the
    architecture parameters), and fit it with a `MetaMixCallback`, which moves `phase`:

    - "bit_meta": one update of weights, batch norm and activation steps from the average of the
      candidates' losses (Eq. 1), weights in float, as in the paper; where their bits are
      searched too, quantized at their candidates in turn, unless `meta_weights="float"`;
    - "bit_search": on each mini-batch a bit-meta update, then an update of the architecture
      parameters alone (Eq. 2 to 5);
    - "weight_training": bits fixed, weights and streams quantized, everything but the
      architecture parameters trains.

    The losses of the first two, with the candidates $B$, $L_{task}(b)$ the task loss with $b$ bits
    in every searched layer, the probabilities $p$ of each layer's candidates, the cost $C$ of its
    most probable ones and the budget $T$ (see `MetaMixCallback` for the other form of the cost
    term):

    $$L_{meta} = \frac{1}{|B|} \sum_{b \in B} L_{task}(b), \qquad L_{search} = L_{task} \left(
    \sum_b p_b \, Q_b \right) + \lambda \left| \frac{C}{T} - 1 \right|$$

    Attributes:
      meta_weights: "quantized" or "float": what searched weights are in bit-meta updates.
      objective: the cost term of bit-search; None before `set_objective`.
      meta: whether each candidate of a bit-meta update sees the "whole" mini-batch or, "split",
        a part of it; see `MetaMixCallback`.
    """

    calibration_rule: Rule = "lsq"
    space: SearchSpace
    progress: Progress

    def __init__(
        self,
        network: keras.Model,
        space: SearchSpace,
        float_layers: Sequence[str] = (),
        phase: Phase = "bit_meta",
        meta_weights: MetaWeights = "quantized",
        **kwargs: Any,
    ):
        super().__init__(network, space, float_layers, **kwargs)
        self.meta_weights: MetaWeights = one_of("meta_weights", meta_weights, get_args(MetaWeights))
        self.search_optimizer: Any = None
        self.search_optimizer_is_default = True
        self.objective: Objective | None = None
        self.meta: Meta = "whole"
        self._teacher: Teacher | None = None
        self.progress = Progress(self, "phase", PHASES, phase)

    @classmethod
    def from_float(
        cls,
        model: keras.Model,
        space: SearchSpace | None = None,
        float_layers: Iterable[str] = (),
        meta_weights: MetaWeights = "quantized",
    ) -> Self:
        """Rewrites a functional or Sequential Keras model; the float model stays as it is.

        Args:
          model: the float model; models and composite layers inside it are opened.
          space: the candidates.
          float_layers: names of layers to leave in float, so that no file can be exported.
          meta_weights: what bit-meta trains where bits of weights are searched: "quantized", so
            that the meta-state is one at which every candidate pair works, as Eq. 1 has it of
            activations, or "float", as Table 1 has it; weights of few bits are then new to the
            network when they are searched. Weights of one bit-width are always in float there.

        Raises:
          TypeError: the model has no graph.
          ValueError: another `meta_weights`, or a layer that is not supported; names it.
        """
        space = space or SearchSpace()
        one_of("meta_weights", meta_weights, get_args(MetaWeights))
        network, names = quantize(model, space, float_layers)
        name = f"{model.name}_metamix"
        return cls(network, space, sorted(names), meta_weights=meta_weights, name=name)

    @property
    def architecture_variables(self) -> list[keras.Variable]:
        """The alphas, and nothing else."""
        choices: dict[BitChoice, None] = {}  # of tied weights once
        for layer in self.mac_layers:
            choices |= dict.fromkeys((layer.input_quantizer.choice, layer.weight_quantizer.choice))
        return [choice.alpha for choice in choices if choice.searched]

    @property
    def weights_searched(self) -> bool:
        """Whether a layer's weights have candidates to choose from."""
        return any(layer.weight_quantizer.choice.searched for layer in self.mac_layers)

    @property
    def quantizes_meta_weights(self) -> bool:
        """Whether bit-meta updates compute with quantized weights."""
        return self.weights_searched and self.meta_weights == "quantized"

    def set_bits(self, bits: BitAssignment) -> None:
        """Fixes an assignment by hand and enters weight training; no search is needed.

        Raises:
          ValueError: the assignment is of another model, or not within the search space.
        """
        self.assign_bits(bits)
        if self.phase != "weight_training":  # weights were in float, or moved at other bits
            calibrate_weights(self.network, self.weight_rule)
            restart_averages(self)
        self.phase = "weight_training"

    @property
    def phase(self) -> Phase:
        """ "bit_meta", "bit_search" or "weight_training"."""
        return self.progress.read()

    @phase.setter
    def phase(self, phase: Phase) -> None:
        if phase not in PHASES:
            raise ValueError(f"phase: expected one of {list(PHASES)}, found {phase!r}.")
        if phase == self.phase:
            return
        before = self.evaluation_mode()
        if phase == "bit_search" and self.weights_searched and not self.quantizes_meta_weights:
            calibrate_weights(self.network, self.weight_rule)  # they were in float
        self.progress.write(phase)
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
            return super().evaluation_mode()
        quantized = self.quantizes_meta_weights or self.phase == "bit_search"
        weights = "assigned" if self.weights_searched and quantized else "off"
        return QuantizationMode(weights=weights, streams=False)

    # --- training --------------------------------------------------------------------------

    def optimizers(self) -> list[tuple[Any, list[Any]]]:
        return [*super().optimizers(), (self.search_optimizer, self.architecture_variables)]

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
            labels; see `distillation.py`. Of several outputs those are taught whose loss is a
            categorical cross-entropy. It is not saved: a loaded model has no teacher.
          distillation: the teacher's share of the training loss, in (0, 1].
        """
        super().compile(*args, **kwargs)
        self._teacher = None if teacher is None else Teacher(teacher, distillation, self)
        self.search_optimizer_is_default = search_optimizer is None
        self.search_optimizer = keras.optimizers.get(
            search_optimizer
            or keras.optimizers.Adam(1e-3, beta_1=0.5, beta_2=0.999, weight_decay=1e-3)
        )
        if self.optimizer is not None and not self.search_optimizer.built:
            self.search_optimizer.build(self.architecture_variables)

    def set_objective(
        self, budget: Any, strength: float | None = None, form: CostForm = "relative"
    ) -> None:
        """The cost term of bit-search, Eq. 3 and 4; `MetaMixCallback` calls this.

        Args:
          budget, strength, form: see `MetaMixCallback`.

        Raises:
          TypeError, ValueError: a bad argument, or a budget that no assignment meets; names it.
        """
        budgets = [part.priced(self) for part in as_budgets(budget)]
        require_all_reachable(budgets)
        self.objective = make_objective(budgets, strength, form)

    def _training_state(self) -> Any:
        return self.phase, self.meta, self.objective if self.phase == "bit_search" else None

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
        if self.phase == "weight_training":
            return super().train_step(data)
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        predictions, (seen, labels, weights), logs = meta_update(self, x, y, weight)
        if self.phase == "bit_search" and self.architecture_variables:
            logs |= search_update(self, x, y, weight)
        return self.compute_metrics(seen, labels, predictions, sample_weight=weights) | logs

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"phase": self.phase, "meta_weights": self.meta_weights}

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
