"""8-bit quantization-aware training by tensorflow-model-optimization, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from keras_metamix.checks import one_line

_MODULE = "keras_metamix.launch.comparison.tfmot_process"
_LONGEST = 300  # characters of an error


def qat_file(config: dict[str, Any], float_model: Path, epochs: int) -> tuple[bytes, np.ndarray]:
    """Trains a float model on with tfmot's fake quantization, and converts it.

    Args:
      config: of an experiment, as `complete` gives it: its data, batches, optimizer, learning rate
        with a cosine, and loss.
      float_model: a `.keras` file.
      epochs: of training.

    Returns:
      The .tflite, with float32 inputs and outputs, and the training graph's outputs for the test
      images.

    Raises:
      ModuleNotFoundError: tfmot or tf_keras is not installed.
      RuntimeError: tfmot cannot quantize or convert the network; says why.
    """
    for package in ("tensorflow_model_optimization", "tf_keras"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job = {"config": config, "float_model": str(float_model.resolve()), "epochs": epochs}
        (folder / "job.json").write_text(json.dumps(job))
        command = [sys.executable, "-m", _MODULE, str(folder)]
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
        if ended.returncode:
            lines = ended.stderr.strip().splitlines() or [f"status {ended.returncode}"]
            raise RuntimeError(one_line(lines[-1], _LONGEST))
        return (folder / "qat.tflite").read_bytes(), np.load(folder / "outputs.npy")
