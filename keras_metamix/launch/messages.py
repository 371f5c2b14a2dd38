"""How launchers talk: one line for an epoch, one line for an error."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from absl import app, flags, logging

USER_ERRORS = (ValueError, TypeError, OSError)


def run_main(
    main: Callable[[Any], None],
    parse_flags: Callable[[list[str]], Any] = app.parse_flags_with_usage,
) -> None:
    """Runs an absl main on what `parse_flags` makes of the command line; see `exit_status`."""

    def guarded(arguments: Any) -> int:
        if not flags.FLAGS["verbosity"].present:  # absl has set it to INFO, default or not
            logging.set_verbosity(logging.WARNING)  # libraries tell of each file that they open
        return exit_status(main, arguments)

    app.run(guarded, flags_parser=parse_flags)


def exit_status(main: Callable[[Any], None], arguments: Any) -> int:
    """Runs a main; an error of the input becomes one line on stderr and status 1."""
    try:
        main(arguments)
    except USER_ERRORS as error:
        print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def command_line() -> str:
    """The command that is running, as it was typed."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def check_output(flag: str, path: Path) -> None:
    """Finds out before the work, not after it, that a file cannot be written.

    Raises:
      OSError: names the flag, what was expected and what was found.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{flag}: expected the name of a file, found the folder {path}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{flag}: expected a folder {path.parent}, found none.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{flag}: expected a folder to write to, found {path.parent}.")


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
        phase = getattr(self.model, "phase", getattr(self.model, "stage", "float"))
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
