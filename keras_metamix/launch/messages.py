"""How launchers talk: one line for an epoch, one line for an error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import keras
from absl import app

USER_ERRORS = (ValueError, TypeError, OSError)


def run_main(main: Callable[[list[str]], None]) -> None:
    """Runs an absl main; an error of the input ends it with one line and exit status 1."""

    def guarded(argv: list[str]) -> int:
        try:
            main(argv)
        except USER_ERRORS as error:
            print(f"{argv[0].rsplit('/', 1)[-1]}: {error}", file=sys.stderr)
            return 1
        return 0

    app.run(guarded)


class EpochLines(keras.callbacks.Callback):
    """Prints one line an epoch: phase, loss, accuracy, BOPs against the budget, time left.

    Args:
      title: what is trained.
      target_bops: the budget; None where there is none.

    Attributes:
      records: the lines as dictionaries, for `metrics.json`.
    """

    def __init__(self, title: str, target_bops: float | None = None):
        super().__init__()
        self.title, self.target_bops = title, target_bops
        self.records: list[dict[str, Any]] = []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        steps = (self.params or {}).get("steps")
        if sys.stdout.isatty() and steps:
            loss = (logs or {}).get("loss", float("nan"))
            print(f"  step {batch + 1}/{steps}  loss {loss:.4f}", end="\r", flush=True)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        logs = logs or {}
        seconds = time.perf_counter() - self._started
        phase = getattr(self.model, "phase", "float")
        record = {
            "epoch": epoch,
            "phase": phase,
            "loss": float(logs["loss"]),
            "accuracy": float(logs["accuracy"]),
            "val_loss": float(logs["val_loss"]),
            "val_accuracy": float(logs["val_accuracy"]),
            "bops": int(logs["bops"]) if "bops" in logs else None,
            "seconds": seconds,
        }
        self.records.append(record)
        total = (self.params or {}).get("epochs", 0)
        budget = ""
        if record["bops"] is not None and self.target_bops:
            budget = f"  BOPs {record['bops'] / 1e6:.2f} M of {self.target_bops / 1e6:.2f} M"
        print(
            f"  {self.title}  {phase:<15} epoch {epoch + 1}/{total}  loss {record['loss']:.4f}"
            f"  accuracy {record['accuracy']:.4f}  val {record['val_accuracy']:.4f}{budget}"
            f"  {seconds:.1f} s",
            flush=True,
        )
