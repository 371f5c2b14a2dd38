"""Runs a file in LiteRT for Microcontrollers, in a process of its own.

    python -P micro_process.py FOLDER ARENA_BYTES

FOLDER has model.tflite and inputs.npz, whose arrays hold one input each of all rounds, shape
(rounds, ...), in the model's order. It gets outputs.npz likewise.

The runtime says on stderr what it refuses, and how much of its arena it used; a process of its own
is the only way to read that, and to outlive a crash of its kernels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from tflite_micro import runtime  # pyright: ignore[reportMissingImports]

REFUSED = 3  # exit status


def main(folder: Path, arena: int) -> int:
    """The exit status: 0 or REFUSED."""
    flat = (folder / "model.tflite").read_bytes()
    inputs = list(np.load(folder / "inputs.npz").values())
    results = range(schema.Model.GetRootAs(flat, 0).Subgraphs(0).OutputsLength())
    rounds = []
    try:
        interpreter = runtime.Interpreter.from_bytes(flat, arena_size=arena)
        for arrays in zip(*inputs, strict=True):
            for index, array in enumerate(arrays):
                interpreter.set_input(array, index)
            interpreter.invoke()
            rounds.append([np.array(interpreter.get_output(index)) for index in results])
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return REFUSED
    np.savez(folder / "outputs.npz", *map(np.stack, zip(*rounds, strict=True)))
    interpreter.print_allocations()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
