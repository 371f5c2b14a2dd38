"""Concatenations."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Op
from metamix_tflite.operators.base import FileWriter, Litert, WrittenTensor
from metamix_tflite.operators.data_movement import DataMovement

_MOST = 5  # inputs that XNNPACK joins at once


class Concatenate(DataMovement):
    """CONCATENATION."""

    layers: tuple[str, ...] = ("Concatenate",)
    litert: tuple[Litert, ...] = (
        Litert("CONCATENATION", (*range(1, _MOST + 1),), geometry=("axis",)),
    )

    def write(self, file: FileWriter, node: Any) -> None:
        axis = node.operation.axis % len(node.output.shape)
        file.values[id(node.output)] = joined(file, node.name, file.read(node), axis)

    def outline(self, node: Any) -> list[tuple[int, tuple[int, ...]]]:
        return [(inputs, ()) for inputs in chain(len(node.inputs))]

    def moved(self, inputs: tuple[int, ...]) -> tuple[int, ...]:
        return inputs


def chain(parts: int) -> list[int]:
    """How many tensors each operator of `joined` reads."""
    found = []
    while parts > 1:
        found.append(min(parts, _MOST))
        parts -= found[-1] - 1
    return found


def joined(file: FileWriter, name: str, parts: list[WrittenTensor], axis: int = 3) -> WrittenTensor:
    """CONCATENATION, or a chain of them, each of as many tensors as XNNPACK joins.

    One tensor is what it is, without an operator.
    """
    options, number = schema.ConcatenationOptionsT(), 0
    options.axis = axis
    while len(parts) > 1:
        first, rest = parts[:_MOST], parts[_MOST:]
        shape = list(first[0].shape)
        shape[axis] = sum(part.shape[axis] for part in first)
        number += 1
        target = file.tensor(f"{name}/{number}" if rest else name, tuple(shape), first[0].grid)
        indices = [part.index for part in first]
        file.graph.operator(Op.CONCATENATION, indices, [target.index], options, version=2)
        parts = [target, *rest]
    return parts[0]
