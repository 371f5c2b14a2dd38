"""Convolutions and dense layers with quantized kernels: Keras' own, but for the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.mode import current_mode
from keras_metamix.layers.nested_weight_quantizer import NestedWeightQuantizer
from keras_metamix.layers.weight_quantizer import Rule, WeightQuantizer
from keras_metamix.ops import round_straight_through


class QuantizedMac:
    """What the three MAC layers share. Mixed into a Keras layer class, before it.

    `weight_candidates` are bit-widths of the kernel, `weight_rule` how its steps were set from it
    last, `nested_weights` whether lower bit-widths derive from the highest one's integers.
    `input_quantizer` and `has_batch_norm` are set by the model that owns the layer: with them the
    layer knows the grid of its bias.
    """

    channel_axes: tuple[int, ...] = (-1,)
    input_quantizer: ActivationQuantizer | None = None
    has_batch_norm: bool = False

    def __init__(
        self,
        *args: Any,
        weight_candidates: Sequence[int] = (8,),
        weight_rule: Rule = "lsq",
        nested_weights: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        quantizer = NestedWeightQuantizer if nested_weights else WeightQuantizer
        self.weight_quantizer = quantizer(
            weight_candidates, self.channel_axes, name="weight_quantizer"
        )
        self.weight_quantizer.rule = weight_rule

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)  # pyright: ignore[reportAttributeAccessIssue]
        self.weight_quantizer.build(tuple(self.kernel.shape))  # pyright: ignore
        self.weight_quantizer.initialize_steps(self.kernel)  # pyright: ignore

    def integer_kernel(self) -> np.ndarray:
        """The trained integers, int8, in the kernel's Keras shape."""
        integers = self.weight_quantizer.integers(self.kernel)  # pyright: ignore
        return ops.convert_to_numpy(integers).astype(np.int8)

    def accumulator_step(self) -> Any:
        """Step of the accumulator's integers for each output channel: s_input * s_weight."""
        if self.input_quantizer is None:
            raise ValueError(f"Layer {self.name!r} is not part of a quantized model.")  # pyright: ignore
        return self.input_quantizer.step() * ops.reshape(self.weight_quantizer.step(), (-1,))

    def _finish(self, outputs: Any) -> Any:
        if self.use_bias:  # pyright: ignore[reportAttributeAccessIssue]
            outputs = ops.add(outputs, self._bias_on_grid())
        activation = self.activation  # pyright: ignore[reportAttributeAccessIssue]
        return outputs if activation is None else activation(outputs)

    def _bias_on_grid(self) -> Any:
        bias: Any = self.bias  # pyright: ignore[reportAttributeAccessIssue]
        quantized = current_mode().weights == "assigned"
        if not quantized or self.has_batch_norm or self.input_quantizer is None:
            return bias
        step = ops.stop_gradient(self.accumulator_step())
        return round_straight_through(bias / step) * step

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()  # pyright: ignore[reportAttributeAccessIssue]
        quantizer = self.weight_quantizer
        return config | {
            "weight_candidates": list(quantizer.candidates),
            "weight_rule": quantizer.rule,
            "nested_weights": isinstance(quantizer, NestedWeightQuantizer),
        }


@keras.saving.register_keras_serializable("keras_metamix")
class QuantizedConv2D(QuantizedMac, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a quantized kernel."""

    def call(self, inputs: Any) -> Any:
        return self._finish(self.convolution_op(inputs, self.weight_quantizer(self.kernel)))


@keras.saving.register_keras_serializable("keras_metamix")
class QuantizedDepthwiseConv2D(QuantizedMac, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a quantized kernel."""

    channel_axes = (-2, -1)

    def call(self, inputs: Any) -> Any:
        outputs = ops.depthwise_conv(
            inputs,
            self.weight_quantizer(self.kernel),
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        return self._finish(outputs)


@keras.saving.register_keras_serializable("keras_metamix")
class QuantizedDense(QuantizedMac, keras.layers.Dense):
    """`keras.layers.Dense` with a quantized kernel."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self._finish(ops.matmul(inputs, self.weight_quantizer(self.kernel)))
