"""Moves a MetaMixModel through its phases inside one `fit`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_metamix.assignment import BitAssignment
from keras_metamix.calibration import calibrate_streams, calibrate_weights, reestimate_batch_norm
from keras_metamix.checks import require_whole, shown
from keras_metamix.cost import assignment_bops
from keras_metamix.diagnosis import LOOKED_AT, check_loss
from keras_metamix.graph.layer_costs import layer_costs
from keras_metamix.latency_table import LatencyTable
from keras_metamix.layers.mode import quantization_mode
from keras_metamix.metamix.loss import CostForm, require_cost
from keras_metamix.metamix.model import PHASES, MetaMixModel, Phase
from keras_metamix.metamix.selection import (
    argmax_assignment,
    budgeted_assignment,
    check_budget,
)
from keras_metamix.training import training_batches


class MetaMixCallback(keras.callbacks.Callback):
    """Bit-meta epochs, bit-search epochs, then weight training for the rest of `fit`.

    Args:
      target_bops: the budget in BOPs for one image (MetaMix Eq. 6).
      target_latency: in its place, the budget in microseconds for one image; takes a table.
      meta_epochs: epochs of bit-meta training.
      search_epochs: epochs of alternating bit-meta and bit-search.
      cost: form of Eq. 4: "relative" |BOPs / T - 1|, or the "paper"'s, in 1e9 BOPs. With
        `target_latency` the LatencyTable, in the relative form.
      cost_strength: lambda of Eq. 3; default 8 for "relative", 1 for "paper".
      statistics_batches: training batches that re-estimate batch norm after the selection.
      statistics_data: what these are taken from; default: what `fit` trains on.
      record_every: steps of bit-search between two records of the probabilities.
      verbose: 1 prints a line at each phase.

    Attributes:
      argmax_assignment: each layer's most probable bits, whatever they cost.
      assignment: the bits chosen: the argmax where it meets the budget, else the most probable
        assignment that does.
      probabilities: records {"step", "layers": {name: probabilities}} of the search.
      phases: the phase of each epoch.
    """

    def __init__(
        self,
        target_bops: float | None = None,
        meta_epochs: int = 1,
        search_epochs: int = 1,
        cost: CostForm | LatencyTable = "relative",
        cost_strength: float | None = None,
        statistics_batches: int = 32,
        statistics_data: Any = None,
        record_every: int = 10,
        verbose: int = 1,
        target_latency: float | None = None,
    ):
        super().__init__()
        require_whole("meta_epochs", meta_epochs)
        require_whole("search_epochs", search_epochs)
        require_whole("statistics_batches", statistics_batches)
        require_whole("record_every", record_every, 1)
        _check_target(target_bops, target_latency, cost)
        self.table = cost if isinstance(cost, LatencyTable) else None
        self.cost: CostForm = "relative" if isinstance(cost, LatencyTable) else cost
        require_cost(self.cost, cost_strength)
        self.target_bops, self.target_latency = target_bops, target_latency
        self.meta_epochs, self.search_epochs = meta_epochs, search_epochs
        self.cost_strength = cost_strength
        self.statistics_batches, self.statistics_data = statistics_batches, statistics_data
        self.record_every = record_every
        self.verbose = verbose
        self.argmax_assignment: BitAssignment | None = None
        self.assignment: BitAssignment | None = None
        self.probabilities: list[dict[str, Any]] = []
        self.phases: list[Phase] = []
        self._step = self._epoch = 0

    def on_train_begin(self, logs: dict | None = None) -> None:
        model: Any = self.model
        if not isinstance(model, MetaMixModel):
            raise TypeError(
                "MetaMixCallback trains a MetaMixModel (see MetaMixModel.from_float), "
                f"found {type(model).__name__}."
            )
        self._layers = layer_costs(model.network)
        self._costs = model.bop_costs() if self.table is None else self.table.costs(model)
        check_budget(self._costs, model.candidate_scores(), self._target)
        model.set_objective(self._target, self.cost_strength, self.cost, self._costs)
        if model.phase == "weight_training":
            self.assignment = model.bit_assignment

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        model: Any = self.model
        self._epoch, wanted = epoch, self._phase_of(epoch)
        if PHASES.index(wanted) > PHASES.index(model.phase):
            if wanted == "bit_search":
                self._set_search_rate()
            if wanted == "weight_training":
                self._select()
            model.phase = wanted
            self._say(f"phase {wanted} from epoch {epoch + 1}: {self._budget_line()}")
            if wanted == "weight_training":
                self._prepare_weight_training()
        elif epoch == 0:
            self._say(f"phase {model.phase} from epoch 1: {self._budget_line()}")
        self.phases.append(model.phase)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        model: Any = self.model
        where = f"at step {batch + 1} of epoch {self._epoch + 1}, phase {model.phase}"
        check_loss(model, logs, where, self._batches(LOOKED_AT))
        if not logs or model.phase != "bit_search":  # no logs: the step was done before a restart
            return
        if self._step % self.record_every == 0:
            self._record()
        self._step += 1

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        model: Any = self.model
        if model.phase != "weight_training":
            # Evaluation between the phases is at the bits that are ahead at present.
            model.assign_bits(argmax_assignment(model.candidate_scores()))
        if model.phase == "bit_search":
            self._record()
        if logs is not None:
            logs["bops"] = assignment_bops(self._layers, model.bit_assignment)
            logs[self._costs.log] = self._costs.total(model.bit_assignment)

    @property
    def _target(self) -> Any:
        return self.target_bops if self.table is None else self.target_latency

    def _phase_of(self, epoch: int) -> Phase:
        if epoch < self.meta_epochs:
            return "bit_meta"
        if epoch < self.meta_epochs + self.search_epochs:
            return "bit_search"
        return "weight_training"

    def _set_search_rate(self) -> None:
        model: Any = self.model
        steps = (self.params or {}).get("steps")
        if model.search_optimizer_is_default and steps:
            model.search_optimizer.learning_rate = 1.0 / (steps * self.search_epochs)

    def _select(self) -> None:
        model: Any = self.model
        scores = model.candidate_scores()
        self.argmax_assignment = argmax_assignment(scores)
        self.assignment = budgeted_assignment(self._costs, scores, self._target)
        model.assign_bits(self.assignment)

    def _prepare_weight_training(self) -> None:
        """Steps of weights and streams, then batch norm, for the network as selected."""
        model: Any = self.model
        calibrate_weights(model.network)
        for images in self._batches(1):
            calibrate_streams(model.network, images)
        with quantization_mode(model.evaluation_mode()):
            reestimate_batch_norm(model.network, self._batches(self.statistics_batches))

    def _batches(self, count: int) -> Any:
        return training_batches(self.model, self.statistics_data, count)

    def get_state(self) -> dict[str, Any]:
        """What a resumed `fit` needs to go on, as JSON takes it."""
        return {
            "argmax_assignment": _to_dict(self.argmax_assignment),
            "assignment": _to_dict(self.assignment),
            "probabilities": self.probabilities,
            "phases": self.phases,
            "step": self._step,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes what `get_state` gave."""
        self.argmax_assignment = _from_dict(state["argmax_assignment"])
        self.assignment = _from_dict(state["assignment"])
        self.probabilities, self.phases = state["probabilities"], state["phases"]
        self._step = state["step"]

    def _record(self) -> None:
        model: Any = self.model
        layers = {}
        for layer in model.mac_layers:
            choice = layer.input_quantizer.choice
            if choice.searched:
                layers[layer.name] = np.exp(choice.log_probabilities()).tolist()
        self.probabilities.append({"step": self._step, "layers": layers})

    def _budget_line(self) -> str:
        now = self._costs.total(self.model.bit_assignment)  # pyright: ignore
        return f"{self._costs.unit} {now:.4g}, budget {self._target:.4g}"

    def _say(self, line: str) -> None:
        if self.verbose:
            print(f"[MetaMix] {line}", flush=True)


def _check_target(target_bops: Any, target_latency: Any, cost: Any) -> None:
    """Raises ValueError unless there is one target, a latency's beside its table."""
    table = isinstance(cost, LatencyTable)
    if target_latency is None:
        if table:
            raise ValueError("cost: a LatencyTable takes target_latency, found none.")
        return
    if target_bops is not None:
        raise ValueError(
            f"expected target_bops or target_latency, found both: {shown(target_bops)} and "
            f"{shown(target_latency)}."
        )
    if not table:
        raise ValueError(
            f"target_latency={shown(target_latency)}: expected cost=LatencyTable.load(...) beside "
            f"it, found cost={shown(cost)}."
        )


def _to_dict(bits: BitAssignment | None) -> dict[str, Any] | None:
    if bits is None:
        return None
    return {"activation_bits": dict(bits.activation_bits), "weight_bits": dict(bits.weight_bits)}


def _from_dict(state: dict[str, Any] | None) -> BitAssignment | None:
    return BitAssignment(**state) if state else None
