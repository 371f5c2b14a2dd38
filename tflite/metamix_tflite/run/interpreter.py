"""Signatures in LiteRT's interpreter, its older way to run a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from metamix_tflite.read.interface import Interface

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


class Interpreted:
    """A file of one signature.

    Attributes:
      inputs, outputs: LiteRT's description of each, in the model's order.
      delegated, partitions: see `metamix_tflite.run.runner.Runner`.
    """

    def __init__(self, content: bytes, threads: int, batch_size: int, kernels: str):
        with accepted_by_litert(content):
            interpreter = Interpreter(
                model_content=content,
                num_threads=threads,
                experimental_op_resolver_type=KERNELS[kernels],
            )
            if batch_size != 1:
                for detail in interpreter.get_input_details():
                    shape = [batch_size, *detail["shape"][1:]]
                    interpreter.resize_tensor_input(detail["index"], shape)
            interpreter.allocate_tensors()
        self._interpreter = interpreter
        self.inputs = interpreter.get_input_details()
        self.outputs = interpreter.get_output_details()
        operators = interpreter._get_ops_details()
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
            for d in self.outputs
        }
        self.delegated = len(delegates) == 1 and ends <= {int(i) for i in delegates[0]["outputs"]}

    def write(self, arrays: Sequence[np.ndarray]) -> None:
        """Copies the inputs in."""
        for detail, array in zip(self.inputs, arrays, strict=True):
            self._interpreter.set_tensor(detail["index"], array)

    def run(self) -> None:
        """Computes the outputs, and copies nothing."""
        self._interpreter.invoke()

    def read(self) -> list[np.ndarray]:
        """Copies of the outputs."""
        return [self._interpreter.get_tensor(d["index"]) for d in self.outputs]


class InterpretedSignature:
    """One of the signatures of a file, which share an interpreter.

    Attributes:
      inputs: LiteRT's description of each, in the model's order.
    """

    def __init__(self, interpreter: Interpreter, name: str, interface: Interface):
        self._run, self._interface = interpreter.get_signature_runner(name), interface
        details = self._run.get_input_details()
        self.inputs: list[dict[str, Any]] = [details[name] for name in interface.inputs]

    def invoke(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs for arrays of images."""
        found = self._run(**dict(zip(self._interface.inputs, arrays, strict=True)))
        return [found[output] for output in self._interface.outputs]


def interpreted_signatures(
    flat: bytes, interfaces: Mapping[str, Interface], threads: int
) -> dict[str, InterpretedSignature]:
    """Signatures of a file, by name, in one interpreter.

    Args:
      flat: bytes of a .tflite.
      interfaces: of each of the signatures.
      threads: CPU threads.
    """
    with accepted_by_litert(flat):
        interpreter = Interpreter(model_content=bytes(flat), num_threads=threads)
        interpreter.allocate_tensors()  # XNNPACK packs the weights of all signatures
    return {
        name: InterpretedSignature(interpreter, name, each) for name, each in interfaces.items()
    }
