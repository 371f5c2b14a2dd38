"""Layers that only move or select data, for tensors of levels."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_metamix.graph.fold_mac import fold_average
from keras_metamix.graph.operations import DATA_MOVEMENT_LAYERS, data_movement_of
from keras_metamix.graph.topology import Node
from keras_metamix.layers.grid import Grid


def data_movement_layer(node: Node, grid: Grid) -> Any:
    """The layer of a node, for levels on `grid`."""
    operation, name = node.operation, node.call_name
    if (movement := data_movement_of(operation)) is not None:
        return movement.layer(node)
    if not isinstance(operation, layers.Layer):  # a raw reshape, or a cast of bytes
        if node.output.shape == node.inputs[0].shape:
            return layers.Identity(name=name)
        return layers.Reshape(node.output.shape[1:], name=name)
    if isinstance(operation, layers.MaxPooling2D) and _only_strides(operation, grid):
        return fold_average(node, grid, grid, {})
    if not isinstance(operation, tuple(DATA_MOVEMENT_LAYERS)):
        return layers.Identity(name=name)  # it acts in training alone
    return type(operation).from_config(operation.get_config() | {"name": name})


def _only_strides(pool: layers.MaxPooling2D, grid: Grid) -> bool:
    """Whether XNNPACK, which has no pool of 1x1, takes a depthwise convolution in its place.

    It has to clip at the ends of the grid, which it cannot where an "offset" one begins.
    """
    return tuple(pool.pool_size) == (1, 1) and grid.lower_end_is_clipped
