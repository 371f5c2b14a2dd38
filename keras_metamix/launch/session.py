"""One experiment while it runs: where it trains, and how each of its trainings survives a stop."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import keras
import tensorflow as tf

from keras_metamix.cost import Budget, LatencyTable
from keras_metamix.files import written_whole
from keras_metamix.launch.budget import TABLE_SECTIONS
from keras_metamix.launch.checkpoints import Checkpoints
from keras_metamix.launch.config import Experiment
from keras_metamix.launch.datasets import Data, task_of
from keras_metamix.launch.distribution import (
    distributed_training,
    has_workers,
    is_chief,
    local_copy,
)
from keras_metamix.launch.messages import EpochLines
from keras_metamix.launch.monitor import LOG, Monitor
from keras_metamix.quantized_model import QuantizedModel
from keras_metamix.report.results import Epoch
from keras_metamix.training import begin_fit, build_metrics

CHECKPOINTS = "checkpoints"
_STATISTICS_BATCHES = 32  # re-estimate batch norm; an epoch's, where it has fewer
# What may differ between a run and its continuation.
_FREE = ("title", "export", "checkpoint", "distribute")


E = TypeVar("E", bound=Experiment)


@dataclasses.dataclass
class Session(Generic[E]):
    """A config, its data, and the folder of a run.

    Attributes:
      config: as `complete` gives it.
      data: its images.
      workdir: of the run; None keeps nothing.
      strategy: where it trains; several workers have to make theirs before TensorFlow does
        anything else.
      table: the latency table that the config names, or that of its accelerator, if any.
    """

    config: E
    data: Data
    workdir: Path | None = None
    strategy: Any = dataclasses.field(default_factory=tf.distribute.get_strategy)
    table: LatencyTable | None = None

    @property
    def chief(self) -> bool:
        """Whether this process prints and writes."""
        return is_chief(self.strategy)

    @property
    def statistics_batches(self) -> int:
        """How many batches estimate batch norm's statistics."""
        return min(_STATISTICS_BATCHES, self.data.steps)

    def say(self, line: str) -> None:
        """Prints a line, once however many workers there are."""
        if self.chief:
            print(line, flush=True)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Where models are made: on the strategy's devices, their random numbers from the seed.

        What was trained before does not matter then, nor whether it was trained in this process.
        """
        keras.utils.set_random_seed(self.config.seed)
        with self.strategy.scope():
            yield

    def open(self) -> None:
        """Makes the folder, or finds out whether it holds this experiment half-way.

        Raises:
          ValueError: it holds another one's checkpoints; names the field that differs.
        """
        if self.workdir is None:
            return
        file, folder = self.workdir / "config.json", self.workdir / CHECKPOINTS
        fields = _fields(self.config, self.table)
        if folder.is_dir() and file.is_file():
            _check_same(json.loads(file.read_text()), fields, self.workdir)
        elif self.chief:
            self.workdir.mkdir(parents=True, exist_ok=True)
            (self.workdir / LOG).unlink(missing_ok=True)
            with written_whole(file) as temporary:
                temporary.write_text(json.dumps(fields, indent=2) + "\n")

    def fit(
        self,
        name: str,
        model: Any,
        title: str,
        phases: Sequence[int],
        callbacks: Sequence[Any],
        budgets: Sequence[Budget] = (),
    ) -> tuple[Any, list[Epoch]]:
        """Trains a compiled model, or goes on where an earlier run of this folder stopped.

        Args:
          name: of the training, unique in the experiment.
          model: made and compiled in `scope`.
          title, phases, budgets: see `EpochLines`.
          callbacks: the method's, in their order.

        Returns:
          The trained model, as this process alone can run it, and its epochs.
        """
        train, steps, epochs = self.data.train, self.data.steps, sum(phases)
        with self.strategy.scope():
            if isinstance(model, QuantizedModel):
                begin_fit(model, train, None, None)
            else:
                model.optimizer.build(model.trainable_variables)
                build_metrics(model, train)
        metric, callbacks = task_of(self.config).metric, [*callbacks]
        lines = EpochLines(title, phases, budgets, self.chief, metric)
        callbacks.append(lines)
        start, done = 0, False
        if self.workdir is not None:
            callbacks.append(Monitor(self.workdir, name, writes=self.chief))
            checkpoints = self._checkpoints(name, model, callbacks)
            callbacks.append(checkpoints)
            start, done = checkpoints.restore(), checkpoints.done
        every = self.config.train.validate_every
        if not done:
            model.fit(
                distributed_training(self.strategy, self.data, start),
                initial_epoch=start // steps,
                epochs=epochs,
                steps_per_epoch=steps,
                validation_data=self.data.validation,
                validation_freq=[e for e in range(1, epochs + 1) if e % every == 0 or e == epochs],
                callbacks=callbacks,
                shuffle=False,  # the data set shuffles
                verbose=0,
            )
        return local_copy(model, self.strategy), [Epoch(**record) for record in lines.records]

    def _checkpoints(self, name: str, model: Any, callbacks: list[Any]) -> Checkpoints:
        config, steps = self.config.checkpoint, self.data.steps
        every, minutes = config.steps, config.minutes
        if has_workers(self.strategy):  # their clocks differ, and all have to take part
            every, minutes = every or steps, 0.0
        folder = (self.workdir or Path()) / CHECKPOINTS / name
        return Checkpoints(folder, model, callbacks, steps, every, minutes, self.chief)


def _fields(config: Experiment, table: LatencyTable | None) -> dict[str, Any]:
    """A config as JSON has it, with a hash of its latency table: another table is another run."""
    fields = json.loads(json.dumps(config.to_dict()))
    section = fields[TABLE_SECTIONS[config.method]]
    if table is not None and section["latency_table"]:  # others come of the config
        digest = hashlib.sha256(repr(table).encode()).hexdigest()[:16]
        section["latency_table"] += f" (SHA-256 {digest})"
    return fields


def _check_same(before: dict[str, Any], now: dict[str, Any], workdir: Path) -> None:
    for section, value in now.items():
        if section in _FREE or before.get(section) == value:
            continue
        name, old, new = section, before.get(section), value
        if isinstance(value, dict) and isinstance(old, dict):
            field = next(f for f in value if old.get(f) != value[f])
            name, old, new = f"{section}.{field}", old.get(field), value[field]
        raise ValueError(
            f"{workdir} holds an unfinished run with config.{name}={old!r}, found {new!r}: name "
            f"another --workdir, or remove {workdir / CHECKPOINTS}."
        )
