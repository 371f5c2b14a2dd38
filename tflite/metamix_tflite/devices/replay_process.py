"""A process that replays one file and writes JSON: what a device runs that is no Python of ours.

python -m metamix_tflite.devices.replay_process MODEL OUTPUT KERNELS
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from pathlib import Path

from metamix_tflite.verification.replay import replay


def main(arguments: list[str]) -> None:
    """Replays the file that the arguments name."""
    model, output, kernels = arguments
    ((_, report),) = replay(Path(model).read_bytes(), kernels).items()
    found = {"machine": platform.machine(), **dataclasses.asdict(report)}
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
