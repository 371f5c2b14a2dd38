"""Where a file is to run: its types, inputs, outputs and operators follow from that, here alone.

A network is trained once; each target's file has the same integers. `convert` writes what a target
says, `verify` holds a file to it, `explain` and the prices of `Size` ask it. This module imports
nothing but `containers`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from metamix_tflite.containers import CONTAINERS, Container, held_bytes

TargetName = Literal["cpu", "arm", "web", "gpu", "micro", "ethosu", "edgetpu"]
ContainerName = Literal["fast", "int4", "int8", "int4_conv", "smallest"]
IoName = Literal["float32", "int8", "uint8"]
IO_TYPES = ("float32", "int8", "uint8")
# Products of patches have to save so many bytes: less than that is little beside their operators.
LEAST_SAVED_BY_PATCHES = 4096
# What weights of blocks take besides: bytes of an operator, and of the scales and the bias of each
# row that a TRANSPOSE_CONV does without.
_BLOCKS, _ROW = 128, 20


@dataclasses.dataclass(frozen=True)
class MacForm:
    """A MAC layer in a file.

    Attributes:
      operator: LiteRT's.
      container: type that holds the weights: "INT2", "INT4" or "INT8".
      patches: whether the operator reads patches of the layer's input, which others lay out.
      blocks: whether it gives the pixels of a block as channels, which another lays out.
    """

    operator: str
    container: str
    patches: bool = False
    blocks: bool = False


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of place that files run in.

    Attributes:
      name: as `convert` takes it.
      container: of the weights.
      io: type of the inputs and outputs.
      containers: those whose files run there; the first is the target's own.
      io_types: the types of inputs and outputs that it takes; the first is its own.
      limit: why it takes no others.
      cpus: of the machines meant, those whose kernels differ; none where no CPU's run.
      fixed_point: whether its kernels requantize in fixed point, as LiteRT's reference kernels do,
        and not in float32, as XNNPACK's do: golden outputs are the runtime's own.
      slices: whether 1x1 convolutions with strides are a slice and a product.
    """

    name: TargetName
    containers: tuple[str, ...]
    io_types: tuple[str, ...]
    limit: str = ""
    cpus: tuple[str, ...] = ()
    fixed_point: bool = False
    slices: bool = False
    container: str = ""
    io: str = ""

    def __post_init__(self) -> None:
        """What was not chosen is the target's own.

        Raises:
          ValueError: a container or a type of inputs and outputs that it does not take; says why,
            and what it takes.
        """
        for field, choices, every, argument in (
            ("container", self.containers, (*CONTAINERS,), "weight_container"),
            ("io", self.io_types, IO_TYPES, "io"),
        ):
            found = getattr(self, field) or choices[0]
            if found not in every:
                raise ValueError(f"{argument}: expected one of {every}, found {found!r}.")
            if found not in choices:
                raise ValueError(
                    f"{argument}: target {self.name!r} takes {_either(choices)}, found {found!r}: "
                    f"{self.limit}. Leave {argument} out, or give another target."
                )
            object.__setattr__(self, field, found)

    @property
    def held(self) -> Container:
        """What its files' weights may be held in."""
        return CONTAINERS[self.container]

    @property
    def exact_kernels(self) -> str:
        """The kernels of LiteRT that give the golden outputs, "" where none promise it."""
        if self.fixed_point:
            return "reference"
        return "xnnpack" if self.held.xnnpack else ""

    def mac_form(
        self,
        kind: str,
        kernel_shape: Sequence[int],
        strides: Sequence[int],
        channels: int,
        weight_bits: int,
    ) -> MacForm:
        """What its files have for a MAC layer.

        Args:
          kind: "conv", "depthwise", "transpose" or "dense".
          kernel_shape: as Keras has it.
          strides: of a convolution.
          channels: of the layer's input.
          weight_bits: of the layer.
        """
        weights, held = math.prod(kernel_shape), self.held
        taps = kernel_shape[-1] if kind == "transpose" else math.prod(kernel_shape[:-1])
        matrix, convolution, depthwise = (
            MacForm(operator, held.weight_type(operator, weight_bits, taps))
            for operator in ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
        )
        saved = weights - held_bytes(matrix.container, weights)
        if kind == "transpose":
            height, width, filters, _ = kernel_shape
            square = height == width > 1 and [height, width] == [*strides]
            more = _BLOCKS + _ROW * (height * width - 1) * filters
            # XNNPACK takes many times as long for a TRANSPOSE_CONV of few channels as for this.
            if square and held.matrix and (held.xnnpack or saved > more):
                return dataclasses.replace(matrix, blocks=True)
            return MacForm("TRANSPOSE_CONV", "INT8")
        if kind == "depthwise":
            return depthwise
        if kind == "dense":
            return matrix if held.matrix else convolution
        if kernel_shape[-2] != channels:  # grouped
            return convolution
        pixel, strided = tuple(kernel_shape[:2]) == (1, 1), tuple(strides) != (1, 1)
        if pixel and not strided:
            return matrix if saved else convolution
        if (held.xnnpack and saved >= LEAST_SAVED_BY_PATCHES) or (pixel and self.slices):
            return dataclasses.replace(matrix, patches=True)
        return convolution

    def takes_matrix(self) -> bool:
        """Whether its files have FULLY_CONNECTED operators."""
        return bool(self.held.matrix) or self.slices

    def kernels(self, operator: str, container: str) -> str:
        """How its CPUs run an operator of weights, in short; "" where no CPU runs it.

        Args:
          operator: LiteRT's.
          container: the type of its weights.
        """
        if not self.cpus:
            return ""
        if container != "INT8" and operator != "FULLY_CONNECTED":
            return "LiteRT's own, not XNNPACK's" if not self.fixed_point else "TFLM's"
        if self.fixed_point:
            return "TFLM's"
        slow = [cpu for cpu in self.cpus if cpu in _SCALAR[container]]
        if not slow:
            return "SIMD"
        return f"scalar on {', '.join(slow)}" if len(slow) < len(self.cpus) else "scalar"


_X86, _DOT, _PLAIN, _WASM = "x86", "ARM with dot product", "ARM without dot product", "wasm"
# Where XNNPACK has no SIMD kernel for FULLY_CONNECTED of a type.
_SCALAR = {"INT8": (), "INT4": (_PLAIN, _WASM), "INT2": (_PLAIN, _WASM)}
_EVERY = (*CONTAINERS,)
_INT8_ALONE = "its compiler takes weights of INT8 alone, in convolutions"

TARGETS: Mapping[TargetName, Target] = {
    target.name: target
    for target in (
        Target("cpu", _EVERY, IO_TYPES, cpus=(_X86, _DOT)),
        Target("arm", ("int8", *(c for c in _EVERY if c != "int8")), IO_TYPES, cpus=(_PLAIN,)),
        Target(
            "web",
            ("int8", *(c for c in _EVERY if c != "int8")),
            ("float32", "uint8"),
            "LiteRT.js has no tensors of int8",
            cpus=(_WASM,),
        ),
        Target(
            "gpu",
            ("int8", "int4", "fast"),
            ("float32", "int8"),
            "its accelerator takes few-bit weights in FULLY_CONNECTED alone, and no uint8",
            slices=True,
        ),
        Target(
            "micro",
            ("int4_conv", "int8"),
            ("int8", "float32"),
            "LiteRT for Microcontrollers refuses FULLY_CONNECTED of fewer than 8 bits with a scale "
            "for each channel, and INT2",
            cpus=("a board",),
            fixed_point=True,
        ),
        Target("ethosu", ("int8",), ("int8", "float32", "uint8"), _INT8_ALONE),
        Target("edgetpu", ("int8",), ("int8", "float32", "uint8"), _INT8_ALONE),
    )
}


def target_of(
    name: Any = "cpu", weight_container: str | None = None, io: str | None = None
) -> Target:
    """A target with a container and a type of inputs and outputs of one's own choice, or its own.

    Raises:
      ValueError: no such target, container or type, or what the target does not take.
    """
    if name not in (*TARGETS,):
        raise ValueError(f"target: expected one of {(*TARGETS,)}, found {name!r}.")
    return dataclasses.replace(TARGETS[name], container=weight_container or "", io=io or "")


def declared_target(declared: Mapping[str, Any]) -> Target:
    """The target that a file declares.

    Raises:
      ValueError: none that there is.
    """
    found = [declared.get(key) or "none" for key in ("target", "weight_container", "io")]
    return target_of(*found)


def _either(choices: Sequence[str]) -> str:
    *others, last = map(repr, choices)
    return f"{', '.join(others)} or {last}" if others else f"{last} alone"
