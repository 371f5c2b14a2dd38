"""A float Keras model with quantized layers: trained by `fit`, or calibrated and left as it is."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Self

import keras
import tensorflow as tf

from keras_metamix.assignment import BitAssignment, SearchSpace
from keras_metamix.cost import CostTable
from keras_metamix.graph.file_outline import file_outline
from keras_metamix.graph.layer_bits import BitWidths, allowed_pairs, candidate_pairs
from keras_metamix.graph.layer_costs import layer_costs
from keras_metamix.graph.quantize import connect, quantize, require_network
from keras_metamix.layers.mode import QuantizationMode, inside_mode, quantization_mode
from keras_metamix.training import (
    arguments_from_config,
    begin_fit,
    build_optimizer,
    descend,
    present_value,
    track_loss,
)
from keras_metamix.workers import adapt_to_workers


@keras.saving.register_keras_serializable("keras_metamix")
class QuantizedModel(keras.Model):
    """A Keras model that computes with quantized weights and activations.

    Make it with `from_float`, or of a network of quantized layers. `fit` trains it quantized
    (quantization-aware training); `keras_metamix.calibrate` alone sets its step sizes from data
    (quantization after training). Either way `metamix_tflite.convert` writes the integers that it
    computes with.

    Its subclasses choose the bit-widths: MetaMixModel searches them, BitMixerModel trains all.

    Args:
      network: a functional model of quantized layers.
      space: the SearchSpace that its bit-widths come from; None: those that the layers have.
      float_layers: names of layers that were left in float.

    Attributes:
      network, space: as given.
      bit_widths: those of its MAC layers, read and written.
      float_layers: names of layers that were left in float.
      output_names, input_names: those of the float model, by which losses, metrics, labels and
        inputs are given; the network has them too.
    """

    def __init__(
        self,
        network: keras.Model,
        space: SearchSpace | None = None,
        float_layers: Sequence[str] = (),
        output_names: Sequence[str] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._convert_input_args = False  # the network does, to the type of each input
        self._allow_non_tensor_positional_args = True
        self.network, self.space = network, space
        if output_names is not None:  # a network that is loaded calls them as its own layers
            network.output_names = list(output_names)
        self.float_layers = tuple(float_layers)
        self.training_data: Any = None
        self.built = True
        self._calibrated = self.add_weight(
            (), "zeros", dtype="int32", trainable=False, name="calibrated"
        )
        self._traced: dict[str, Any] = {}
        require_network(network, space, self.name)
        connect(network)
        self.bit_widths = BitWidths(network)
        adapt_to_workers(self)

    @classmethod
    def from_float(
        cls,
        model: keras.Model,
        activation_bits: int = 8,
        weight_bits: int = 4,
        edge_bits: int = 8,
        float_layers: Iterable[str] = (),
    ) -> Self:
        """Rewrites a functional or Sequential Keras model; the float model stays as it is.

        Args:
          model: the float model; models and composite layers inside it are opened.
          activation_bits, weight_bits: of every MAC layer but the first and the last.
          edge_bits: of both tensors of the first and of the last MAC layer.
          float_layers: names of layers to leave in float, so that no file can be exported.

        Raises:
          TypeError: the model has no graph.
          ValueError: a bit-width outside 2 to 8, or a layer that is not supported; names it.
        """
        space = SearchSpace((activation_bits,), weight_bits, edge_bits)
        network, names = quantize(model, space, float_layers)
        return cls(network, space, float_layers=sorted(names), name=f"{model.name}_quantized")

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in order."""
        return [tensor.name for tensor in self.network.inputs]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return list(self.network.output_names)

    # --- bit-widths and state ----------------------------------------------------------------

    @property
    def mac_layers(self) -> Sequence[Any]:
        """The quantized MAC layers in network order."""
        return self.bit_widths.layers

    @property
    def bit_assignment(self) -> BitAssignment:
        """The bit-widths assigned at present."""
        return self.bit_widths.read()

    def set_bits(self, bits: BitAssignment) -> None:
        """Assigns bit-widths; no retrace follows.

        Raises:
          ValueError: the assignment is of another model, or not within the space.
        """
        self.bit_widths.write(bits, self.name)

    @property
    def calibrated(self) -> bool:
        """Whether step sizes were set from data; saved weights and checkpoints hold it."""
        return bool(self._calibrated.numpy())  # pyright: ignore[reportAttributeAccessIssue]

    @calibrated.setter
    def calibrated(self, calibrated: bool) -> None:
        self._calibrated.assign(int(calibrated))

    @functools.cached_property
    def cost_table(self) -> CostTable:
        """What budgets price: MACs, candidates and the file of the model."""
        layers = self.mac_layers
        return CostTable(
            self.name,
            layer_costs(self.network),
            {layer.name: candidate_pairs(layer) for layer in layers},
            {layer.name: allowed_pairs(layer) for layer in layers},
            functools.cache(lambda: file_outline(self)),
        )

    def require_calibrated(self) -> None:
        """Raises ValueError where the model would quantize with step sizes that nobody has set."""
        if not inside_mode() and present_value(self._calibrated) == 0:
            raise ValueError(
                f"Model {self.name!r} has no step sizes yet, so it cannot quantize: call "
                "keras_metamix.calibrate(model, images) with some of its training images (`fit` "
                "does it by itself), or load_weights of a trained one."
            )

    def require_quantized(self) -> None:
        """Raises ValueError unless weights and activations are those that a file holds."""

    # --- forward passes ----------------------------------------------------------------------

    def evaluation_mode(self) -> QuantizationMode:
        """What `call` does outside training."""
        return QuantizationMode(streams=self.space is None or self.space.stream_bits is not None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten((args, kwargs))):
            self.require_calibrated()
        return super().__call__(*args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if inside_mode():
            return self.network(inputs, training=training)
        with quantization_mode(self.evaluation_mode()):
            return self.network(inputs, training=training)

    def build(self, input_shape: Any) -> None:
        """The network is built already."""

    # --- training ----------------------------------------------------------------------------

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.compile`; step sizes take no weight decay."""
        super().compile(*args, **kwargs)
        build_optimizer(self.optimizer, self.trainable_variables)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))

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
        """As Keras'; also made anew when another step is due, loaded with weights perhaps."""
        return super().make_train_function(self._is_due("train", self._training_state()) or force)

    def make_test_function(self, force: bool = False) -> Any:
        """As Keras'; also made anew in another phase, and inside and behind `quantizers_off`."""
        return super().make_test_function(self._is_due("test", self.evaluation_mode()) or force)

    def make_predict_function(self, force: bool = False) -> Any:
        """As Keras'; also made anew in another phase, and inside and behind `quantizers_off`."""
        due = self._is_due("predict", self.evaluation_mode())
        return super().make_predict_function(due or force)

    def _is_due(self, function: str, state: Any) -> bool:
        """Whether a function was traced where it computed something else than it has to now.

        Args:
          function: its name.
          state: what it reads while it is traced.

        Raises:
          ValueError: it would quantize with step sizes that nobody has set.
        """
        self.require_calibrated()
        state = (inside_mode(), state)
        before, self._traced[function] = self._traced.get(function, state), state
        return before != state

    def _training_state(self) -> Any:
        """What `train_step` reads while it is traced: another one needs another trace."""
        return self.evaluation_mode()

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        self.require_calibrated()  # Keras would make a RuntimeError of it
        super()._maybe_symbolic_build(*args, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update of everything but the architecture parameters, bits as assigned."""
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            with quantization_mode(self.evaluation_mode()):
                predictions = self(x, training=True)
            loss = self._compute_loss(x, y, predictions, weight, training=True)
            scaled = self.optimizer.scale_loss(loss)
        self.update_weights(tape, scaled, loss, x)
        return self.compute_metrics(x, y, predictions, sample_weight=weight)

    def update_weights(self, tape: tf.GradientTape, scaled: Any, loss: Any, x: Any) -> None:
        """Applies the gradients of `scaled`, unless one is NaN or Inf, and tracks `loss`.

        Args:
          tape: that recorded the forward pass.
          scaled: the loss as the optimizer scales it.
          loss: of this replica.
          x: the images.
        """
        variables = self.trainable_variables
        gradients = tape.gradient(scaled, [v.value for v in variables])
        track_loss(self, descend(self.optimizer, gradients, variables, loss), x)

    # --- saving ------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "network": keras.saving.serialize_keras_object(self.network),
            "space": self.space and self.space.to_dict(),
            "float_layers": list(self.float_layers),
            "output_names": self.output_names,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        required = ("network",) if cls is QuantizedModel else ("network", "space")
        return cls(**arguments_from_config(cls.__name__, config, custom_objects, required))
