"""What a run looks like from outside: TensorBoard's scalars, and a log that programs read."""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_metamix.files import written_whole
from keras_metamix.launch.messages import phase_of
from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.quantized_model import QuantizedModel

LOG = "log.jsonl"


class Monitor(keras.callbacks.Callback):
    """Writes a training's numbers to `workdir/log.jsonl` and `workdir/tensorboard/NAME`.

    Every `every` steps and at the end of an epoch: what `fit` logs, "loss_8_bits" and its like
    (the loss of each candidate) and BOPs among it. At the end of an epoch also, of a searched or
    quantized network, each layer's bits, the entropy of its alphas (nats) and its step size.

    Args:
      workdir: of the run; the log is shared by all of its trainings.
      name: of this training.
      every: steps between two lines.
      writes: whether this process writes.
    """

    def __init__(self, workdir: Path, name: str, every: int = 10, writes: bool = True):
        super().__init__()
        self.workdir = workdir
        self.name = name
        self.every = every
        self.writes = writes
        self._step = self._epoch = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._scalars: Any = tf.summary.create_noop_writer()
        if self.writes:
            folder = self.workdir / "tensorboard" / self.name
            self._scalars = tf.summary.create_file_writer(str(folder))
            self._forget_later_steps()

    def _forget_later_steps(self) -> None:
        """Takes out of the log what a killed run did after its last checkpoint."""
        file = self.workdir / LOG
        if not file.is_file():
            return
        kept = []
        for text in file.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # of a last line cut short
                line = json.loads(text)
                if line["training"] != self.name or line["step"] <= self._step:
                    kept.append(f"{text}\n")
        with written_whole(file) as temporary:
            temporary.write_text("".join(kept))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not logs:  # a step that was done before a restart
            return
        self._step += 1
        if self._step % self.every == 0:
            self._write("step", {name: float(value) for name, value in logs.items()}, {})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        numbers = {name: float(value) for name, value in (logs or {}).items()}
        self._write("epoch", numbers, layer_numbers(self.model))
        self._scalars.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._scalars.close()

    def _write(
        self, kind: str, numbers: dict[str, float], layers: dict[str, dict[str, Any]]
    ) -> None:
        with self._scalars.as_default(step=self._step):
            for name, value in numbers.items():
                tf.summary.scalar(f"{kind}/{name}", value)
            for group, values in layers.items():
                for name, value in values.items():
                    tf.summary.scalar(f"{group}/{name}", value)
        if not self.writes:
            return
        line = {
            "training": self.name,
            "kind": kind,
            "phase": phase_of(self.model),
            "epoch": self._epoch + 1,
            "step": self._step,
            "time": time.time(),
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
            **layers,
        }
        with (self.workdir / LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def get_state(self) -> dict[str, Any]:
        """The step."""
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes what `get_state` gave."""
        self._step = state["step"]


def layer_numbers(model: Any) -> dict[str, dict[str, float]]:
    """Bits, alpha entropy and step size of each layer of a quantized model, by group and name."""
    if not isinstance(model, QuantizedModel):
        return {}
    entropies, steps = {}, {}
    for layer in model.mac_layers:
        quantizer: ActivationQuantizer = layer.input_quantizer
        steps[layer.name] = float(keras.ops.convert_to_numpy(quantizer.step()))
        if quantizer.choice.searched and isinstance(model, MetaMixModel):
            log = quantizer.choice.log_probabilities()
            entropies[layer.name] = float(-np.sum(np.exp(log) * log))
    bits = model.bit_assignment
    return {
        "activation_bits": dict(bits.activation_bits),
        "weight_bits": dict(bits.weight_bits),
        "alpha_entropy": entropies,
        "step_size": steps,
    }
