"""A Keras model with quantized layers, to be trained by `fit` or calibrated without training."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from keras_metamix.assignment import BitAssignment, SearchSpace
from keras_metamix.batches import Replay
from keras_metamix.checks import shown
from keras_metamix.cost import CostTable
from keras_metamix.graph.file_outline import file_outline
from keras_metamix.graph.layer_bits import BitWidths, allowed_pairs, candidate_pairs
from keras_metamix.graph.layer_costs import layer_costs, product_bops
from keras_metamix.graph.quantize import connect, quantize, require_network
from keras_metamix.keras_internals import loss_of, pass_on_inputs
from keras_metamix.layers.mode import QuantizationMode, inside_mode, quantization_mode
from keras_metamix.layers.weight_quantizer import RULES, Rule
from keras_metamix.network_model import NetworkModel
from keras_metamix.training import (
    Progress,
    Watch,
    arguments_from_config,
    begin_fit,
    build_optimizer,
    descend,
    track_loss,
    watched,
)
from keras_metamix.workers import adapt_to_workers


@keras.saving.register_keras_serializable("keras_metamix")
class QuantizedModel(NetworkModel):
    """A Keras model that computes with quantized weights and activations.

    Make it with `from_float`, or give it a network of quantized layers. `fit` trains it as
    quantized (quantization-aware training); `keras_metamix.calibrate` alone sets its step sizes
    from data (quantization after training). Either way `metamix_tflite.convert` writes the
    integers that it computes with.

    Its subclasses choose the bit-widths: MetaMixModel searches for them, BitMixerModel trains the
    network at all of them.

    Args:
      network: a functional model of quantized layers.
      space: the SearchSpace of its bit-widths; None takes those of the layers.
      float_layers: names of layers that were left in float.

    Attributes:
      network, space: as given.
      bit_widths: reads and writes the bit-widths of its MAC layers.
      float_layers: names of layers that were left in float.
      output_names, input_names: those of the float model, by which losses, metrics, labels and
        inputs are given; the network has them too.
      calibration_rule: the default of `calibrate`.
    """

    calibration_rule: Rule = "mse"

    def __init__(
        self,
        network: keras.Model,
        space: SearchSpace | None = None,
        float_layers: Sequence[str] = (),
        output_names: Sequence[str] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        pass_on_inputs(self)  # the network converts them, to the type of each
        self.network, self.space = network, space
        if output_names is not None:  # a network that is loaded calls them as its own layers
            network.output_names = list(output_names)
        self.float_layers = tuple(float_layers)
        self.training_data: Any = None
        self.progress: Progress | None = None
        self.built = True
        self._calibrated = self.add_weight(
            (), "zeros", dtype="int32", trainable=False, name="calibrated"
        )
        self._calibrated_steps = self.add_weight(
            (), "zeros", trainable=False, name="calibrated_steps"
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
        edge_weight_bits: int | None = None,
    ) -> Self:
        """Rewrites a functional or Sequential Keras model; the float model stays as it is.

        Args:
          model: the float model; models and composite layers inside it are opened.
          activation_bits, weight_bits: of every MAC layer but the first and the last.
          edge_bits: of both tensors of the first and of the last MAC layer.
          float_layers: names of layers to leave in float, so that no file can be exported.
          edge_weight_bits: of the weights of these two; None: `edge_bits`.

        Raises:
          TypeError: the model has no graph, or several bit-widths, which a MetaMixModel takes.
          ValueError: a bit-width outside 2 to 8, or a layer that is not supported; names it.
        """
        for name, bits in (("activation_bits", activation_bits), ("weight_bits", weight_bits)):
            _require_one(name, bits)
        space = SearchSpace(
            (activation_bits,), weight_bits, edge_bits, edge_weight_bits=edge_weight_bits
        )
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

    def assign_bits(self, bits: BitAssignment) -> None:
        """Writes the bit-widths into the layers' variables; no retrace follows, and all else stays.

        Raises:
          ValueError: the assignment is of another model, or not within the space.
        """
        self.bit_widths.write(bits, self.name)

    def set_bits(self, bits: BitAssignment) -> None:
        """Fixes an assignment; raises as `assign_bits` does."""
        self.assign_bits(bits)

    @property
    def calibrated(self) -> bool:
        """Whether step sizes were set from data; saved weights and checkpoints hold it."""
        return bool(_number(self._calibrated))

    @calibrated.setter
    def calibrated(self, calibrated: bool) -> None:
        if calibrated != self.calibrated:
            self._calibrated.assign(int(calibrated))

    @property
    def weight_rule(self) -> Rule:
        """The rule of the last calibration; saved weights and checkpoints hold it too."""
        return RULES[max(int(_number(self._calibrated)) - 1, 0)]

    @property
    def steps_trained(self) -> bool:
        """Whether step sizes of activations are others than calibration set."""
        return self.calibrated and self._sum_of_steps() != _number(self._calibrated_steps)

    def note_calibration(self, rule: Rule) -> None:
        """Takes the present step sizes as those that calibration set by `rule`."""
        self._calibrated.assign(1 + RULES.index(rule))
        self._calibrated_steps.assign(self._sum_of_steps())

    def _sum_of_steps(self) -> float:
        """The sum of the logarithms of what MAC layers read with: training moves it."""
        quantizers = dict.fromkeys(layer.input_quantizer.leader() for layer in self.mac_layers)
        steps = [np.asarray(q.log_step) for q in quantizers if q.fixed_step is None]
        return float(np.float32(math.fsum(np.concatenate(steps)))) if steps else 0.0

    def _require_calibrated(self) -> None:
        if inside_mode() or self.calibrated:
            return
        raise ValueError(
            f"{self.name!r} has no step sizes yet: call keras_metamix.calibrate(model, images) "
            "with a batch of images, let fit set them, or load weights that have them."
        )

    @functools.cached_property
    def cost_table(self) -> CostTable:
        """What budgets price the model by: MACs, candidates and the outline of its file."""
        layers = self.mac_layers
        return CostTable(
            self.name,
            layer_costs(self.network),
            {layer.name: candidate_pairs(layer) for layer in layers},
            {layer.name: allowed_pairs(layer) for layer in layers},
            functools.cache(lambda target: file_outline(self, target)),
            product_bops(self.network),
        )

    def require_quantized(self) -> None:
        """Raises ValueError unless the model computes with the values that a file would hold."""

    # --- forward passes ----------------------------------------------------------------------

    def evaluation_mode(self) -> QuantizationMode:
        """What `call` does outside training."""
        return QuantizationMode(streams=self.space is None or self.space.stream_bits is not None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras', on values: refused as long as there are no step sizes."""
        symbolic = any(map(keras.utils.is_keras_tensor, keras.tree.flatten((args, kwargs))))
        if not symbolic and self.distribute_strategy.num_replicas_in_sync == 1:
            with tf.init_scope():  # also while a user's function is traced
                self._require_calibrated()
        return super().__call__(*args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if inside_mode():
            return self.network(inputs, training=training)
        with quantization_mode(self.evaluation_mode()):
            return self.network(inputs, training=training)

    def build(self, input_shape: Any) -> None:
        """Does nothing: the network is built already."""

    # --- training ----------------------------------------------------------------------------

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.compile`; step sizes take no weight decay."""
        super().compile(*args, **kwargs)
        build_optimizer(self.optimizer, self.trainable_variables)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As `keras.Model.fit`; sets step sizes from the first images if nobody has.

        A generator's first batches are looked at before they are trained on; none is lost.
        """
        if isinstance(x, Generator):
            x = Replay(x)
        begin_fit(self, x, y, batch_size, validation_split)
        watch = Watch()
        callbacks = watched(self, callbacks, watch)
        if isinstance(x, Replay):
            x = x.generator()
        try:
            history = super().fit(
                x, y, batch_size, epochs, verbose, callbacks, validation_split, *args, **kwargs
            )
        finally:
            self.training_data = None
        for note in watch.notes:
            warnings.warn(note, stacklevel=2)
        return history

    def make_train_function(self, force: bool = False) -> Any:
        """As Keras'; also made anew when another step is due, loaded with weights perhaps."""
        self._require_calibrated()
        return super().make_train_function(force or self._moved("train", self._training_state()))

    def make_test_function(self, force: bool = False) -> Any:
        """As Keras'; also made anew when something else is to be computed."""
        self._require_calibrated()
        return super().make_test_function(force or self._moved("test", self.evaluation_mode()))

    def make_predict_function(self, force: bool = False) -> Any:
        """As Keras'; also made anew when something else is to be computed."""
        self._require_calibrated()
        moved = self._moved("predict", self.evaluation_mode())
        return super().make_predict_function(force or moved)

    def _moved(self, function: str, state: Any) -> bool:
        """Whether what a function reads while it is traced has changed since."""
        due = state, inside_mode()
        before, self._traced[function] = self._traced.get(function, due), due
        return before != due

    def _training_state(self) -> Any:
        """What `train_step` reads while it is traced; a change needs a new trace."""
        return self.evaluation_mode()

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update of everything but the architecture parameters, at the bits assigned."""
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            with quantization_mode(self.evaluation_mode()):
                predictions = self(x, training=True)
            loss = loss_of(self, x, y, predictions, weight)
            scaled = self.optimizer.scale_loss(loss)
        self.update_weights(tape, scaled, loss, x)
        return self.compute_metrics(x, y, predictions, sample_weight=weight)

    def update_weights(self, tape: tf.GradientTape, scaled: Any, loss: Any, x: Any) -> None:
        """Applies the gradients of `scaled`, unless one is NaN or Inf, and tracks `loss`.

        Args:
          tape: the one that recorded the forward pass.
          scaled: the loss as the optimizer scales it.
          loss: the loss of this replica.
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


def _require_one(name: str, bits: object) -> None:
    """Raises TypeError for several bit-widths, or those of each layer."""
    if not isinstance(bits, Iterable | SearchSpace | BitAssignment):
        return  # SearchSpace checks it
    raise TypeError(
        f"{name}: expected one bit-width, of all layers but the first and the last, found "
        f"{shown(bits)}. Several to choose from: keras_metamix.MetaMixModel.from_float(model, "
        "keras_metamix.SearchSpace(activation_bits=(8, 4), weight_bits=(8, 4))), whose set_bits "
        "takes a BitAssignment of each layer's own bits, and fit with MetaMixCallback finds one."
    )


def _number(variable: Any) -> Any:
    """The value of a variable of shape ()."""
    return keras.ops.convert_to_numpy(variable)
