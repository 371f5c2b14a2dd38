"""The depthwise, pointwise and other convolutions that groups fold into."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers, ops

from keras_metamix.graph.group import Group
from keras_metamix.graph.names import Names
from keras_metamix.graph.topology import Node
from keras_metamix.layers.batch_norm import (
    AFFINE_INTEGER,
    FoldableBatchNormalization,
    folded_terms,
)
from keras_metamix.layers.grid import Grid
from keras_metamix.layers.integer import IntegerMac
from keras_metamix.layers.mac import (
    QuantizedConv2DTranspose,
    QuantizedDense,
    QuantizedDepthwiseConv2D,
    QuantizedMac,
)

Clip = dict[str, Any]  # "low" and "high" of an IntegerLayer, where they are not the grid's


def fold_mac(group: Group, input_grid: Grid, grid: Grid, clip: Clip) -> IntegerMac:
    """A MAC layer with what folds into it."""
    node: Any = group.head
    layer = node.operation
    kind, geometry = _kind(layer), {}
    if kind != "dense":
        geometry = {
            "strides": layer.strides,
            "padding": layer.padding,
            "dilation_rate": layer.dilation_rate,
        }
    integer = IntegerMac(
        kind,
        layer.weight_quantizer.choice.bits,
        layer.kernel.shape,
        input_grid,
        grid,
        name=node.call_name,
        layer=layer.name,
        **geometry,
        **clip,
    )
    scale, bias = (ops.convert_to_numpy(t) for t in layer.folded(group.factor, group.shift))
    scale = scale.astype(np.float64)
    kernel = layer.integer_kernel()
    sign = np.where(scale < 0, -1, 1)
    shapes = {"depthwise": kernel.shape[-2:], "transpose": (-1, 1)}
    kernel = kernel * sign.reshape(shapes.get(kind, -1))
    weight_step = np.asarray(layer.weight_quantizer.step(), np.float64).reshape(-1)
    integer.set_integers(kernel, bias, weight_step * np.abs(scale) * _labels(input_grid, grid))
    return integer


def _kind(layer: QuantizedMac) -> Any:
    """The kind of its IntegerMac."""
    kinds = {
        QuantizedDense: "dense",
        QuantizedDepthwiseConv2D: "depthwise",
        QuantizedConv2DTranspose: "transpose",
    }
    return next((kind for cls, kind in kinds.items() if isinstance(layer, cls)), "conv")


def fold_constants(group: Group, input_grid: Grid, grid: Grid, clip: Clip) -> IntegerMac:
    """Batch norm or constants behind no MAC layer: a 1x1 depthwise convolution."""
    node: Any = group.head
    channels = node.output.shape[-1]
    ones = np.ones(channels, np.float32)
    step = np.float32(input_grid.step / AFFINE_INTEGER) * ones
    factor, shift = (np.float32(t) * ones for t in (group.factor, group.shift))
    norm = node.operation
    if isinstance(norm, FoldableBatchNormalization):
        terms = norm.fold(factor, shift, step)
    else:
        terms = folded_terms(factor, shift, 0 * ones, ones, 0.0, 0 * ones, step)
    scale, bias = (ops.convert_to_numpy(t).astype(np.float64) for t in terms)
    layer = IntegerMac(
        "depthwise", 8, (1, 1, channels, 1), input_grid, grid, name=node.call_name, **clip
    )
    kernel = np.where(scale < 0, -AFFINE_INTEGER, AFFINE_INTEGER).reshape(layer.kernel_shape)
    layer.set_integers(kernel, bias, np.abs(scale) / AFFINE_INTEGER * _labels(input_grid, grid))
    return layer


def fold_average(
    node: Node, input_grid: Grid, grid: Grid, clip: Clip, name: str = ""
) -> IntegerMac:
    """Average pooling as a depthwise convolution with equal weights, which rounds half to even.

    Over a border it counts zeros; `name` is that of the result, the node's where it is empty.
    """
    pool = node.operation
    height, width = pool.pool_size
    channels = node.output.shape[-1]
    layer = IntegerMac(
        "depthwise",
        8,
        (height, width, channels, 1),
        input_grid,
        grid,
        strides=pool.strides,
        padding="same" if pool_is_padded(node) else "valid",
        name=name or node.call_name,
        **clip,
    )
    scale = np.full(channels, _labels(input_grid, grid) / (height * width))
    layer.set_integers(np.ones(layer.kernel_shape), np.zeros(channels), scale)
    return layer


def pool_is_padded(node: Node) -> bool:
    """Whether some windows of a pool reach over the border."""
    pool = node.operation
    sizes = node.output.shape[1:3], pool.strides, pool.pool_size, node.inputs[0].shape[1:3]
    return pool.padding == "same" and any(
        (out - 1) * stride + size > found for out, stride, size, found in zip(*sizes, strict=True)
    )


def four_dimensional(layer: IntegerMac, tensor: Any, names: Names) -> Any:
    """Applies a layer; a depthwise one to features and to sequences too.

    Args:
      layer, tensor: what is applied to what.
      names: those of the network, which the layers that are added do not have.
    """
    if layer.kind != "depthwise" or len(tensor.shape) == 4:
        return layer(tensor)
    shape = tuple(tensor.shape[1:])
    if len(shape) > 2:
        raise ValueError(
            f"Layer {layer.name!r}: expected a tensor of 2 to 4 dimensions, found {tensor.shape}."
        )
    ones = (1, 1)[: 3 - len(shape)]
    first, last = (names.new(f"{layer.name}_{end}") for end in ("image", "features"))
    image = layers.Reshape((*ones, *shape), name=first)(tensor)
    return layers.Reshape(shape, name=last)(layer(image))


def _labels(input_grid: Grid, grid: Grid) -> float:
    return (input_grid.step / input_grid.scale) * (grid.scale / grid.step)
