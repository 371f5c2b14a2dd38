"""The emulated process of `arm64_instructions`: says where an inference begins and ends.

python -m metamix_tflite.devices.count_process MODEL OUTPUT KERNELS

Its standard error is qemu's log, too: between the marks are the blocks that the inference ran.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from metamix_tflite.run.latency import random_inputs
from metamix_tflite.run.runner import Runner

BEGIN, END = "metamix: begin", "metamix: end"


def library_ranges() -> list[tuple[int, int]]:
    """First address of LiteRT's machine code and the one behind its last, of each library."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, rights, *_ = line.split()
        if "x" in rights and "/ai_edge_litert/" in line:
            first, _, last = addresses.partition("-")
            found.append((int(first, 16), int(last, 16)))
    return found


def main(arguments: list[str]) -> None:
    """Runs the file that the arguments name; the second inference is between the marks."""
    model, output, kernels = arguments
    runner = Runner(Path(model).read_bytes(), kernels=kernels)
    runner.write(*random_inputs(runner.input_details))
    runner.run()
    os.write(2, f"\n{BEGIN}\n".encode())  # LiteRT leaves a line of its own open
    runner.run()
    os.write(2, f"\n{END}\n".encode())
    found = {"ranges": library_ranges(), "delegated": runner.delegated}
    Path(output).write_text(json.dumps(found))
    os._exit(0)  # what follows would only lengthen the log


if __name__ == "__main__":
    main(sys.argv[1:])
