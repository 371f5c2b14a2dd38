"""The model that trains at all bit-widths at once and switches between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self, get_args

import keras
import tensorflow as tf

from keras_metamix.assignment import BitAssignment, SearchSpace, require_space
from keras_metamix.checks import one_of, require_number, require_whole, shown
from keras_metamix.distillation import divergence, taught_outputs
from keras_metamix.graph.quantize import quantize
from keras_metamix.graph.transitions import TRANSITION_RULES, TransitionRule
from keras_metamix.keras_internals import loss_of
from keras_metamix.layers.bit_choice import BitChoice
from keras_metamix.layers.mode import QuantizationMode, quantization_mode
from keras_metamix.layers.parts import batch_norms
from keras_metamix.layers.transitional_batch_norm import TransitionalBatchNormalization
from keras_metamix.layers.weight_quantizer import Rule
from keras_metamix.quantized_model import QuantizedModel
from keras_metamix.training import Progress

Stage = Literal["activations", "network_wide", "layer_wise"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@keras.saving.register_keras_serializable("keras_metamix")
class BitMixerModel(QuantizedModel):
    """A Keras model whose layers change bit-width at run time, without fine-tuning.

    Make it with `from_float`, compile it as any model, and fit it with a `BitMixerCallback`, which
    moves `stage`:

    - "activations": every step at one random bit-width of the whole network, weights in float;
    - "network_wide": the same with weights (nested, see `NestedWeightQuantizer`) and streams
      quantized;
    - "layer_wise": a growing share of the layers draws a bit-width of its own.

    What is evaluated, predicted and exported is the assignment of `set_bits`: the highest
    bit-widths at first.

    Attributes:
      batch_norm: which transitions choose a batch norm's set, see `graph.transitions`.
      layer_wise_share: probability that a layer draws its own bit-width, a variable.
    """

    calibration_rule: Rule = "lsq"
    space: SearchSpace
    progress: Progress

    def __init__(
        self,
        network: keras.Model,
        space: SearchSpace,
        float_layers: Sequence[str] = (),
        batch_norm: TransitionRule = "feeding",
        stage: Stage = "activations",
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(network, space, float_layers, **kwargs)
        self.batch_norm, self.seed = one_of("batch_norm", batch_norm, TRANSITION_RULES), seed
        self._distillation = 0.0
        self.progress = Progress(self, "stage", STAGES, stage)
        self.layer_wise_share = self.add_weight(
            (), "zeros", trainable=False, name="layer_wise_share"
        )

    @classmethod
    def from_float(
        cls,
        model: keras.Model,
        space: SearchSpace | None = None,
        batch_norm: TransitionRule = "feeding",
        float_layers: Iterable[str] = (),
        seed: int = 0,
    ) -> Self:
        """Rewrites a functional or Sequential Keras model; the float model stays as it is.

        Args:
          model: the float model; models and composite layers inside it are opened.
          space: the bit-widths; default (4, 3, 2) for activations and weights alike.
          batch_norm: "feeding" or "following", the two published interpretations of the
            transitional batch norm, or the controls "switchable" (a set for each bit-width) and
            "shared" (one set).
          float_layers: names of layers to leave in float, so that no file can be exported.
          seed: of the bit-widths drawn in training.

        Raises:
          TypeError: the model has no graph.
          ValueError: an argument, or a layer that is not supported; names it.
        """
        space = space or SearchSpace((4, 3, 2), "same")
        require_space(space)
        require_whole("seed", seed)
        for field, expected in (("weight_bits", "'same' or "), ("edge_weight_bits", "")):
            if isinstance(found := getattr(space, field), tuple):
                raise ValueError(
                    f"Bit-Mixer: SearchSpace.{field}: expected {expected}one bit-width, found "
                    f"candidates {list(found)}: MetaMixModel searches bits of weights alone."
                )
        one_of("batch_norm", batch_norm, TRANSITION_RULES)
        network, names = quantize(model, space, float_layers, batch_norm)
        name = f"{model.name}_bitmixer"
        return cls(network, space, sorted(names), batch_norm, seed=seed, name=name)

    def uniform_bits(self, bits: int) -> BitAssignment:
        """The assignment of one bit-width everywhere but in the first and the last layer.

        Raises:
          ValueError: no candidate.
        """
        if bits not in self.space.activation_bits:
            raise ValueError(
                f"{shown(bits)} bits are no candidate, expected one of "
                f"{list(self.space.activation_bits)}."
            )
        activations, weights = {}, {}
        for layer in self.mac_layers:
            for found, quantizer in (
                (activations, layer.input_quantizer),
                (weights, layer.weight_quantizer),
            ):
                candidates = quantizer.candidates
                found[layer.name] = bits if len(candidates) > 1 else candidates[0]
        return BitAssignment(activations, weights)

    @property
    def stage(self) -> Stage:
        """ "activations", "network_wide" or "layer_wise"."""
        return self.progress.read()

    @stage.setter
    def stage(self, stage: Stage) -> None:
        if stage not in STAGES:
            raise ValueError(f"stage: expected one of {list(STAGES)}, found {stage!r}.")
        before = self.evaluation_mode()
        self.progress.write(stage)
        if self.evaluation_mode() == before:
            return
        self.test_function = self.predict_function = None
        if self.train_function is not None:
            self.make_train_function()

    def spread_diagonal(self) -> None:
        """Starts every batch-norm set of two bit-widths as that of one (before stage 3)."""
        for norm in batch_norms(self.network):
            if isinstance(norm, TransitionalBatchNormalization):
                norm.spread_diagonal()

    def require_quantized(self) -> None:
        """Raises ValueError unless the weights have been trained quantized."""
        if self.stage == "activations":
            raise ValueError(
                "expected a model with quantized weights, found stage 'activations': let fit with "
                "BitMixerCallback finish."
            )

    # --- forward passes --------------------------------------------------------------------

    def evaluation_mode(self) -> QuantizationMode:
        """What `call` does in the present stage."""
        if self.stage == "activations":
            return QuantizationMode(weights="off", streams=False)
        return super().evaluation_mode()

    def training_mode(self, candidates: Any) -> QuantizationMode:
        """A forward pass with a candidate number for the choice of every searched layer."""
        weights = "off" if self.stage == "activations" else "forced"
        streams = self.evaluation_mode().streams
        return QuantizationMode("forced", weights, streams, candidates, candidates)

    # --- training --------------------------------------------------------------------------

    def compile(self, *args: Any, in_place_distillation: float = 0.0, **kwargs: Any) -> None:
        r"""As `keras.Model.compile`.

        With in-place distillation of weight $w > 0$ each step trains the highest bit-widths too, on
        the task, and those drawn learn from their logits:

        $$L = \frac{1}{2} \left( L_{task}(highest) + (1 - w) \, L_{task}(drawn) + w \,
        \mathrm{KL}(highest \, \| \, drawn) \right)$$

        Args:
          in_place_distillation: $w$, from 0 to 1. Above 0 it costs a second forward and backward
            pass.
        """
        require_number("in_place_distillation", in_place_distillation, 0, 1)
        self._distillation = float(in_place_distillation)
        super().compile(*args, **kwargs)
        self._taught = taught_outputs(self) if in_place_distillation else []

    def draw(self) -> dict[BitChoice, Any]:
        """A candidate number for the choice of every searched layer.

        One for the whole network, and with probability `layer_wise_share` another for a layer. It
        follows from the seed and the optimizer's step, and is the same in every replica.
        """
        choices = [layer.input_quantizer.choice for layer in self.mac_layers]
        searched = [choice for choice in choices if choice.searched]
        count = len(self.space.activation_bits)
        step = tf.cast(self.optimizer.iterations, "int32")

        def seed(stream: int) -> Any:
            return tf.stack([tf.constant(3 * self.seed + stream), step])

        common = tf.random.stateless_uniform((), seed(0), 0, count, "int32")
        own = tf.random.stateless_uniform((len(searched),), seed(1), 0, count, "int32")
        switches = (
            tf.random.stateless_uniform((len(searched),), seed(2)) < self.layer_wise_share.value
        )
        drawn = tf.unstack(tf.where(switches, own, common))
        return dict(zip(searched, drawn, strict=True))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        drawn = self.draw()
        with tf.GradientTape() as tape:
            with quantization_mode(self.training_mode(drawn)):
                predictions = self(x, training=True)
            loss = loss_of(self, x, y, predictions, weight)
            if self._distillation:
                with quantization_mode(self.training_mode(dict.fromkeys(drawn, tf.constant(0)))):
                    highest = self(x, training=True)
                task = loss_of(self, x, y, highest, weight)
                share = self._distillation
                teacher = keras.tree.map_structure(tf.stop_gradient, highest)
                distance = divergence(teacher, predictions, self._taught, weight)
                loss = (task + (1 - share) * loss + share * distance) / 2
            scaled = self.optimizer.scale_loss(loss)
        self.update_weights(tape, scaled, loss, x)
        return self.compute_metrics(x, y, predictions, sample_weight=weight)

    def get_config(self) -> dict[str, Any]:
        own = {"batch_norm": self.batch_norm, "stage": self.stage, "seed": self.seed}
        return super().get_config() | own

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        if config:
            config["in_place_distillation"] = self._distillation
        return config
