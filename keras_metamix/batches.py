"""Batches of whatever `fit` takes as training data, looked at before it trains on them."""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_metamix.checks import require_whole

_KEPT = 8  # batches of a generator that are kept once they were trained on


class Replay:
    """A generator whose next batches can be looked at before they are trained on; none is lost.

    Args:
      batches: the generator.
    """

    def __init__(self, batches: Iterable[Any]):
        self._rest = iter(batches)
        self._ahead: collections.deque[Any] = collections.deque()
        self._behind: collections.deque[Any] = collections.deque(maxlen=_KEPT)
        self._lock = threading.Lock()  # Keras reads from a thread of its own

    def peek(self, count: int) -> Iterator[Any]:
        """Up to `count` of the next batches; where fewer are left, the last ones again."""
        found = 0
        for found in range(1, count + 1):
            with self._lock:
                missing = found - len(self._ahead)
                self._ahead.extend(itertools.islice(self._rest, max(missing, 0)))
                if found > len(self._ahead):
                    found -= 1
                    break
                batch = self._ahead[found - 1]
            yield batch
        if found < count:
            yield from list(self._behind)[found - count :]

    def generator(self) -> Generator[Any, None, None]:
        """All batches, in their order, for `fit` to train on."""
        while True:
            with self._lock:
                if not self._ahead:
                    self._ahead.extend(itertools.islice(self._rest, 1))
                if not self._ahead:
                    return
                batch = self._ahead.popleft()
                self._behind.append(batch)
            yield batch


def readable(data: Any) -> Any:
    """A generator or another iterator as a Replay, which can be read twice; all else as it is."""
    return Replay(data) if isinstance(data, Iterator) else data


def is_arrays(data: Any) -> bool:
    """Whether data are arrays, or a structure of them, and no data set."""
    leaves = keras.tree.flatten(data)
    return bool(leaves) and all(hasattr(leaf, "shape") for leaf in leaves)


def is_data_set(data: Any) -> bool:
    """Whether data give batches, and are read from the start each time."""
    if isinstance(data, (Replay, keras.utils.PyDataset)) or callable(getattr(data, "take", None)):
        return not is_arrays(data)
    if isinstance(data, (str, bytes, dict, list, tuple, set)) or hasattr(data, "element_spec"):
        return False  # a structure, or batches of several devices
    return not is_arrays(data) and hasattr(data, "__iter__") and iter(data) is not data


def first_batches(data: Any, count: int, batch_size: int | None = None) -> Iterator[Any]:
    """Up to `count` batches of arrays (a structure of them) or of what `fit` takes as `x`.

    Args:
      data: arrays, a tf.data.Dataset, a keras.utils.PyDataset, a Replay, or anything else that
        gives batches and can be read twice, such as PyTorch's DataLoader.
      count: at most so many.
      batch_size: of arrays; default 32.

    Raises:
      TypeError: something else, for example a generator.
    """
    if isinstance(data, Replay):
        yield from data.peek(count)
    elif isinstance(data, keras.utils.PyDataset):
        for index in range(min(count, data.num_batches or count)):
            yield data[index]
    elif is_arrays(data):
        if batch_size is not None:
            require_whole("batch_size", batch_size, 1)
        size = batch_size or 32
        total = (*keras.tree.flatten(data)[0].shape, 0)[0]
        for start in range(0, min(count * size, total), size):
            yield keras.tree.map_structure(lambda a, s=start: a[s : s + size], data)
    elif callable(getattr(data, "take", None)):
        yield from data.take(count)
    elif is_data_set(data):
        yield from itertools.islice(iter(data), count)
    else:
        raise TypeError(
            "Step sizes are set from the training data, which have to be arrays or batches that "
            "can be read twice: a tf.data.Dataset, a keras.utils.PyDataset or a DataLoader; found "
            f"{type(data).__name__}."
        )


def image_batches(data: Any, count: int, batch_size: int | None = None) -> Iterator[Any]:
    """The inputs of `first_batches`, where `data` is the `x` of `fit`."""
    labelled = not is_arrays(data)
    for batch in first_batches(data, count, batch_size):
        found = keras.utils.unpack_x_y_sample_weight(batch)[0] if labelled else batch
        yield keras.tree.map_structure(_array, found)


def merged(batches: Iterable[Any], least: int) -> Iterator[Any]:
    """Batches of at least `least` images, made of smaller ones that follow each other.

    A batch that is large enough stays as it is, and so does the only one.
    """
    held: list[Any] = []
    for batch in batches:
        held.append(batch)
        if sum(map(count_images, held)) >= least:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def informative(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches without those whose images are of one colour, such as a black first one.

    Where all are, the first one stays.
    """
    blank, found = None, False
    for batch in batches:
        if all(map(_is_blank, keras.tree.flatten(batch))):
            blank = batch if blank is None else blank
        else:
            found = True
            yield batch
    if not found and blank is not None:
        yield blank


def count_images(batch: Any) -> int:
    """How many images a batch has."""
    return (*getattr(keras.tree.flatten(batch)[0], "shape", ()), 0)[0]


def _array(values: Any) -> Any:
    """What Keras' layers take: a table of pandas or a tensor of PyTorch as a NumPy array."""
    foreign = type(values).__module__.partition(".")[0] in ("pandas", "torch")
    return np.asarray(values) if foreign else values


def _joined(batches: list[Any]) -> Any:
    if len(batches) == 1:
        return batches[0]
    return keras.tree.map_structure(
        lambda *arrays: np.concatenate([keras.ops.convert_to_numpy(a) for a in arrays]), *batches
    )


def _is_blank(images: Any) -> bool:
    """Whether every value is that of its channel everywhere; of vectors, whether all are equal."""
    values = keras.ops.convert_to_numpy(images)
    if not values.size or values.dtype.kind not in "biuf":
        return False
    channels = values.shape[-1] if values.ndim > 2 else 1
    values = values.reshape(-1, channels)
    return bool(np.all(values == values[0]))
