"""Which two MAC layers' bit-widths choose a batch norm's set (Bit-Mixer, ICCV 2021)."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any, Literal, get_args

from keras_metamix.graph.kinds import Kind
from keras_metamix.graph.operations import kind
from keras_metamix.graph.operators.multiply import Multiply
from keras_metamix.graph.topology import Node, Topology

TransitionRule = Literal["feeding", "following", "switchable", "shared"]
TRANSITION_RULES: tuple[TransitionRule, ...] = get_args(TransitionRule)
Transition = tuple[Node | None, Node | None]


def transitions(
    topology: Topology, macs: Container[str], rule: TransitionRule
) -> dict[str, Transition]:
    """The pair of MAC layers that keys each batch norm, by its name.

    "Own" is the MAC layer whose result the batch norm normalizes.

    - "feeding": the layer that feeds its own, and its own. Bit-Mixer's transition between adjacent
      layers, taken from the graph: of a downsample branch the block's input feeds.
    - "following": its own, and the next one behind the batch norm (the other published
      interpretation).
    - "switchable": its own alone, one set for each bit-width (the control of the literature).
    - "shared": none, one set for all.

    On the way through the graph a sum and a concatenation lead to the input with the most MAC
    layers before it (the main branch; the newest features), and a product to its largest factor
    (what a squeeze-and-excitation gate scales). Where several layers follow, it is the one with the
    most MAC layers behind it, and of these the first by name. None stands for no such layer. Of an
    operation that is called several times the first call counts.

    Args:
      topology: of an expanded float model.
      macs: names of the MAC layers with bit-widths.
      rule: see above.
    """
    walk = _Walk(topology, macs)
    found: dict[str, Transition] = {}
    for node in topology.nodes:
        if kind(node.operation, node) is not Kind.BATCH_NORM or node.name in found:
            continue
        own = walk.before(node)
        if rule == "shared" or own is None:
            found[node.name] = (None, None)
        elif rule == "switchable":
            found[node.name] = (None, own)
        elif rule == "feeding":
            found[node.name] = (walk.before(own), own)
        else:
            found[node.name] = (own, walk.after(node))
    return found


class _Walk:
    """Neighbouring MAC layers in a graph."""

    def __init__(self, topology: Topology, macs: Container[str]):
        self.topology, self.macs = topology, macs
        self._depth: dict[int, int] = {}
        self._behind: dict[int, int] = {}
        for node in topology.nodes:
            depth = max(map(self._mac_depth, node.inputs), default=0) + (node.name in macs)
            for tensor in node.outputs:
                self._depth[id(tensor)] = depth
        for node in reversed(topology.nodes):
            count = self._macs_behind(node) + (node.name in macs)
            for tensor in node.inputs:
                self._behind[id(tensor)] = max(count, self._behind.get(id(tensor), 0))

    def _mac_depth(self, tensor: Any) -> int:
        return self._depth.get(id(tensor), 0)

    def before(self, node: Node) -> Node | None:
        """The last MAC layer on the main path to a node."""
        found = self.topology.producer(self._main_input(node))
        while found is not None and found.name not in self.macs:
            found = self.topology.producer(self._main_input(found))
        return found

    def after(self, node: Node) -> Node | None:
        """The next MAC layer behind a node."""
        reached, found = {id(tensor) for tensor in node.outputs}, []
        for later in self.topology.nodes:
            if any(id(tensor) in reached for tensor in later.inputs):
                if later.name in self.macs:
                    found.append(later)
                else:
                    reached.update(id(tensor) for tensor in later.outputs)
        # Not by their order in the network: equally deep branches have none that counts.
        return min(found, key=lambda mac: (-self._macs_behind(mac), mac.name), default=None)

    def _macs_behind(self, node: Node) -> int:
        return max((self._behind.get(id(tensor), 0) for tensor in node.outputs), default=0)

    def _main_input(self, node: Node) -> Any:
        if isinstance(kind(node.operation, node), Multiply):
            return max(node.inputs, key=lambda t: math.prod(n or 1 for n in t.shape))
        return max(node.inputs, key=self._mac_depth)
