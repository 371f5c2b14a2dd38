"""Deployment: exact .tflite files from trained models, and what they do when they run.

Running, verifying and benchmarking files needs ai-edge-litert and NumPy alone; `convert` and
`parity` import Keras when they are called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from metamix_tflite.latency import BenchmarkReport, benchmark
from metamix_tflite.operating_points import OperatingPointRunner
from metamix_tflite.replay import ReplayReport, replay
from metamix_tflite.run import Runner
from metamix_tflite.verification import VerificationError, verify

if TYPE_CHECKING:
    from metamix_tflite.comparison import ParityReport, parity
    from metamix_tflite.writer import convert

_NEEDS_KERAS = {"convert": "writer", "parity": "comparison", "ParityReport": "comparison"}

__all__ = [
    "BenchmarkReport",
    "OperatingPointRunner",
    "ParityReport",
    "ReplayReport",
    "Runner",
    "VerificationError",
    "benchmark",
    "convert",
    "parity",
    "replay",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_KERAS:
        raise AttributeError(f"module 'metamix_tflite' has no attribute {name!r}")
    return getattr(importlib.import_module(f"metamix_tflite.{_NEEDS_KERAS[name]}"), name)
