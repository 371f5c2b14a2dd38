"""Names of a model's inputs and outputs, as the exported file's signature has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
from keras import tree

from keras_metamix.graph.names import Names


def named_inputs(model: keras.Model) -> list[tuple[str, Any]]:
    """Name and tensor of each input of a functional model, in order.

    An input in a dictionary is named by its key, any other as its `keras.Input`.
    """
    return _named(model.input, (tensor.name for tensor in model.inputs))


def named_outputs(model: keras.Model) -> list[tuple[str, Any]]:
    """Name and tensor of each output of a functional model, in order.

    An output in a dictionary is named by its key, any other as Keras calls it (`output_names`), by
    its layer. A repeated name is numbered.
    """
    return _named(model.output, model.output_names)


def _named(structure: Any, names: Iterable[str]) -> list[tuple[str, Any]]:
    leaves = tree.flatten_with_path(structure)
    keys = [path[-1] if path else None for path, _ in leaves]
    wanted = [k if isinstance(k, str) else n for k, n in zip(keys, names, strict=True)]
    taken, seen = Names(wanted), set[str]()
    found = []
    for name, (_, tensor) in zip(wanted, leaves, strict=True):
        found.append((taken.new(name) if name in seen else name, tensor))
        seen.add(name)
    return found
