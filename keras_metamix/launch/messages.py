"""How launchers talk: one line for an epoch, one line for an error."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from absl import app, flags, logging

from keras_metamix.checks import one_line
from keras_metamix.cost import Budget
from keras_metamix.launch.tasks import ACCURACY, Metric
from keras_metamix.quantized_model import QuantizedModel
from metamix_tflite.verification.main import error_text

_LONGEST = 500  # characters of an error
_LOST = (
    "another worker has stopped, and so does this one: start all of them again with the same "
    "--workdir, and they go on from the last checkpoint."
)
_COSTS = ("bops", "latency_us", "size_bytes", "price")  # what a callback logs of the bits
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
        return 0
    except tf.errors.OpError as error:
        if "CoordinationServiceError" not in str(error) and "aborted by" not in str(error):
            raise
        reason = _LOST
    except USER_ERRORS as error:
        reason = one_line(error_text(error), _LONGEST)
    print(f"{Path(sys.argv[0]).name}: {reason}", file=sys.stderr)
    return 1


def command_line() -> str:
    """The command that is running, as it was typed."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def check_output(flag: str, path: Path, suffix: str = "") -> None:
    """Finds out before the work, not after it, that a file cannot be written.

    Raises:
      OSError, ValueError: names the flag, what was expected and what was found.
    """
    if suffix and path.suffix != suffix:
        raise ValueError(f"{flag}: expected a name that ends in {suffix}, found {str(path)!r}.")
    if path.is_dir():
        raise IsADirectoryError(f"{flag}: expected the name of a file, found the folder {path}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{flag}: expected a folder {path.parent}, found none.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{flag}: expected a folder to write to, found {path.parent}.")


def phase_of(model: Any) -> str:
    """The phase, or stage, that a model is in."""
    progress = model.progress if isinstance(model, QuantizedModel) else None
    return progress.read() if progress else "float"


class EpochLines(keras.callbacks.Callback):
    """Prints one line an epoch: phase, loss, score, cost against the budget, time left.

    Args:
      title: what is trained.
      phases: epochs of each phase, in their order.
      budgets: of the search, with limits.
      prints: whether this process prints.
      metric: whose values are the scores.

    Attributes:
      records: the lines, as `metrics.json` has them (`report.results.Epoch`).
    """

    def __init__(
        self,
        title: str,
        phases: Sequence[int] = (),
        budgets: Sequence[Budget] = (),
        prints: bool = True,
        metric: Metric = ACCURACY,
    ):
        super().__init__()
        self.title = title
        self.prints = prints
        self.budgets = budgets
        self.metric = metric
        self.ends: list[int] = list(itertools.accumulate(phases))
        self.records: list[dict[str, Any]] = []
        self._epoch = self._steps = 0
        self._seconds = 0.0  # of this epoch before a restart

    def get_state(self) -> dict[str, Any]:
        """The lines so far."""
        spent = self._seconds + time.perf_counter() - self._started
        return {"records": self.records, "seconds": spent}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes what `get_state` gave."""
        self.records, self._seconds = state["records"], state["seconds"]
        self._started = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._started, self._epoch, self._steps, self._seconds = time.perf_counter(), epoch, 0, 0.0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not logs:  # a step that was done before a restart
            return
        self._steps += 1
        steps = (self.params or {}).get("steps")
        if self.prints and sys.stdout.isatty() and steps:
            pace = (time.perf_counter() - self._started) / self._steps
            left = pace * (steps * self._epochs_left(self._epoch) + steps - batch - 1)
            line = f"  step {batch + 1}/{steps}  loss {logs['loss']:.4f}  {_clock(left)} left"
            print(f"{line:<78}", end="\r", flush=True)

    def _epochs_left(self, epoch: int) -> int:
        """Epochs of this phase that follow `epoch`."""
        return next((end for end in self.ends if end > epoch), epoch + 1) - epoch - 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        numbers = {name: float(value) for name, value in (logs or {}).items()}
        seconds = self._seconds + time.perf_counter() - self._started
        record = {
            "epoch": epoch,
            "phase": phase_of(self.model),
            "loss": numbers["loss"],
            "score": numbers[self.metric.key],
            "validation_loss": numbers.get("val_loss"),
            "validation_score": numbers.get(f"val_{self.metric.key}"),
            "seconds": seconds,
            "costs": {name: numbers[name] for name in _COSTS if name in numbers},
        }
        self.records.append(record)
        self._seconds, self._started = 0.0, time.perf_counter()
        if self.prints:
            self._print(record)

    def _print(self, record: dict[str, Any]) -> None:
        epoch, total = record["epoch"], (self.params or {}).get("epochs", 0)
        line = (
            f"  {self.title}  {record['phase']:<15} epoch {epoch + 1}/{total}  loss "
            f"{record['loss']:.4f}  {self.metric.name} {record['score']:.4f}"
        )
        if record["validation_score"] is not None:
            line += f"  validation {record['validation_score']:.4f}"
        for budget in self.budgets:
            if budget.log in record["costs"]:
                cost = record["costs"][budget.log]
                line += f"  {budget_text(budget, cost)} of {budget_text(budget, budget.limit)}"
        left = self._epochs_left(epoch)
        ahead = f", {_clock(left * record['seconds'])} of this phase left" if left else ""
        print(f"{line}  {record['seconds']:.1f} s{ahead}", flush=True)


def budget_text(budget: Budget, cost: float) -> str:
    """A cost in the unit of a budget: "38.00 M BOPs", "85.0 us"."""
    if budget.unit == "bytes":
        return f"{cost:,.0f} bytes"
    return f"{cost / 1e6:.2f} M BOPs" if budget.unit == "BOPs" else f"{cost:,.1f} {budget.unit}"


def _clock(seconds: float) -> str:
    """`42 s`, `3 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
