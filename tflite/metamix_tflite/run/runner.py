"""Runs a .tflite with LiteRT's kernels and says whether XNNPACK runs all of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from metamix_tflite.read.files import only_signature, read_interface
from metamix_tflite.read.interface import Interface
from metamix_tflite.run.batches import of_batch
from metamix_tflite.run.interpreter import Interpreted, check_kernels
from metamix_tflite.run.weight_cache import WeightCache

ENGINES = ("interpreter", "compiled")


def require_count(name: str, least: int, found: Any) -> None:
    """Raises ValueError unless `found` is an integer of at least `least`."""
    if isinstance(found, bool) or not isinstance(found, int | np.integer) or found < least:
        raise ValueError(f"{name}: expected at least {least}, found {found!r}.")


def check_engine(engine: str, weight_cache: WeightCache, kernels: str = "xnnpack") -> None:
    """Raises ValueError for an unknown engine or kernel set, or a cache that it does not take."""
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {[*ENGINES]}, found {engine!r}.")
    check_kernels(kernels)
    if engine == "compiled" and kernels == "reference":
        raise ValueError(
            "kernels: expected 'xnnpack' or 'builtin' beside engine='compiled', found "
            "'reference': a CompiledModel that is asked for them runs the builtin ones."
        )
    if weight_cache is not None and engine != "compiled":
        raise ValueError(f"weight_cache: expected engine='compiled' beside it, found {engine!r}.")
    if weight_cache is not None and kernels != "xnnpack":
        raise ValueError(f"weight_cache: expected kernels='xnnpack' beside it, found {kernels!r}.")


class Runner:
    """A file of one signature, or one signature of a file, ready to run.

    Args:
      flat: bytes of a .tflite.
      threads: CPU threads.
      batch_size: images in one invocation.
      signature: which of the file's, where there are several.
      kernels: one of `metamix_tflite.run.interpreter.KERNELS`; "reference" with "interpreter".
      engine: LiteRT's "interpreter", or "compiled" for its newer CompiledModel.
      weight_cache: with "compiled", a folder for XNNPACK's packed weights: what one process has
        packed, the next ones map. A file in it is of these bytes, this LiteRT and this kind of CPU.

    Raises:
      TypeError, ValueError: not the bytes of a .tflite that LiteRT runs, no such signature in it,
        unknown kernels or engine, a cache beside others, or a count below 1.
      OSError: `weight_cache` is no folder, or cannot be written.

    Attributes:
      interface: names of inputs and outputs, and the structure in which they are given.
      delegated: whether one XNNPACK partition holds the whole graph of the signature, but for the
        QUANTIZE from and to bytes, which turns a bit of each; with "compiled", of which LiteRT
        tells less, without this exception.
      partitions: number of XNNPACK partitions; None where "compiled" does not tell it: of a file
        that is not all XNNPACK's.
    """

    def __init__(
        self,
        flat: bytes,
        threads: int = 1,
        batch_size: int = 1,
        signature: str | None = None,
        kernels: str = "xnnpack",
        engine: str = "interpreter",
        weight_cache: WeightCache = None,
    ):
        require_count("threads", 1, threads)
        require_count("batch_size", 1, batch_size)
        check_engine(engine, weight_cache, kernels)
        self.interface: Interface = read_interface(flat, signature)
        content = only_signature(flat, signature)
        if batch_size != 1:
            content = of_batch(content, batch_size)
        if engine == "interpreter":
            self._loaded = Interpreted(content, threads, batch_size, kernels)
        else:
            # Here: other versions of LiteRT, which files are replayed with, have none.
            from metamix_tflite.run.compiled import Compiled, compiled_model

            model = compiled_model(content, threads, kernels, weight_cache)
            self._loaded = Compiled(model, None, self.interface, batch_size)
        self.batch_size = batch_size
        self.partitions, self.delegated = self._loaded.partitions, self._loaded.delegated

    @property
    def input_details(self) -> list[dict[str, Any]]:
        """LiteRT's description of the inputs."""
        return self._loaded.inputs

    def invoke(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """One invocation on arrays of `batch_size` images, one for each input.

        Raises:
          ValueError: another number of arrays, or arrays of another shape or type.
        """
        self.write(*arrays)
        self.run()
        return self._loaded.read()

    def write(self, *arrays: np.ndarray) -> None:
        """Copies the inputs in, see `invoke`."""
        if len(arrays) != len(self.input_details):
            raise ValueError(
                f"expected an array for each of {len(self.input_details)} inputs, found "
                f"{len(arrays)}."
            )
        self._loaded.write(arrays)

    def run(self) -> None:
        """Computes the outputs of what `write` copied in, and copies nothing."""
        self._loaded.run()

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
        return self.interface.structured(self.flat_outputs(images))

    def flat_outputs(self, images: Any) -> list[np.ndarray]:
        """As `predict`, in a list in the outputs' order."""
        arrays, batches = self.interface.images(images, self.input_details), []
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
