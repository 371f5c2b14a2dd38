"""Convolutions and dense layers that own what they quantize with: input, kernel and batch norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.batch_norm import FoldableBatchNormalization, folded_terms
from keras_metamix.layers.mode import current_mode
from keras_metamix.layers.nested_weight_quantizer import NestedWeightQuantizer
from keras_metamix.layers.weight_quantizer import WeightQuantizer
from keras_metamix.ops import round_straight_through

Bits = int | Sequence[int]


class QuantizedMac(keras.layers.Layer):
    r"""What the MAC layers share; each of them also inherits from the Keras layer of its kind.

    With the layer's product $*$, its kernel $W$ and its bias $c$, it computes

    $$y = \mathrm{activation} \left( \mathrm{norm} \left( Q_a(x) * Q_w(W) + c \right) \right)$$

    Args:
      activation_bits: bit-width of the input, or its candidates.
      weight_bits: bit-width of the kernel, its candidates, or "same" for that of the input.
      input_quantizer: quantizes the input. By default one is made from `activation_bits`, and
        calibration finds its sign.
      norm: the batch norm behind the layer, which folds into it; True makes one.
      nested_weights: whether the integers of lower bit-widths derive from those of the highest.
      edge: whether it is the first or the last MAC layer of the float model, whose bits are not
        searched. Where no layer says so, they are those of the network.
      trainable: whether kernel and bias train; the quantizers and the norm have their own flag.

    Attributes:
      input_quantizer, weight_quantizer, norm: the layers that it owns.
    """

    channel_axes: tuple[int, ...] = (-1,)

    def __init__(
        self,
        *args: Any,
        activation_bits: Bits = 8,
        weight_bits: Bits | Literal["same"] = 8,
        input_quantizer: ActivationQuantizer | None = None,
        norm: FoldableBatchNormalization | bool | None = None,
        nested_weights: bool = False,
        edge: bool = False,
        trainable: bool = True,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self._trains = trainable
        self.edge = edge
        self.input_quantizer: ActivationQuantizer = input_quantizer or ActivationQuantizer(
            activation_bits, sign_from_data=True, name=f"{self.name}_input"
        )
        tied = weight_bits == "same"
        self.weight_quantizer: WeightQuantizer = (
            NestedWeightQuantizer if nested_weights else WeightQuantizer
        )(
            self.input_quantizer.choice if tied else weight_bits,
            self.channel_axes,
            name="weight_quantizer",
        )
        if norm is True:
            norm = FoldableBatchNormalization(name=f"{self.name}_bn")
        self.norm = norm or None
        self.product: keras.layers.Layer | None = None
        if self.norm is not None and self.activity_regularizer is not None:
            # It regularizes the tensor that the norm reads.
            self.product = keras.layers.Activation(
                "linear", activity_regularizer=self.activity_regularizer, name="product"
            )
            self.activity_regularizer = None

    @property
    def tied(self) -> bool:
        """Whether the weights take the bit-width of the input."""
        return self.weight_quantizer.choice is self.input_quantizer.choice

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        if not self.input_quantizer.built:  # a loaded one is
            self.input_quantizer.build(input_shape)
        self.weight_quantizer.build(tuple(self.kernel.shape))
        self.weight_quantizer.initialize_steps(self.kernel)
        if self.norm is not None and not self.norm.built:
            self.norm.build(self.compute_output_shape(input_shape))
        if not self._trains:  # not by `self.trainable`, which would freeze what it owns
            self.weight_quantizer.trainable = False
            for variable in (self.kernel, self.bias) if self.use_bias else (self.kernel,):
                variable.trainable = False

    def integer_kernel(self) -> np.ndarray:
        """The trained integers, int8, in the kernel's Keras shape."""
        integers = self.weight_quantizer.integers(self.kernel)
        return ops.convert_to_numpy(integers).astype(np.int8)

    def accumulator_step(self) -> Any:
        """Step of the accumulator's integers for each output channel: s_input * s_weight."""
        return self.input_quantizer.step() * ops.reshape(self.weight_quantizer.step(), (-1,))

    def folded(self, factor: Any = 1.0, shift: Any = 0.0) -> tuple[Any, Any]:
        """Scale and integer bias of each output channel, see `folded_terms`.

        Args:
          factor, shift: of constants behind the layer, scalars or shape (channels,).
        """
        step = self.accumulator_step()
        ones = np.ones(step.shape, np.float32)
        factor, shift = (np.float32(t) * ones for t in (factor, shift))
        bias = self.bias if self.use_bias else 0 * ones
        if self.norm is not None:
            return self.norm.fold(factor, shift, step, bias)
        return folded_terms(factor, shift, 0 * ones, ones, 0.0, bias, step)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        kernel = self.weight_quantizer(self.kernel)
        outputs = self.multiply(self.input_quantizer(inputs, training=training), kernel)
        if self.norm is None:
            outputs = self._with_bias(outputs)
        else:
            outputs = self._normalized(self.norm, outputs, training)
        return outputs if self.activation is None else self.activation(outputs)

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        """The layer's product of its input and a kernel, without bias."""
        raise NotImplementedError

    def _with_bias(self, outputs: Any) -> Any:
        if not self.use_bias:
            return outputs
        bias = self.bias
        if current_mode().weights == "assigned":  # as deployed: on the accumulator's grid
            step = ops.stop_gradient(self.accumulator_step())
            bias = round_straight_through(bias / step) * step
        return ops.add(outputs, bias)

    def _normalized(
        self, norm: FoldableBatchNormalization, outputs: Any, training: bool | None
    ) -> Any:
        bias = self.bias if self.use_bias else None
        biased = outputs if bias is None else ops.add(outputs, bias)
        if self.product is not None:
            biased = self.product(biased)
        if norm.evaluates_folded(training):
            return norm(outputs, training=training, bias=bias, step=self.accumulator_step())
        return norm(biased, training=training)

    def get_config(self) -> dict[str, Any]:
        config, quantizer = super().get_config(), self.weight_quantizer
        trains = self.kernel.trainable if self.built else self._trains
        activity = self.product and self.product.activity_regularizer
        if activity is not None:
            config["activity_regularizer"] = keras.regularizers.serialize(activity)
        return config | {
            "trainable": bool(trains),
            "weight_bits": "same" if self.tied else list(quantizer.candidates),
            "input_quantizer": _serialized(self.input_quantizer),
            "norm": self.norm and _serialized(self.norm),
            "nested_weights": isinstance(quantizer, NestedWeightQuantizer),
            "edge": self.edge,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        owned = ("input_quantizer", "norm")
        made = {
            name: config[name] and keras.saving.deserialize_keras_object(config[name])
            for name in owned
            if isinstance(config.get(name), dict)
        }
        return super().from_config(config | made)


@keras.saving.register_keras_serializable("keras_metamix")
class QuantizedConv2D(QuantizedMac, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a quantized input and kernel."""

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        return self.convolution_op(inputs, kernel)


@keras.saving.register_keras_serializable("keras_metamix")
class QuantizedDepthwiseConv2D(QuantizedMac, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a quantized input and kernel."""

    channel_axes = (-2, -1)

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        return ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@keras.saving.register_keras_serializable("keras_metamix")
class QuantizedConv2DTranspose(QuantizedMac, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` with a quantized input and kernel."""

    channel_axes = (-2,)

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        return ops.conv_transpose(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@keras.saving.register_keras_serializable("keras_metamix")
class QuantizedDense(QuantizedMac, keras.layers.Dense):
    """`keras.layers.Dense` with a quantized input and kernel."""

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        return ops.matmul(inputs, kernel)


def _serialized(owned: keras.layers.Layer) -> dict[str, Any]:
    """A layer's config without its input shape: its owner builds it."""
    config: Any = keras.saving.serialize_keras_object(owned)
    return {key: value for key, value in config.items() if key != "build_config"}
