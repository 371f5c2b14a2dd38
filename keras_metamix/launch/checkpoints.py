"""Checkpoints of one training, and its continuation where the last one was written.

A checkpoint is TensorFlow's own (tf.train.Checkpoint: each tensor has a checksum) of every
variable of the model, its optimizers and its metrics, with the step and the callbacks' states.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_metamix.diagnosis import NonFiniteError, find_non_finite
from keras_metamix.network_model import optimizers_of

_NAME = "step-{:09d}"
_INDEX = re.compile(r"(step-\d{9})\.index")
_KEPT = 2


class Checkpoints(keras.callbacks.Callback):
    """Writes checkpoints while `fit` runs; the last of its callbacks.

    Args:
      folder: of this training alone; the two newest checkpoints stay in it.
      model: compiled, its optimizers and metrics built.
      callbacks: those of `fit`; what they know is kept of those that have `get_state`.
      epoch_steps: batches of an epoch.
      steps: between two checkpoints; 0: none by steps.
      minutes: after which the next one is written; 0: none by time.
      writes: whether this process keeps what it writes (of several workers one does, but all of
        them have to take part).

    Attributes:
      step: batches trained so far.
      done: whether the training has ended.
    """

    def __init__(
        self,
        folder: Path,
        model: Any,
        callbacks: Sequence[Any],
        epoch_steps: int,
        steps: int = 0,
        minutes: float = 5.0,
        writes: bool = True,
    ):
        super().__init__()
        self.folder = folder
        self.writes = writes
        self.epoch_steps = epoch_steps
        self.every = steps
        self.seconds = 60.0 * minutes
        self.step, self.done = 0, False
        self._trained, self._state = model, _State()
        self._others = [c for c in callbacks if hasattr(c, "get_state")]
        self._start, self._written = 0, time.monotonic()
        self._left = 0  # steps to let pass

    # --- reading ---------------------------------------------------------------------------

    def restore(self) -> int:
        """Takes the newest checkpoint that can be read, if there is one; returns its step.

        Raises:
          ValueError: none of those in the folder can be read.
        """
        names = self._names()
        for name in names:
            try:
                self._read(name)
            except (tf.errors.OpError, ValueError, LookupError, AssertionError) as error:
                cause = str(error).strip().splitlines()[0][:150]
                print(f"checkpoint {self.folder / name} is damaged: {cause}", flush=True)
                continue
            state = "trained already" if self.done else f"goes on from step {self.step}"
            print(f"  {self.folder.name}: {state} ({self.folder / name})", flush=True)
            return self.step
        if names:
            raise ValueError(
                f"{self.folder}: expected a checkpoint of this experiment, found {len(names)} that "
                "cannot be read: remove the folder to train anew."
            )
        return 0

    def _names(self) -> list[str]:
        """The checkpoints there are, the newest first."""
        files = self.folder.glob("step-*.index")
        return sorted((m[1] for f in files if (m := _INDEX.fullmatch(f.name))), reverse=True)

    def _read(self, name: str) -> None:
        status = self._bundle.read(str(self.folder / name))
        status.assert_consumed().assert_existing_objects_matched()
        found = self._state.content
        self.step, self.done = found["step"], found["done"]
        for callback, known in zip(self._others, found["callbacks"], strict=True):
            callback.set_state(known)
        self._start = self.step

    @functools.cached_property
    def _bundle(self) -> tf.train.Checkpoint:
        """All that is written, of a model whose variables are all made."""
        model = self._trained
        found = [*model.variables, *model.metrics_variables]
        optimizers = [optimizer for optimizer, _ in optimizers_of(model) if optimizer is not None]
        found += [v for optimizer in optimizers for v in optimizer.variables]
        variables = list({id(v): v.value for v in found}.values())
        return tf.train.Checkpoint(variables=variables, state=self._state)

    # --- writing ---------------------------------------------------------------------------

    def write(self) -> None:
        """Writes a checkpoint; the ones before stay until it is whole.

        Raises:
          NonFiniteError: weights are NaN or Inf.
          OSError: no space, or no permission.
        """
        weights = [v.value for v in self._trained.variables if v.dtype.startswith("float")]
        if not all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in weights):
            cause = find_non_finite(self._trained, ())
            raise NonFiniteError(f"No checkpoint at step {self.step}: {cause}.")
        self._state.content = {
            "step": self.step,
            "done": self.done,
            "callbacks": [callback.get_state() for callback in self._others],
        }
        folder = self.folder if self.writes else self.folder / f".worker-{id(self)}"
        path = folder / _NAME.format(self.step)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._bundle.write(str(path))
        except (tf.errors.UnavailableError, tf.errors.AbortedError):  # another worker is gone
            _remove(path)
            raise
        except (tf.errors.OpError, OSError) as error:
            _remove(path)
            before = self._names()
            kept = f"{before[0]} is intact" if before else "there is none before it"
            cause = str(error).strip().splitlines()[0]
            raise OSError(
                f"{path}: the checkpoint could not be written ({cause}); {kept}."
            ) from error
        finally:
            if not self.writes and folder.is_dir():
                shutil.rmtree(folder)
        for name in self._names()[_KEPT:]:
            _remove(self.folder / name)
        self._written = time.monotonic()

    # --- callbacks -------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._left = self._start % self.epoch_steps

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Lets the steps pass that the epoch had before the restart.

        Not before the first batch: what an epoch begins with may have made another function.
        """
        model: Any = self._trained
        function, left, self._left = model.train_function, self._left, 0

        def passed(iterator: Any) -> Any:
            nonlocal left
            if left:
                left -= 1
                return {}
            model.train_function = function
            return function(iterator)

        if left:
            model.train_function = passed

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._start % self.epoch_steps and epoch == self._start // self.epoch_steps:
            self._read(_NAME.format(self._start))  # Keras has reset the epoch's metrics

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not logs:  # a step that was done before the restart
            return
        self.step += 1
        if self.step % self.epoch_steps and self._is_due():  # else the epoch's evaluation follows
            self.write()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._is_due():
            self.write()

    def _is_due(self) -> bool:
        late = self.seconds and time.monotonic() - self._written > self.seconds
        return bool(late or (self.every and self.step % self.every == 0))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.done = True
        self.write()


class _State(tf.train.experimental.PythonState):
    """JSON inside a checkpoint."""

    content: dict[str, Any]

    def serialize(self) -> str:
        return json.dumps(self.content)

    def deserialize(self, string_value: Any) -> None:
        self.content = json.loads(string_value)


def _remove(path: Path) -> None:
    """Removes the files of a checkpoint, its index first: without it there is no checkpoint."""
    if not path.parent.is_dir():
        return
    path.with_name(f"{path.name}.index").unlink(missing_ok=True)
    for file in path.parent.glob(f"{path.name}*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
