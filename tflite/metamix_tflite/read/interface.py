"""Inputs and outputs of a signature: their names, and the structure in which they are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interface:
    """What goes into a signature and what comes out of it.

    Attributes:
      inputs, outputs: names, in the model's order.
      structure: of the outputs: a number is an output's place among `outputs`, a list or a
        dictionary holds structures.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    structure: Any

    def arrays(self, images: Any, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Arrays of images in the order of the inputs.

        Args:
          images: an array; for several inputs a list or tuple of arrays in their order, or a
            dictionary by name. A nest of these is read as Keras does, dictionaries by sorted keys.
          shapes: of one image of each input.

        Raises:
          TypeError: something else than arrays.
          ValueError: not an array for each input, images of another shape, one image that is no
            batch, or different numbers of images, or none.
        """
        found = list(leaves(images))
        if not all(isinstance(array, np.ndarray) and array.ndim for array in found):
            raise TypeError(f"images: expected an array, found {_described(images)}.")
        by_name = isinstance(images, Mapping) and all(_is_array(a) for a in images.values())
        if by_name and set(images) == set(self.inputs):
            found = [images[name] for name in self.inputs]
        elif by_name or len(found) != len(self.inputs):
            given = [*images] if by_name else len(found)
            raise ValueError(
                f"images: expected an array for each of the inputs {[*self.inputs]}, found {given}."
            )
        for name, array, shape in zip(self.inputs, found, shapes, strict=True):
            _require_shape(name, array.shape, tuple(int(size) for size in shape))
        counts = [len(array) for array in found]
        if len(set(counts)) > 1:
            raise ValueError(f"images: expected as many for each input, found {counts}.")
        if not counts[0]:
            raise ValueError("images: expected at least one, found none.")
        return found

    def images(self, images: Any, inputs: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        """Arrays of images as LiteRT takes them: as `arrays`, in float32 where an input is.

        Args:
          images: see `arrays`.
          inputs: LiteRT's description of each.

        Raises:
          TypeError, ValueError: see `arrays`; NaN or Inf, which a file would clip without a word.
        """
        shapes = [tuple(detail["shape"][1:]) for detail in inputs]
        found = self.arrays(images, shapes)
        for place, (name, array) in enumerate(zip(self.inputs, found, strict=True)):
            if inputs[place]["dtype"] != np.float32 or array.dtype.kind != "f":
                continue
            if not np.all(np.isfinite(array)):
                raise ValueError(f"images: expected finite ones, found NaN or Inf for {name!r}.")
            found[place] = array.astype(np.float32, copy=False)
        return found

    def structured(self, outputs: Sequence[np.ndarray]) -> Any:
        """Outputs, in their order, in the structure that the model gives them in."""
        return _mapped(lambda place: outputs[place], self.structure)


def _require_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raises ValueError unless an array is a batch of images of a shape."""
    if found[1:] == wanted:
        return
    expected = f"({', '.join(map(str, ('images', *wanted)))})"
    remedy = ": one image is a batch of one, image[None]" if found == wanted else ""
    raise ValueError(
        f"images: expected the shape {expected} for input {name!r}, found {found}{remedy}."
    )


def check_structure(structure: Any, count: int) -> None:
    """Raises ValueError unless a structure holds each of `count` outputs once."""
    found = [leaf if type(leaf) is int else -1 for leaf in leaves(structure)]
    if sorted(found) != [*range(count)]:
        raise ValueError(f"its declaration is of outputs {found}, found {count}")


def default_structure(count: int) -> Any:
    """Of a file that declares none: an array, or a list of several."""
    return 0 if count == 1 else [*range(count)]


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _described(images: Any) -> str:
    """The type of something, and of a first part of it that is no array."""
    name = type(images).__name__
    other = next((leaf for leaf in leaves(images) if not _is_array(leaf)), images)
    return name if other is images else f"{name} of {type(other).__name__}"


def leaves(structure: Any) -> Iterator[Any]:
    """What lists, tuples and dictionaries hold, these by sorted keys."""
    if isinstance(structure, Mapping):
        structure = [structure[key] for key in sorted(structure)]
    if not isinstance(structure, list | tuple):
        yield structure
        return
    for part in structure:
        yield from leaves(part)


def _mapped(function: Callable[[int], Any], structure: Any) -> Any:
    if isinstance(structure, Mapping):
        return {key: _mapped(function, part) for key, part in structure.items()}
    if isinstance(structure, list | tuple):
        return [_mapped(function, part) for part in structure]
    return function(structure)
