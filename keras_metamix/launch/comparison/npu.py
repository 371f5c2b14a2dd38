"""The same files as an Ethos-U NPU would run them, by Vela's estimates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_metamix.cost import LatencyTable
from keras_metamix.launch.predictions import declared_bits
from keras_metamix.report.side_by_side import BASELINE
from metamix_tflite.devices import ethosu
from metamix_tflite.read.files import small_tensors


def npu_estimates(
    accelerator: str,
    files: Mapping[str, bytes],
    untrained: Mapping[str, bytes],
    table: LatencyTable | None,
) -> dict[str, Any]:
    """Cycles and stored bytes of the files that Vela takes, also over those of stock int8.

    Args:
      accelerator: see `ethosu.Options`.
      files: by name, the stock int8 file among them; files with INT4 tensors and those of which
        the NPU runs nothing are left out.
      untrained: of files of ours, one of the same bits with the float network's weights.
      table: what the run's search was priced by, for this accelerator; None: no predictions.

    Raises:
      DeviceUnavailable: Vela is not installed.
      ValueError: no such accelerator.
    """
    vela = ethosu.compiler(ethosu.Options(accelerator))
    compiled = {n: vela.compile(n, flat) for n, flat in files.items() if not small_tensors(flat)}
    base = compiled[BASELINE]
    rows = [
        {
            "name": name,
            "cycles": found.cycles,
            "stored_bytes": found.read_only_bytes,
            "cycles_ratio": found.cycles / base.cycles,
            "stored_ratio": found.read_only_bytes / base.read_only_bytes,
            "operators": len(found.operators),
            "on_npu": sum(not operator.refusal for operator in found.operators),
        }
        for name, found in compiled.items()
        if found.cycles
    ]
    predictions = []
    for name, flat in untrained.items():
        if table is None:
            break
        us, stored = table.predict_file(declared_bits(flat))
        before, after = vela.compile(name, flat), compiled[name]
        predictions.append(
            {
                "name": name,
                "cycles": [round(us * after.clock_hz / 1e6), before.cycles, after.cycles],
                "stored_bytes": [round(stored), before.read_only_bytes, after.read_only_bytes],
            }
        )
    return {
        "accelerator": accelerator,
        "compiler": f"Vela {vela.version}",
        "rows": rows,
        "predictions": predictions,
    }
