"""A signature's graph as it was read from a .tflite."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

_LONGEST = 300  # characters of a message: what a file holds may be of any length


def one_line(text: str) -> str:
    """What may be of any length and hold any character, on one line, cut short."""
    text = " ".join(text.split())
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


class VerificationError(ValueError):
    """A file is not what it was declared to be; the message is one line, cut short."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class CompiledFileError(VerificationError):
    """A file is what a compiler made of a .tflite for one kind of chip."""


@contextlib.contextmanager
def named_signature(name: str, among: Collection[str]) -> Iterator[None]:
    """Puts a signature's name before what is wrong with it, where a file has several."""
    try:
        yield
    except ValueError as error:
        if len(among) == 1:
            raise
        raise VerificationError(f"Signature {name!r}: {error}") from error


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """A tensor; `data` is None unless it is a constant (INT4 and INT2 unpacked to int8)."""

    name: str
    shape: tuple[int, ...]
    type: str
    scales: np.ndarray
    zero_points: np.ndarray
    quantized_dimension: int
    data: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class FileOperator:
    """An operator; tensors by index, `activation` is its fused one, `numbers` of its options.

    `options` are all of these that are not zero, by the names of their accessors in the schema.
    """

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    activation: str
    numbers: tuple[float, ...] = ()
    version: int = 1
    options: tuple[tuple[str, object], ...] = ()


@dataclasses.dataclass(frozen=True)
class FileGraph:
    """A signature's subgraph and what the file declares of it (`metadata`, {} for a stranger's).

    `inputs` and `outputs` are tensors, `input_names` and `output_names` the signature's names.

    Tensors have different names. Operators are in the order in which they run: each reads
    inputs, constants and what was written before it, and writes what nothing else writes.
    """

    tensors: list[FileTensor]
    operators: list[FileOperator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    metadata: dict[str, Any]

    def __repr__(self) -> str:
        names = f"inputs {list(self.input_names)}, outputs {list(self.output_names)}"
        return f"<FileGraph: {len(self.operators)} operators, {names}>"

    def producer(self, tensor: int) -> FileOperator | None:
        """The operator that writes a tensor."""
        return self._producers.get(tensor)

    @functools.cached_property
    def _producers(self) -> dict[int, FileOperator]:
        return {i: operator for operator in self.operators for i in operator.outputs}


def check_order(graph: FileGraph) -> None:
    """Raises VerificationError unless a graph is as `FileGraph` says."""
    tensors = graph.tensors

    def named(index: int) -> str:
        name = f" {tensors[index].name!r}" if 0 <= index < len(tensors) else ""
        return f"tensor {index}{name}"

    if len({t.name for t in tensors}) != len(tensors):
        raise VerificationError("Several tensors of the file have the same name.")
    constants = {i for i, t in enumerate(tensors) if t.data is not None}
    if not set(graph.inputs) <= set(range(len(tensors))) - constants:
        raise VerificationError(f"The graph's inputs {graph.inputs} are no tensors to set.")
    written = set(graph.inputs)
    for number, operator in enumerate(graph.operators):
        where = f"Operator {number} ({operator.op})"
        for index in operator.inputs:
            if index not in written and index not in constants:
                raise VerificationError(f"{where} reads {named(index)}, which nothing wrote.")
        for index in operator.outputs:
            if index in written or index in constants or not 0 <= index < len(tensors):
                raise VerificationError(f"{where} writes {named(index)}, which it cannot.")
            written.add(index)
    if not set(graph.outputs) <= written:
        raise VerificationError(f"The graph's outputs {graph.outputs} are not all written.")
