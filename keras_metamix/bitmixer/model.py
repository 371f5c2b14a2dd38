"""The model that trains at all bit-widths at once and switches between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import keras
import tensorflow as tf

from keras_metamix.assignment import BitAssignment, SearchSpace, require_space
from keras_metamix.checks import one_of, require_number, require_whole, shown
from keras_metamix.distillation import Divergence
from keras_metamix.graph.layer_bits import mac_layers, read_bits, write_bits
from keras_metamix.graph.quantize import link, quantize, require_network
from keras_metamix.graph.transitions import READINGS, Reading
from keras_metamix.layers.mode import QuantizationMode, inside_mode, quantization_mode
from keras_metamix.layers.transitional_batch_norm import TransitionalBatchNormalization
from keras_metamix.training import (
    Progress,
    arguments_from_config,
    begin_fit,
    build_optimizer,
    descend,
    track_loss,
)
from keras_metamix.workers import adapt_to_workers

Stage = Literal["activations", "network_wide", "layer_wise"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@keras.saving.register_keras_serializable("keras_metamix")
class BitMixerModel(keras.Model):
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
      network: the functional model with all bit-widths in it.
      space: its SearchSpace.
      batch_norm: which transitions choose a batch norm's set, see `graph.transitions`.
      calibrated: whether step sizes were set from data.
      float_layers: names of layers that were left in float.
      layer_wise_share: probability that a layer draws its own bit-width, a variable.
    """

    def __init__(
        self,
        network: keras.Model,
        space: SearchSpace,
        batch_norm: Reading = "feeding",
        stage: Stage = "activations",
        calibrated: bool = False,
        float_layers: Sequence[str] = (),
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.network, self.space, self.calibrated = network, space, calibrated
        self.batch_norm, self.seed = batch_norm, seed
        self.float_layers = tuple(float_layers)
        self._distillation = 0.0
        self.training_data: Any = None
        self.built = True
        self._progress = Progress(self, "stage", STAGES, stage)
        self._traced: QuantizationMode | None = None
        self.layer_wise_share = self.add_weight(
            (), "zeros", trainable=False, name="layer_wise_share"
        )
        link(network, one_of("batch_norm", batch_norm, READINGS))
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
        batch_norm: Reading = "feeding",
        float_layers: Iterable[str] = (),
        seed: int = 0,
    ) -> BitMixerModel:
        """Rewrites a functional or Sequential Keras model; the float model stays as it is.

        Args:
          model: the float model; models and composite layers inside it are opened.
          space: the bit-widths; default (4, 3, 2) for activations and weights alike.
          batch_norm: "feeding" or "following", the transitional batch norm's two readings, or the
            controls "switchable" (a set for each bit-width) and "shared" (one set).
          float_layers: names of layers to leave in float, so that no file can be exported.
          seed: of the bit-widths drawn in training.

        Raises:
          TypeError: the model has no graph.
          ValueError: an argument, or a layer that is not supported; names it.
        """
        space = space or SearchSpace((4, 3, 2), "same")
        require_space(space)
        require_whole("seed", seed)
        if isinstance(space.weight_bits, tuple):
            raise ValueError(
                "Bit-Mixer: SearchSpace.weight_bits: expected 'same' or one bit-width, found "
                f"candidates {list(space.weight_bits)}."
            )
        one_of("batch_norm", batch_norm, READINGS)
        network, names = quantize(model, space, float_layers, batch_norm)
        name = f"{model.name}_bitmixer"
        return cls(network, space, batch_norm, float_layers=sorted(names), seed=seed, name=name)

    @property
    def mac_layers(self) -> list[Any]:
        """The quantized MAC layers in network order."""
        return mac_layers(self.network)

    @property
    def bit_assignment(self) -> BitAssignment:
        """The bit-widths assigned at present."""
        return read_bits(self.network)

    def set_bits(self, bits: BitAssignment) -> None:
        """Switches to an assignment: no retrace, no training.

        Raises:
          ValueError: the assignment is of another model, or not within the space.
        """
        write_bits(self.network, bits, self.name)

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
                found[layer.name] = bits if quantizer.searched else quantizer.candidates[0]
        return BitAssignment(activations, weights)

    @property
    def stage(self) -> Stage:
        """ "activations", "network_wide" or "layer_wise"."""
        return self._progress.read()

    @stage.setter
    def stage(self, stage: Stage) -> None:
        if stage not in STAGES:
            raise ValueError(f"stage: expected one of {list(STAGES)}, found {stage!r}.")
        before = self.evaluation_mode()
        self._progress.write(stage)
        if self.evaluation_mode() == before:
            return
        self.test_function = self.predict_function = None
        if self.train_function is not None:
            self.make_train_function()

    def spread_diagonal(self) -> None:
        """Starts every batch-norm set of two bit-widths as that of one (before stage 3)."""
        for layer in self.network.layers:
            if isinstance(layer, TransitionalBatchNormalization):
                layer.spread_diagonal()

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
        return QuantizationMode(streams=self.space.stream_bits is not None)

    def training_mode(self, candidates: Any) -> QuantizationMode:
        """A forward pass with a candidate number for every searched layer, by quantizer name."""
        weights = "off" if self.stage == "activations" else "forced"
        streams = self.evaluation_mode().streams
        return QuantizationMode("forced", weights, streams, candidates, candidates)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if inside_mode():
            return self.network(inputs, training=training)
        with quantization_mode(self.evaluation_mode()):
            return self.network(inputs, training=training)

    def build(self, input_shape: Any) -> None:
        """The network is built already."""

    # --- training --------------------------------------------------------------------------

    def compile(self, *args: Any, in_place_distillation: float = 0.0, **kwargs: Any) -> None:
        """As `keras.Model.compile`.

        Args:
          in_place_distillation: w of `(1 - w) * task loss + w * KL(highest || drawn)`. Above 0 each
            step trains the highest bit-widths too, on the task, and those drawn learn its logits;
            it costs a second forward and backward pass.
        """
        require_number("in_place_distillation", in_place_distillation, 0, 1)
        self._distillation = float(in_place_distillation)
        super().compile(*args, **kwargs)
        build_optimizer(self.optimizer, self.trainable_variables)

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
        """As Keras'; also made anew when the stage needs it, loaded with weights perhaps."""
        mode = self.evaluation_mode()
        force, self._traced = force or self._traced != mode, mode
        return super().make_train_function(force)

    def draw(self) -> dict[str, Any]:
        """A candidate number for every searched layer, by quantizer name.

        One for the whole network, and with probability `layer_wise_share` another for a layer. It
        follows from the seed and the optimizer's step, and is the same in every replica.
        """
        names = [
            layer.input_quantizer.name
            for layer in self.mac_layers
            if layer.input_quantizer.searched
        ]
        count = len(self.space.activation_bits)
        step = tf.cast(self.optimizer.iterations, "int32")

        def seed(stream: int) -> Any:
            return tf.stack([tf.constant(3 * self.seed + stream), step])

        common = tf.random.stateless_uniform((), seed(0), 0, count, "int32")
        own = tf.random.stateless_uniform((len(names),), seed(1), 0, count, "int32")
        switches = tf.random.stateless_uniform((len(names),), seed(2)) < self.layer_wise_share.value
        drawn = tf.unstack(tf.where(switches, own, common))
        return dict(zip(names, drawn, strict=True))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        drawn = self.draw()
        with tf.GradientTape() as tape:
            with quantization_mode(self.training_mode(drawn)):
                predictions = self(x, training=True)
            loss = self._compute_loss(x, y, predictions, weight, training=True)
            if self._distillation:
                with quantization_mode(self.training_mode(dict.fromkeys(drawn, tf.constant(0)))):
                    highest = self(x, training=True)
                task = self._compute_loss(x, y, highest, weight, training=True)
                share = self._distillation
                divergence = Divergence()(tf.stop_gradient(highest), predictions, weight)
                loss = (task + (1 - share) * loss + share * divergence) / 2
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        gradients = tape.gradient(scaled, [v.value for v in variables])
        track_loss(self, descend(self.optimizer, gradients, variables, loss), x)
        return self.compute_metrics(x, y, predictions, sample_weight=weight)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "network": keras.saving.serialize_keras_object(self.network),
            "space": self.space.to_dict(),
            "batch_norm": self.batch_norm,
            "stage": self.stage,
            "calibrated": self.calibrated,
            "float_layers": list(self.float_layers),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> BitMixerModel:
        return cls(**arguments_from_config(cls.__name__, config, custom_objects))

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        if config:
            config["in_place_distillation"] = self._distillation
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
