"""Runs a .tflite with LiteRT's kernels and says whether XNNPACK ran all of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from metamix_tflite.read.files import only_signature, read_ends
from metamix_tflite.run.batches import of_batch

# XNNPACK with the builtin kernels for what it does not take; these alone; the plain reference ones.
KERNELS = {
    "xnnpack": OpResolverType.BUILTIN,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}


def check_kernels(kernels: str) -> None:
    """Raises ValueError for an unknown kernel set."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels: expected one of {[*KERNELS]}, found {kernels!r}.")


def require_count(name: str, least: int, found: Any) -> None:
    """Raises ValueError unless `found` is an integer of at least `least`."""
    if isinstance(found, bool) or not isinstance(found, int | np.integer) or found < least:
        raise ValueError(f"{name}: expected at least {least}, found {found!r}.")


@contextlib.contextmanager
def accepted_by_litert(flat: bytes) -> Iterator[None]:
    """Names what LiteRT's own errors leave out: that it is the file which it refuses."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"Expected a .tflite that LiteRT runs, found {len(flat)} bytes that it refuses: "
            f"{reason}"
        ) from error


class Runner:
    """An interpreter, by default with XNNPACK.

    Args:
      flat: bytes of a .tflite.
      threads: CPU threads.
      batch_size: images in one invocation.
      signature: which of the file's, where there are several.
      kernels: one of `KERNELS`.

    Raises:
      TypeError, ValueError: not the bytes of a .tflite that LiteRT runs, no such signature in it,
        unknown kernels, or a count below 1.

    Attributes:
      ends: names of inputs and outputs, and the structure in which they are given.
      delegated: whether one XNNPACK partition holds the whole graph of the signature, but for the
        QUANTIZE from and to bytes, which turns a bit of each.
      partitions: number of XNNPACK partitions.
    """

    def __init__(
        self,
        flat: bytes,
        threads: int = 1,
        batch_size: int = 1,
        signature: str | None = None,
        kernels: str = "xnnpack",
    ):
        require_count("threads", 1, threads)
        require_count("batch_size", 1, batch_size)
        check_kernels(kernels)
        self.ends = read_ends(flat, signature)
        content, resolver = only_signature(flat, signature), KERNELS[kernels]
        if batch_size != 1:
            content = of_batch(content, batch_size)
        with accepted_by_litert(flat):
            self._interpreter = Interpreter(
                model_content=content, num_threads=threads, experimental_op_resolver_type=resolver
            )
            if batch_size != 1:
                for detail in self._interpreter.get_input_details():
                    shape = [batch_size, *detail["shape"][1:]]
                    self._interpreter.resize_tensor_input(detail["index"], shape)
            self._interpreter.allocate_tensors()
        self.batch_size = batch_size
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()
        operators = self._interpreter._get_ops_details()
        delegates = [op for op in operators if op["op_name"] == "DELEGATE"]
        self.partitions = len(delegates)
        # An output of bytes is behind the delegate's.
        before = {
            int(op["outputs"][0]): int(op["inputs"][0])
            for op in operators
            if op["op_name"] == "QUANTIZE"
        }
        ends = {
            before.get(d["index"], d["index"]) if d["dtype"] == np.uint8 else d["index"]
            for d in self._outputs
        }
        self.delegated = len(delegates) == 1 and ends <= {int(i) for i in delegates[0]["outputs"]}

    @property
    def input_details(self) -> list[dict[str, Any]]:
        """LiteRT's description of the inputs."""
        return self._inputs

    def invoke(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """One invocation on arrays of `batch_size` images, one for each input.

        Raises:
          ValueError: another number of arrays, or arrays of another shape or type.
        """
        self.write(*arrays)
        self.run()
        return [self._interpreter.get_tensor(d["index"]) for d in self._outputs]

    def write(self, *arrays: np.ndarray) -> None:
        """Copies the inputs in, see `invoke`."""
        if len(arrays) != len(self._inputs):
            raise ValueError(
                f"expected an array for each of {len(self._inputs)} inputs, found {len(arrays)}."
            )
        for detail, array in zip(self._inputs, arrays, strict=True):
            self._interpreter.set_tensor(detail["index"], array)

    def run(self) -> None:
        """Computes the outputs of what `write` copied in, and copies nothing."""
        self._interpreter.invoke()

    def predict(self, images: Any) -> Any:
        """The outputs for any number of images.

        Args:
          images: an array of shape (images, ...); for several inputs a list or tuple of arrays, or
            a dictionary by the names of the inputs.

        Returns:
          An array of shape (images, ...); for several outputs one for each, in the structure that
          the model has: a list, or a dictionary.

        Raises:
          TypeError: no arrays of images.
          ValueError: no image, not an array for each input, or images of another shape or type.
        """
        return self.ends.structured(self.flat_outputs(images))

    def flat_outputs(self, images: Any) -> list[np.ndarray]:
        """As `predict`, in a list in the outputs' order."""
        shapes = [tuple(detail["shape"][1:]) for detail in self._inputs]
        arrays, batches = self.ends.arrays(images, shapes), []
        count = len(arrays[0])
        for start in range(0, count, self.batch_size):
            batch = [_filled(a[start : start + self.batch_size], self.batch_size) for a in arrays]
            batches.append(self.invoke(*batch))
        return [np.concatenate(parts)[:count] for parts in zip(*batches, strict=True)]


def _filled(batch: np.ndarray, size: int) -> np.ndarray:
    """A batch with zeros behind it."""
    missing = size - len(batch)
    if missing:
        padding = np.zeros((missing, *batch.shape[1:]), batch.dtype)
        batch = np.concatenate([batch, padding])
    return np.ascontiguousarray(batch)
