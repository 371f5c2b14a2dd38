"""Deployment: exact .tflite files from trained models, and what they do when they run.

Running, verifying and benchmarking files needs ai-edge-litert and NumPy alone; `convert` and
`parity` import Keras. A name's module is imported when the name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metamix_tflite.comparison import ParityReport, parity
    from metamix_tflite.file_graph import VerificationError
    from metamix_tflite.golden_replay import ReplayReport, replay
    from metamix_tflite.latency import BenchmarkReport, benchmark
    from metamix_tflite.operating_points import OperatingPointRunner
    from metamix_tflite.run import Runner
    from metamix_tflite.verification import verify
    from metamix_tflite.writer import convert

_MODULES = {
    "BenchmarkReport": "latency",
    "OperatingPointRunner": "operating_points",
    "ParityReport": "comparison",
    "ReplayReport": "golden_replay",
    "Runner": "run",
    "VerificationError": "file_graph",
    "benchmark": "latency",
    "convert": "writer",
    "parity": "comparison",
    "replay": "golden_replay",
    "verify": "verification",
}

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
    if name not in _MODULES:
        raise AttributeError(f"module 'metamix_tflite' has no attribute {name!r}")
    return getattr(importlib.import_module(f"metamix_tflite.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
