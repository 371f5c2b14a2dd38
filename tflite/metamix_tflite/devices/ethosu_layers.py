"""What each MAC layer of a file costs an Ethos-U NPU, by the operators that Vela tells of."""

from __future__ import annotations

import dataclasses

from metamix_tflite.devices.ethosu_compiler import Compiled, CompiledOperator
from metamix_tflite.file_graph import FileGraph, FileOperator
from metamix_tflite.read.files import read_file

_SCALE = "MUL"  # what brings a tensor onto a layer's grid
_MAC_KINDS = ("Conv2D", "DepthwiseConv2D", "FullyConnected", "TransposeConv")  # in Vela's words


@dataclasses.dataclass(frozen=True)
class LayerPrice:
    """The cost of a MAC layer, all calls of it.

    Attributes:
      cycles: of its operators, and of those that only bring its input onto its grid.
      weight_bytes: its weights, compressed, with scales and biases.
    """

    cycles: int
    weight_bytes: int


def layer_prices(flat: bytes, compiled: Compiled) -> dict[str, LayerPrice]:
    """The MAC layers' costs by name; what is left of the whole does not belong to any.

    Args:
      flat: a file of `convert` of one signature.
      compiled: what Vela made of it.

    Raises:
      VerificationError: not such a file.
      ValueError: Vela tells of no operator of a layer; names it.
    """
    graph = read_file(flat, declared=True)
    calls = {name: e["layer"] for name, e in graph.metadata["layers"].items() if e["layer"]}
    names = {tensor.name: index for index, tensor in enumerate(graph.tensors)}
    cycles: dict[str, list[int]] = {layer: [] for layer in calls.values()}
    for row in compiled.operators:
        layer = _layer(graph, calls, names, row)
        if layer:
            cycles[layer].append(row.cycles)
    stored: dict[str, dict[str, int]] = {layer: {} for layer in cycles}
    for operator in graph.operators:
        layer = calls.get(graph.tensors[operator.outputs[0]].name, "")
        constants = [graph.tensors[i] for i in operator.inputs if layer]
        for name in (tensor.name for tensor in constants if tensor.data is not None):
            stored[layer][name] = compiled.tensors.get(name, 0)
    for layer, found in cycles.items():
        if not found or not any(stored[layer].values()):
            raise ValueError(
                f"Layer {layer!r}: Vela's tables name no operator and weights of it: this version "
                "of Vela writes others than those known here."
            )
    return {n: LayerPrice(sum(c), sum(stored[n].values())) for n, c in cycles.items()}


def _layer(
    graph: FileGraph, calls: dict[str, str], names: dict[str, int], row: CompiledOperator
) -> str:
    """The layer that an operator of Vela's belongs to, "" where there is none."""
    name = row.name
    while name and name not in names:  # "x_intermediate" is a part of what writes "x"
        name = name.rpartition("_")[0]
    operator = graph.producer(names[name]) if name else None
    while operator is not None:
        layer = calls.get(graph.tensors[operator.outputs[0]].name) or _scaled(
            graph, calls, operator
        )
        # What only reshapes is no operator of the NPU, and a row goes by the last name fused to it.
        if layer or not (operator.op == "RESHAPE" or row.kind in _MAC_KINDS):
            return layer
        operator = graph.producer(_activations(graph, operator)[0])
    return ""


def _scaled(graph: FileGraph, calls: dict[str, str], operator: FileOperator) -> str:
    """The one layer whose input an operator brings onto its grid."""
    if operator.op != _SCALE or len(_activations(graph, operator)) != 1:
        return ""
    readers = [o for o in graph.operators if operator.outputs[0] in o.inputs]
    if [o.op for o in readers] == ["RESHAPE"]:
        readers = [o for o in graph.operators if readers[0].outputs[0] in o.inputs]
    layers = {calls.get(graph.tensors[o.outputs[0]].name, "") for o in readers}
    return layers.pop() if len(layers) == 1 else ""


def _activations(graph: FileGraph, operator: FileOperator) -> list[int]:
    return [i for i in operator.inputs if graph.tensors[i].data is None]
