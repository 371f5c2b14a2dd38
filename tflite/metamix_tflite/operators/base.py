"""What a family of operators is to the files of this package."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np

from metamix_tflite.file_graph import FileGraph, FileOperator, FileTensor, VerificationError
from metamix_tflite.targets import Target


@dataclasses.dataclass(frozen=True)
class Litert:
    """An operator of LiteRT, as the files of this package hold it.

    Attributes:
      name: LiteRT's.
      inputs: how many it may have.
      fused: the schema's options that hold its fused activation; None where it has none.
      geometry: options that its time depends on.
      source: place of the tensor that it computes from among its inputs.
      options, numbers: the schema's options that hold numbers to verify, and which these are.
      xnnpack: whether XNNPACK takes it as the files hold it; else LiteRT's own kernel runs it.
      fixed_point: whether LiteRT's reference kernel computes what the fold in fixed point does.
      gpu, edge_tpu: whether the delegate's published list has it: LiteRT's GPU delegate, which
        dequantizes to float, so that its results are not exact, and Coral's compiler.
    """

    name: str
    inputs: tuple[int, ...]
    fused: Any = None
    geometry: tuple[str, ...] = ()
    options: Any = None
    numbers: tuple[str, ...] = ()
    xnnpack: bool = True
    fixed_point: bool = True
    gpu: bool = True
    edge_tpu: bool = True
    source: int = 0


@dataclasses.dataclass(frozen=True)
class LevelRange:
    """Lowest and highest level of a tensor.

    `clipped`: by the operator, whatever its inputs hold. Else the lower end is the lowest level
    that occurs, of a grid that begins a little below it.
    """

    low: int
    high: int
    clipped: bool = True

    def holds(self, bits: int) -> bool:
        """Whether this is the range of a tensor of so many bits."""
        levels = self.high - self.low + 1
        if not 2 <= bits <= 8:
            return False
        if not self.clipped:
            return 2 ** (bits - 1) < levels <= 2**bits
        symmetric = self.low == -self.high and bits < 8
        return levels == 2**bits - symmetric

    @property
    def bits(self) -> int | None:
        """The bit-width that it holds; None for that of none."""
        return next((bits for bits in range(2, 9) if self.holds(bits)), None)

    def __str__(self) -> str:
        return f"{self.bits} (levels {self.low} to {self.high})"


def saturation(tensor: FileTensor) -> LevelRange:
    """The range that INT8 itself leaves."""
    zero_point = int(tensor.zero_points[0])
    return LevelRange(-128 - zero_point, 127 - zero_point)


@dataclasses.dataclass(frozen=True)
class Call:
    """An operator of a file that was read, with its tensors."""

    graph: FileGraph
    operator: FileOperator

    @property
    def inputs(self) -> list[FileTensor]:
        """Those that are there: a stranger's file may leave one out."""
        return [self.graph.tensors[index] for index in self.operator.inputs if index >= 0]

    @property
    def outputs(self) -> list[FileTensor]:
        """Files of this package have one."""
        return [self.graph.tensors[index] for index in self.operator.outputs if index >= 0]

    @property
    def output(self) -> FileTensor:
        """The first."""
        return self.outputs[0]

    def fail(self, what: str, expected: object, found: object) -> NoReturn:
        """Raises VerificationError, which names the layer by its output."""
        raise VerificationError(
            f"Layer {self.output.name!r}: {what}: declared {expected}, found {found}."
        )


@dataclasses.dataclass(frozen=True)
class WrittenTensor:
    """A tensor of the file under construction, by index; `grid` is None for one of floats."""

    index: int
    shape: tuple[int, ...]
    grid: Any


@dataclasses.dataclass(frozen=True)
class Outside:
    """Why XNNPACK leaves an operator to LiteRT's own kernel, and what would keep it."""

    why: str
    remedy: str


class FileWriter(Protocol):
    """What an operator is written to: `write.signature_writer.SignatureWriter`."""

    target: Target
    graph: Any
    values: dict[int, WrittenTensor]
    inputs: dict[str, int]
    declared: dict[str, Any]
    outside: dict[str, Outside]

    def read(self, node: Any) -> list[WrittenTensor]: ...
    def output(self, node: Any, grid: Any, activation: str = "NONE") -> int: ...
    def tensor(
        self, name: str, shape: tuple[int, ...], grid: Any, activation: str = "NONE"
    ) -> WrittenTensor: ...
    def vector(self, name: str, values: list[Any]) -> int: ...
    def fused_activation(self, node: Any) -> str: ...


class Family:
    """A family of operators: written, verified and offered to delegates by one file.

    Attributes:
      layers: names of the classes of a folded network's layers that it writes.
      litert: LiteRT's operators that are of it.
      constants: that a written one reads, by the INT32 integers in each.
    """

    layers: tuple[str, ...] = ()
    litert: tuple[Litert, ...] = ()
    constants: tuple[int, ...] = ()

    def write(self, file: FileWriter, node: Any) -> None:
        """Adds the operators of a layer of a folded network to a signature.

        Raises:
          ValueError: LiteRT has no exact operator for it; names the layer.
        """
        raise NotImplementedError

    def outline(self, node: Any) -> Sequence[tuple[int, tuple[int, ...]]]:
        """What `write` adds for a layer, by which the size of a file is known before.

        Returns:
          Of each operator the tensors that it reads, and the INT32 integers of each constant.
        """
        return [(len(node.inputs), self.constants)]

    def check(self, call: Call) -> None:
        """Raises VerificationError unless a file's operator is as this package writes it."""

    def levels(self, call: Call, ranges: Mapping[int, LevelRange]) -> LevelRange:
        """What an operator of a file writes, by what clips it.

        RELU6 counts as RELU: where it cuts more, fewer levels than the bit-width's occur.

        Args:
          call: the operator.
          ranges: of the tensors before it, by index.

        Raises:
          VerificationError: it does not compute with these tensors.
        """
        full, activation = saturation(call.output), call.operator.activation
        if activation in ("RELU", "RELU6"):
            return LevelRange(max(full.low, 0), full.high)
        if activation == "RELU_N1_TO_1":
            unit = round(min(1.0 / float(call.output.scales[0]), 255.0))
            return LevelRange(max(full.low, -unit), min(full.high, unit))
        return full

    def bops(self, call: Call) -> int:
        """BOPs of a product of two activations, 0 of other operators; `verify` counts a Mac's."""
        return 0

    def computed(self, call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
        """The integers that the device computes, in NumPy, to the bit: what tests hold it to.

        Args:
          call: the operator.
          levels: of its inputs, int64.

        Returns:
          Levels of its output, int64.

        Raises:
          NotImplementedError: the tensors alone do not say what it computes.
        """
        raise NotImplementedError

    def edge_tpu_refusal(self, call: Call) -> str:
        """Why the Edge TPU does not take this call of a listed operator, "" where it does."""
        return ""


def clipped(call: Call, levels: np.ndarray) -> np.ndarray:
    """Levels as INT8's saturation and the fused activation leave them."""
    full, activation, tensor = saturation(call.output), call.operator.activation, call.output
    low, high, scale = full.low, full.high, np.float32(tensor.scales[0])
    if activation in ("RELU", "RELU6"):
        low = max(low, 0)
    if activation == "RELU6":
        code = np.float32(6.0) / scale + np.float32(tensor.zero_points[0])
        high = min(high, int(np.rint(code)) - int(tensor.zero_points[0]))
    if activation == "RELU_N1_TO_1":
        unit = int(np.rint(np.float32(1.0) / scale))
        low, high = max(low, -unit), min(high, unit)
    return np.clip(levels, low, high)


def requantized(call: Call, sums: np.ndarray, multiplier: Any) -> np.ndarray:
    """XNNPACK's requantization: a product in float32, rounded half to even, clipped."""
    scaled = sums.astype(np.float32) * np.asarray(multiplier, np.float32)
    return clipped(call, np.rint(scaled).astype(np.int64))


def batch_one(tensor: Any) -> tuple[int, ...]:
    """A Keras tensor's shape with one image.

    Raises:
      ValueError: another dimension is not known; names the tensor.
    """
    if None in tensor.shape[1:]:
        raise ValueError(f"Tensor {tensor.name!r}: expected a known shape, found {tensor.shape}.")
    return (1, *tensor.shape[1:])


def require_unclipped(node: Any, positive: bool = False) -> None:
    """Raises ValueError unless INT8's saturation alone gives a layer's range.

    Args:
      node: the layer's call.
      positive: whether no level below 0 occurs.
    """
    layer = node.operation
    zero_point = layer.output_grid.zero_point
    below = layer.low == -128 - zero_point or (positive and layer.low == 0)
    if not below or layer.high != 127 - zero_point:
        raise ValueError(
            f"Layer {node.name!r} ({type(layer).__name__}) would have to clip to levels "
            f"[{layer.low}, {layer.high}], which its operator cannot: give it 8 bits."
        )


def check_multiplier(node: Any, multiplier: Any, least: float = 0.0) -> None:
    """Raises ValueError for factors that XNNPACK leaves to kernels which round in another way."""
    low, high = np.min(multiplier), np.max(multiplier)
    if not least <= low <= high < 256.0:
        raise ValueError(
            f"Layer {node.name!r}: requantization by {low} to {high} is outside what XNNPACK "
            f"takes (from {least}, below 256): a step size has run away, or a branch is dead."
        )
