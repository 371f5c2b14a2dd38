"""Deployment: exact .tflite files from trained models, and what they do when they run.

Running, verifying and benchmarking files needs ai-edge-litert and NumPy alone; `convert` and
`parity` import Keras. A name's module is imported when the name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metamix_tflite.file_graph import VerificationError
    from metamix_tflite.run.latency import BenchmarkReport, benchmark
    from metamix_tflite.run.operating_points import OperatingPointRunner
    from metamix_tflite.run.runner import Runner
    from metamix_tflite.verification.parity import ParityReport, parity
    from metamix_tflite.verification.replay import ReplayReport, replay
    from metamix_tflite.verification.verify import verify
    from metamix_tflite.write.convert import convert

_MODULES = {
    "BenchmarkReport": "run.latency",
    "OperatingPointRunner": "run.operating_points",
    "ParityReport": "verification.parity",
    "ReplayReport": "verification.replay",
    "Runner": "run.runner",
    "VerificationError": "file_graph",
    "benchmark": "run.latency",
    "convert": "write.convert",
    "parity": "verification.parity",
    "replay": "verification.replay",
    "verify": "verification.verify",
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
