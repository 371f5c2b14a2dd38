"""MACs, weights and BOPs of a Keras model's layers."""

from __future__ import annotations

import math
from typing import Any

import keras

from keras_metamix.assignment import BitAssignment, SearchSpace
from keras_metamix.cost import LayerCost, assignment_bops
from keras_metamix.graph.expand import expansion
from keras_metamix.graph.kinds import Kind
from keras_metamix.graph.operations import kind
from keras_metamix.graph.operators.batch_matmul import product_macs
from keras_metamix.graph.refusals import Refused, UnsupportedLayerError
from keras_metamix.graph.topology import Node, Topology
from keras_metamix.layers.mac import QuantizedMac
from keras_metamix.network_model import network_of

PRODUCT_BITS = 8  # of a factor that is an activation
_CLASSES = (
    keras.layers.DepthwiseConv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv2D,
    keras.layers.Dense,
)


def mac_nodes(
    topology: Topology, float_layers: frozenset[str] = frozenset()
) -> dict[str, list[Node]]:
    """Calls of every MAC layer by layer name, in network order.

    In a searchable network a MAC layer that was left in float is none of them.
    """
    nodes: dict[str, list[Node]] = {}
    for node in topology.nodes:
        if kind(node.operation) is Kind.MAC and node.name not in float_layers:
            nodes.setdefault(node.name, []).append(node)
    quantized = {k: v for k, v in nodes.items() if isinstance(v[0].operation, QuantizedMac)}
    return quantized or nodes


def edge_names(nodes: dict[str, list[Node]]) -> set[str]:
    """Names of the first and of the last MAC layer, of what `mac_nodes` found.

    A network of `from_float` may run its layers in another order than the float model, whose first
    and last ones they are: there the layers hold it. In one built by hand it is its own order.
    """
    held = {name for name, calls in nodes.items() if getattr(calls[0].operation, "edge", False)}
    return held or {*list(nodes)[:1], *list(nodes)[-1:]}


def layer_costs(model: keras.Model) -> list[LayerCost]:
    """The cost table of a float model, of a network of `from_float`, or of a MetaMixModel.

    A layer that is called several times counts for each call. Spatial sizes have to be known.

    Raises:
      ValueError: no MAC layer, or an unknown spatial size; names the layer.
    """
    nodes = mac_nodes(_topology(model))
    if not nodes:
        raise ValueError(f"Model {model.name!r} has no Conv2D, DepthwiseConv2D or Dense layer.")
    return costs_of(nodes)


def product_bops(model: keras.Model) -> int:
    """BOPs for one image of a model's products of two activations, which have 8 bits each."""
    return sum(map(product_macs, _topology(model).nodes)) * PRODUCT_BITS**2


def _topology(model: keras.Model) -> Topology:
    network = network_of(model)
    if not any(isinstance(layer, QuantizedMac) for layer in getattr(network, "layers", ())):
        network = _expanded(network)
    return Topology(network)


def _expanded(model: keras.Model) -> keras.Model:
    """The flat model; what cannot be opened is left in it where it holds no weights.

    Raises:
      UnsupportedLayerError: its MACs are not known.
    """
    found = expansion(model)
    unknown = [op for op in found.model.operations if isinstance(op, Refused)]
    names = [op.name for op in unknown if getattr(op.operation, "weights", ())]
    if names:
        raise UnsupportedLayerError(model.name, [found.refused[name] for name in names])
    return found.model


def costs_of(nodes: dict[str, list[Node]]) -> list[LayerCost]:
    """The cost table of what `mac_nodes` found."""
    edges = edge_names(nodes)
    return [_layer_cost(calls, name in edges) for name, calls in nodes.items()]


def bops(model: keras.Model, bits: BitAssignment) -> int:
    r"""BOPs for one image (MetaMix Eq. 6).

    $$\mathrm{BOPs} = \sum_l \mathrm{MACs}_l \cdot a_l \cdot w_l + 64 \, \mathrm{MACs}_{products}$$

    with $a_l$ and $w_l$ the bits of the input and of the weights of layer $l$. Products of two
    activations, such as attention's, count with 8 bits of each.
    """
    return assignment_bops(layer_costs(model), bits) + product_bops(model)


def uniform_assignment(
    model: keras.Model,
    activation_bits: int,
    weight_bits: int,
    edge_bits: int = 8,
    edge_weight_bits: int | None = None,
) -> BitAssignment:
    """The same bit-widths in every MAC layer but the first and the last.

    These take `edge_bits`, their weights `edge_weight_bits`; None: `edge_bits` too.
    """
    edges = edge_bits if edge_weight_bits is None else edge_weight_bits
    SearchSpace((activation_bits,), weight_bits, edge_bits, edge_weight_bits=edges)  # checks them
    costs = layer_costs(model)
    return BitAssignment(
        {c.name: edge_bits if c.edge else activation_bits for c in costs},
        {c.name: edges if c.edge else weight_bits for c in costs},
    )


def _layer_cost(calls: list[Node], edge: bool) -> LayerCost:
    layer: Any = calls[0].operation
    outputs = [_size(layer, call.output.shape) for call in calls]
    kernel = math.prod(layer.kernel.shape)
    channels = layer.units if isinstance(layer, keras.layers.Dense) else calls[0].output.shape[-1]
    read = [_size(layer, call.inputs[0].shape) for call in calls]
    # Every output element takes as many MACs as its channel has weights; of a transposed
    # convolution every input element does.
    transposed = isinstance(layer, keras.layers.Conv2DTranspose)
    each, shared = (read, layer.kernel.shape[-1]) if transposed else (outputs, channels)
    return LayerCost(
        name=layer.name,
        kind=_float_class(layer),
        macs=sum(each) * kernel // shared,
        weights=kernel,
        output_channels=channels,
        input_elements=sum(read),
        edge=edge,
        operations=tuple(_operation(layer, call) for call in calls),
    )


def _operation(layer: Any, call: Node) -> str:
    """What a call computes, such as "Conv2D 8x8x3, kernel 3x3x3x16, strides 2x2, same"."""
    text = (
        f"{_float_class(layer)} {_by(call.inputs[0].shape[1:])}, kernel {_by(layer.kernel.shape)}"
    )
    if isinstance(layer, keras.layers.Dense):
        return text
    text += f", strides {_by(layer.strides)}, {layer.padding}"
    dilation = _by(layer.dilation_rate)
    return text if set(layer.dilation_rate) == {1} else f"{text}, dilation {dilation}"


def _by(sizes: Any) -> str:
    return "x".join(str(size) for size in sizes)


def _size(layer: Any, shape: tuple[Any, ...]) -> int:
    if None in shape[1:]:
        raise ValueError(
            f"Layer {layer.name!r}: the cost needs every size but the batch, found shape {shape}."
        )
    return math.prod(shape[1:])


def _float_class(layer: Any) -> str:
    for cls in _CLASSES:
        if isinstance(layer, cls):
            return cls.__name__
    raise TypeError(f"Layer {layer.name!r} is no MAC layer.")
