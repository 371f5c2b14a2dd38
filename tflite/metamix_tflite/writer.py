"""Writes a folded network as one .tflite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras

from keras_metamix.graph.fold_bn import fold_batch_norm
from keras_metamix.graph.topology import Node
from keras_metamix.layers import integer
from metamix_tflite import arithmetic, moves
from metamix_tflite.containers import check_container
from metamix_tflite.emission import FileWriter

_EMITTERS: dict[type, Callable[[FileWriter, Node], None]] = {
    integer.QuantizeInput: arithmetic.quantize_input,
    integer.Dequantize: arithmetic.dequantize,
    integer.IntegerMac: arithmetic.mac,
    integer.IntegerAdd: arithmetic.add,
    integer.IntegerMultiply: arithmetic.multiply,
    integer.Rescale: arithmetic.rescale,
    integer.IntegerMean: arithmetic.mean,
    integer.IntegerTable: arithmetic.table,
    keras.layers.Concatenate: moves.concatenate,
    keras.layers.MaxPooling2D: moves.max_pool,
    keras.layers.GlobalMaxPooling2D: moves.global_max_pool,
    keras.layers.ZeroPadding2D: moves.pad,
    keras.layers.Cropping2D: moves.crop,
    keras.layers.Flatten: moves.reshape,
    keras.layers.Reshape: moves.reshape,
    keras.layers.Dropout: moves.same,
    keras.layers.SpatialDropout2D: moves.same,
    keras.layers.Identity: moves.same,
    keras.layers.Activation: moves.same,  # linear: the fold leaves no other
}


def convert(
    model: Any,
    weight_container: Literal["fast", "smallest"] = "fast",
    io: Literal["float32", "int8"] = "float32",
) -> bytes:
    """The .tflite of a trained model; its integers are the trained ones.

    Args:
      model: a MetaMixModel in weight training, or what `fold_batch_norm` made of it.
      weight_container: "fast" keeps one XNNPACK partition (INT4 for pointwise and dense layers,
        the other low-bit integers in INT8); "smallest" holds every weight of at most 4 bits in
        INT4, which LiteRT runs outside XNNPACK for k x k and depthwise convolutions.
      io: type of the file's inputs and outputs.

    Raises:
      ValueError: an argument, or a layer that has no exact operator; names it.
    """
    check_container(weight_container)
    if io not in ("float32", "int8"):
        raise ValueError(f"io: expected 'float32' or 'int8', found {io!r}.")
    folded = model if _is_folded(model) else fold_batch_norm(model)
    file = FileWriter(folded, weight_container, io)
    for node in file.topology.nodes:
        _emitter(node)(file, node)
    return file.finish()


def _is_folded(model: Any) -> bool:
    layers = getattr(model, "layers", [])
    return any(isinstance(layer, integer.IntegerLayer) for layer in layers)


def _emitter(node: Node) -> Callable[[FileWriter, Node], None]:
    for cls, emitter in _EMITTERS.items():
        if isinstance(node.operation, cls):
            return emitter
    raise ValueError(
        f"Layer {node.name!r} ({type(node.operation).__name__}) has no exact LiteRT operator."
    )
