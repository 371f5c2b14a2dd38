"""Moves a BitMixerModel through its three stages inside one `fit`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras

from keras_metamix.batches import readable
from keras_metamix.bitmixer.model import STAGES, BitMixerModel, Stage
from keras_metamix.calibration import (
    SEARCHED,
    calibrate_streams,
    calibrate_weights,
)
from keras_metamix.checks import require_whole, shown
from keras_metamix.diagnosis import LOOKED_AT, check_loss
from keras_metamix.statistics import reestimate_batch_norm
from keras_metamix.training import (
    check_statistics_data,
    epoch_steps,
    restart_averages,
    training_batches,
)


class BitMixerCallback(keras.callbacks.Callback):
    """The three stages of Bit-Mixer, each starting from what the one before it trained.

    Args:
      stage_epochs: epochs of "activations", "network_wide" and "layer_wise"; `fit` runs their sum.
        The paper has 160 in total and publishes no split.
      statistics_batches: training batches that re-estimate the batch norms of every bit-width when
        weights and streams begin to be quantized; 0 leaves them to training.
      statistics_data: what these are taken from: images, `(images, labels)`, or batches as `fit`
        takes them; of a generator the first batches are kept. Default: what `fit` trains on.
      verbose: 1 prints a line at each stage.

    Attributes:
      stages: the stage of each epoch.
    """

    def __init__(
        self,
        stage_epochs: Sequence[int],
        statistics_batches: int = 32,
        statistics_data: Any = None,
        verbose: int = 1,
    ):
        super().__init__()
        valid = isinstance(stage_epochs, Sequence) and len(stage_epochs) == 3
        valid = valid and all(type(n) is int and n >= 0 for n in stage_epochs)
        if not valid or not sum(stage_epochs):
            raise ValueError(
                f"stage_epochs: expected three numbers of epochs, found {shown(stage_epochs)}."
            )
        require_whole("statistics_batches", statistics_batches)
        self.stage_epochs: tuple[int, ...] = tuple(stage_epochs)
        self.statistics_batches = statistics_batches
        self.statistics_data: Any = readable(statistics_data)
        self.verbose = verbose
        self.stages: list[Stage] = []
        self._epoch = self._batch = 0
        self._steps: int | None = None  # of an epoch, once one was trained

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not isinstance(self.model, BitMixerModel):
            raise TypeError(
                "BitMixerCallback trains a BitMixerModel (see BitMixerModel.from_float), "
                f"found {type(self.model).__name__}."
            )
        model: Any = self.model
        check_statistics_data(model, self.statistics_data)
        if not any(layer.input_quantizer.choice.searched for layer in model.mac_layers):
            warnings.warn(
                f"no layer of {model.name!r} has bits to choose: there is nothing to switch. The "
                "first and the last layer keep edge_bits.",
                stacklevel=2,
            )
        found = (self.params or {}).get("epochs")
        if not model.progress.epochs and found != sum(self.stage_epochs):
            raise ValueError(
                f"fit(epochs={found}): BitMixerCallback(stage_epochs={self.stage_epochs}) needs "
                f"{sum(self.stage_epochs)}."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        epoch = max(epoch, model.progress.epochs)  # a new fit goes on
        wanted = self._stage_of(epoch)
        while STAGES.index(model.stage) < STAGES.index(wanted):
            self._enter(STAGES[STAGES.index(model.stage) + 1])
        if self.verbose and model.stage not in self.stages[-1:]:
            print(f"[Bit-Mixer] stage {model.stage} from epoch {epoch + 1}", flush=True)
        self.stages.append(model.stage)
        self._epoch = epoch
        if model.stage == "layer_wise":
            self._steps = epoch_steps(model, self.params, self._steps)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        if model.stage != "layer_wise":
            return
        steps = self._steps or 0
        before = (self._epoch - sum(self.stage_epochs[:2])) * steps + batch
        total = steps * self.stage_epochs[2]
        # One call serves several steps where compile was given steps_per_execution.
        share = (before + model.steps_per_execution) / total if total else 1.0
        model.layer_wise_share.assign(min(1.0, max(0.0, share)))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        where = f"at step {batch + 1} of epoch {self._epoch + 1}, stage {model.stage}"
        check_loss(model, logs, where, self._batches(LOOKED_AT))
        self._batch = batch

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        self._steps = self._batch + 1
        model.progress.end_epoch(self._epoch)

    def _stage_of(self, epoch: int) -> Stage:
        first, second, _ = self.stage_epochs
        return STAGES[(epoch >= first) + (epoch >= first + second)]

    def _enter(self, stage: Stage) -> None:
        model: Any = self.model
        model.stage = stage
        if stage == "layer_wise":
            model.spread_diagonal()
            return
        calibrate_weights(model.network, model.weight_rule)
        calibrate_streams(model.network, self._batches(SEARCHED))
        if self.statistics_batches:
            self._reestimate()
        restart_averages(model)

    def _reestimate(self) -> None:
        """Batch norm of every uniform bit-width, for the network with quantized weights."""
        model: Any = self.model
        before = model.bit_assignment
        for bits in model.space.activation_bits:
            model.set_bits(model.uniform_bits(bits))
            reestimate_batch_norm(model, self.statistics_data, self.statistics_batches)
        model.set_bits(before)

    def _batches(self, count: int) -> Any:
        return training_batches(self.model, self.statistics_data, count)

    def get_state(self) -> dict[str, Any]:
        """What a resumed `fit` needs to go on, as JSON takes it."""
        return {"stages": self.stages}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes what `get_state` gave."""
        self.stages = state["stages"]
