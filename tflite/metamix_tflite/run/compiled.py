"""Signatures in LiteRT's CompiledModel, its newer way to run a file."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.cpu_kernel_mode import CpuKernelMode
from ai_edge_litert.environment import Environment, EnvironmentOptions
from ai_edge_litert.options import CpuOptions, Options

from metamix_tflite.read.interface import Interface
from metamix_tflite.run.interpreter import accepted_by_litert
from metamix_tflite.run.weight_cache import WeightCache, packed_by

# Not REFERENCE, by which LiteRT 2.3 runs the builtin kernels.
_MODES = {"xnnpack": CpuKernelMode.DELEGATE, "builtin": CpuKernelMode.BUILTIN}


def compiled_model(
    content: bytes, threads: int, kernels: str = "xnnpack", weight_cache: WeightCache = None
) -> CompiledModel:
    """A file in LiteRT's CompiledModel, on the CPU.

    Args:
      content: bytes of a .tflite.
      threads: CPU threads.
      kernels: "xnnpack" or "builtin".
      weight_cache: see `metamix_tflite.run.weight_cache`.
    """
    with packed_by(weight_cache, content) as cache, accepted_by_litert(content):
        options = CpuOptions(
            num_threads=threads, kernel_mode=_MODES[kernels], xnnpack_weight_cache_path=cache
        )
        return CompiledModel.from_buffer(
            content, environment=start_runtime(), options=Options(cpu_options=options)
        )


def compiled_signatures(
    flat: bytes, interfaces: Mapping[str, Interface], threads: int, weight_cache: WeightCache
) -> dict[str, Compiled]:
    """Signatures of a file, by name, in one CompiledModel; see `interpreted_signatures`."""
    model = compiled_model(bytes(flat), threads, weight_cache=weight_cache)
    return {name: Compiled(model, name, each) for name, each in interfaces.items()}


class Compiled:
    """A signature of a file.

    Attributes:
      inputs, outputs: name, shape and type of each, in the model's order.
      delegated, partitions: see `metamix_tflite.run.runner.Runner`.
    """

    def __init__(
        self, model: CompiledModel, name: str | None, interface: Interface, batch_size: int = 1
    ):
        signatures = model.get_signature_list()
        self._model, self._name = model, next(iter(signatures)) if name is None else name
        known = signatures[self._name]
        # LiteRT has the tensors' names where a file has no signature, in the model's order.
        self._inputs = _in_order(interface.inputs, known["inputs"])
        self._outputs = _in_order(interface.outputs, known["outputs"])
        self.inputs = self._details(model.get_input_tensor_details, self._inputs)
        self._resize(batch_size)
        self.delegated = model.is_fully_accelerated()
        self.partitions = 1 if self.delegated else None

    def _resize(self, batch_size: int) -> None:
        """Makes it one for batches of another size."""
        model, name = self._model, self._name
        for detail in self.inputs:
            if detail["shape"][0] != batch_size:
                shape = [batch_size, *detail["shape"][1:].tolist()]
                # Not strict: the file's own batch is one, not any.
                model.resize_input_tensor_by_name(name, detail["name"], shape, strict=False)
        self.batch_size = batch_size
        self.inputs = self._details(model.get_input_tensor_details, self._inputs)
        self.outputs = self._details(model.get_output_tensor_details, self._outputs)
        self._in = {n: model.create_input_buffer_by_name(name, n) for n in self._inputs}
        self._out = {n: model.create_output_buffer_by_name(name, n) for n in self._outputs}

    def invoke(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs for arrays of images, of as many as there are."""
        count = len(arrays[0])
        if count != self.batch_size:
            self._resize(count)
        self.write(arrays)
        self.run()
        return self.read()

    def write(self, arrays: Sequence[np.ndarray]) -> None:
        """Copies the inputs in.

        Raises:
          ValueError: an array of another shape or type than its input.
        """
        for detail, array in zip(self.inputs, arrays, strict=True):
            _require_fitting(detail, array)
            self._in[detail["name"]].write(array)

    def run(self) -> None:
        """Computes the outputs, and copies nothing."""
        self._model.run_by_name(self._name, self._in, self._out)

    def read(self) -> list[np.ndarray]:
        """Copies of the outputs."""
        found = []
        for detail in self.outputs:
            shape = detail["shape"]
            values = self._out[detail["name"]].read(int(shape.prod()), detail["dtype"])
            found.append(values.reshape(shape))
        return found

    def _details(
        self, details: Callable[[str], dict[str, Any]], names: Collection[str]
    ) -> list[dict[str, Any]]:
        """As the interpreter gives them, in the model's order."""
        found = details(self._name)
        return [
            {
                "name": name,
                "shape": np.array(found[name]["shape"], np.int32),
                "dtype": np.dtype(found[name]["dtype"]).type,
            }
            for name in names
        ]


def _in_order(ours: Collection[str], known: list[str]) -> list[str]:
    """LiteRT's names of a signature's inputs or outputs, in the model's order."""
    return [*ours] if sorted(set(ours)) == sorted(known) else known


def _require_fitting(detail: dict[str, Any], array: np.ndarray) -> None:
    """Raises ValueError for an input of another shape or type.

    A CompiledModel's buffer takes any bytes that are not too many, whatever their type.
    """
    found = np.asarray(array)
    expected = np.dtype(detail["dtype"]), tuple(detail["shape"].tolist())
    if (found.dtype, found.shape) != expected:
        raise ValueError(
            f"input {detail['name']!r}: expected {expected[0]} of shape {expected[1]}, found "
            f"{found.dtype} of shape {found.shape}."
        )


@functools.cache
def start_runtime() -> Environment:
    """One environment for all files of this process: each would load LiteRT's accelerators anew."""
    folder = os.path.dirname(inspect.getfile(CompiledModel))
    return Environment.create(options=EnvironmentOptions(runtime_path=folder))
