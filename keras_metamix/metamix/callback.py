"""Moves a MetaMixModel through its phases inside one `fit`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_metamix.assignment import BitAssignment
from keras_metamix.batches import readable
from keras_metamix.checks import one_of, require_whole, shown
from keras_metamix.cost import (
    Budget,
    PricedBudget,
    argmax_bits,
    as_budgets,
    assignment_bops,
    select,
)
from keras_metamix.diagnosis import LOOKED_AT, check_loss
from keras_metamix.graph.layer_costs import layer_costs, product_bops
from keras_metamix.metamix.loss import CostForm, require_cost
from keras_metamix.metamix.model import METAS, PHASES, Meta, MetaMixModel, Phase
from keras_metamix.metamix.search import (
    candidate_scores,
    check_kept_bits,
    prepare_weight_training,
    searched_choices,
)
from keras_metamix.statistics import BatchNormReestimation
from keras_metamix.training import check_statistics_data, epoch_steps, training_batches


class MetaMixCallback(keras.callbacks.Callback):
    """Bit-meta epochs, bit-search epochs, then weight training for the rest of `fit`.

    The model counts its epochs: a second `fit` goes on where the first one ended, with this
    callback or another one. Where there is nothing to search, all of them are weight training.

    The bits are chosen at the end of the last search epoch, before it is validated; a `fit` that
    ends there leaves the model in weight training too, and another `fit` goes on with it. Until
    then an epoch is validated at each layer's most probable bits of that moment, whose cost is
    logged. Training metrics of these epochs are of the fewest candidate bits.

    Args:
      budget: Bops, Size, Latency or Priced, or several in a list, all of which are met; a number
        is one of BOPs.
      meta_epochs: epochs of bit-meta training.
      search_epochs: epochs of alternating bit-meta and bit-search.
      cost_form: of Eq. 4: "relative" |cost / T - 1|, of several budgets that of the tightest, or
        the "paper"'s, in 1e9 BOPs.
      cost_strength: lambda of Eq. 3; default 8 for "relative", 1 for "paper".
      statistics_batches: training batches that re-estimate batch norm after the selection, and when
        a `fit` ends with weight training, before its last epoch is validated
        (`reestimate_batch_norm`); 0 leaves the statistics to training.
      statistics_data: what these are taken from: images, `(images, labels)`, or batches as `fit`
        takes them; of a generator the first batches are kept. Default: what `fit` trains on.
      record_every: steps of bit-search between two records of the probabilities.
      verbose: 1 prints a line at each phase.
      target_bops: short for `budget=Bops(target_bops)`.
      meta: what the candidates of a bit-meta update see: each of them the "whole" mini-batch, as
        in the paper, or "split", each a part of it, which takes about half of the time with
        three candidates. The loss is then Eq. 1's in expectation; batch norm normalizes each part
        by its own statistics and adds each to the moving ones, and training metrics are of the last
        part.

    Attributes:
      budgets: the budgets.
      argmax_assignment: each layer's most probable bits, whatever they cost.
      assignment: the bits chosen: of those that meet the budget and use at least 97 % of it the
        most probable ones, see `cost.select`.
      probabilities: records {"step", "layers": {name: probabilities}} of the search; of weights
        that are searched by themselves, the name is that of the layer with "/weights" behind it.
      phases: the phase of each epoch.

    Raises:
      TypeError, ValueError: a bad argument; names it.
    """

    def __init__(
        self,
        budget: Budget | Sequence[Budget] | float | None = None,
        meta_epochs: int = 1,
        search_epochs: int = 1,
        cost_form: CostForm = "relative",
        cost_strength: float | None = None,
        statistics_batches: int = 32,
        statistics_data: Any = None,
        record_every: int = 10,
        verbose: int = 1,
        target_bops: float | None = None,
        meta: Meta = "whole",
    ):
        super().__init__()
        self.meta: Meta = one_of("meta", meta, METAS)
        require_whole("meta_epochs", meta_epochs)
        require_whole("search_epochs", search_epochs)
        require_whole("statistics_batches", statistics_batches)
        require_whole("record_every", record_every, 1)
        require_cost(cost_form, cost_strength)
        self.budgets: tuple[Budget, ...] = _budgets(budget, target_bops)
        self.cost_form: CostForm = cost_form
        self.meta_epochs = meta_epochs
        self.search_epochs = search_epochs
        self.cost_strength = cost_strength
        self.statistics_batches = statistics_batches
        self.statistics_data: Any = readable(statistics_data)
        self.record_every = record_every
        self.verbose = verbose
        self.argmax_assignment: BitAssignment | None = None
        self.assignment: BitAssignment | None = None
        self.probabilities: list[dict[str, Any]] = []
        self.phases: list[Phase] = []
        self._step = self._epoch = 0
        self._batch = 0
        self._steps: int | None = None  # of an epoch, once one was trained
        self._settled, self._selected = True, False
        self._statistics = BatchNormReestimation(self.statistics_data, statistics_batches)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        if not isinstance(model, MetaMixModel):
            raise TypeError(
                "MetaMixCallback trains a MetaMixModel (see MetaMixModel.from_float), "
                f"found {type(model).__name__}."
            )
        self._statistics.set_params(self.params or {})
        self._statistics.set_model(model)
        self._layers = layer_costs(model.network)
        self._product_bops = product_bops(model.network)
        model.set_objective(self.budgets, self.cost_strength, self.cost_form)
        model.meta = self.meta
        for line in filter(None, (budget.beyond() for budget in self._priced)):
            warnings.warn(line, stacklevel=2)
        check_kept_bits(model)
        self._selected = False
        check_statistics_data(model, self.statistics_data)
        if not model.architecture_variables:
            warnings.warn(
                f"no layer of {model.name!r} has bits to choose: there is nothing to search, and "
                "all epochs are weight training. The first and the last layer keep edge_bits.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        self._statistics.on_epoch_begin(epoch)
        epoch = model.progress.epochs  # a new fit goes on, whatever Keras counts
        self._epoch, self._settled = epoch, False
        wanted = self._phase_of(epoch)
        if PHASES.index(wanted) > PHASES.index(model.phase):
            if wanted == "bit_search":
                model.phase = wanted
            if wanted == "weight_training":
                self._enter_weight_training()
            self._say(f"phase {wanted} from epoch {epoch + 1}: {self._budget_line()}")
        elif not self.phases:
            self._say(f"phase {model.phase} from epoch {epoch + 1}: {self._budget_line()}")
        if model.phase == "bit_search":
            self._set_search_rate()
        elif model.phase == "weight_training":  # of an earlier fit perhaps, or restored
            self.assignment = model.bit_assignment
        self.phases.append(model.phase)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        where = f"at step {batch + 1} of epoch {self._epoch + 1}, phase {model.phase}"
        check_loss(model, logs, where, self._batches(LOOKED_AT))
        self._batch = batch
        if model.phase == "weight_training":
            self._statistics.on_train_batch_end(batch, logs)
        if not logs or model.phase != "bit_search":  # no logs: the step was done before a restart
            return
        if self._step % self.record_every == 0:
            self._record()
        self._step += 1

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._settle()
        self._statistics.on_test_begin()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        self._settle()
        if model.phase == "bit_search":
            self._record()
        self._steps = self._batch + 1
        model.progress.end_epoch(self._epoch)
        if logs is not None:
            bops = assignment_bops(self._layers, model.bit_assignment)
            logs["bops"] = bops + self._product_bops
            for budget in self._priced:
                logs[budget.log] = budget.total(model.bit_assignment)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        if self._settled and model.phase != "weight_training" and self._is_last(self._epoch):
            self._enter_weight_training()
            self._say(f"phase weight_training from now on: {self._budget_line()}")
        elif model.phase == "weight_training":
            self._statistics.on_train_end()
        elif self._settled:
            self._say(
                f"fit ended in phase {model.phase}, without bits: the search goes on with the next "
                "fit."
            )
        self._settled = True

    @property
    def _priced(self) -> tuple[PricedBudget, ...]:
        """The budgets, for the model."""
        model: Any = self.model
        return model.objective.budgets

    def _settle(self) -> None:
        """Assigns the bits that an epoch of the selection ends with, before they are validated."""
        model: Any = self.model
        if self._settled or model.phase == "weight_training":
            return
        self._settled = True
        if self._is_last(self._epoch):
            self._select()
        else:
            model.assign_bits(argmax_bits(candidate_scores(model)))

    def _is_last(self, epoch: int) -> bool:
        """Whether weight training follows an epoch."""
        return self._phase_of(epoch + 1) == "weight_training"

    def _phase_of(self, epoch: int) -> Phase:
        model: Any = self.model
        if not model.architecture_variables:
            return "weight_training"
        if epoch < self.meta_epochs:
            return "bit_meta"
        if epoch < self.meta_epochs + self.search_epochs:
            return "bit_search"
        return "weight_training"

    def _set_search_rate(self) -> None:
        model: Any = self.model
        if model.search_optimizer_is_default:
            steps = epoch_steps(model, self.params, self._steps)
            model.search_optimizer.learning_rate = 1.0 / (steps * self.search_epochs)

    def _select(self) -> None:
        model: Any = self.model
        scores = candidate_scores(model)
        self.argmax_assignment = argmax_bits(scores)
        self.assignment = select(scores, self._priced)
        model.assign_bits(self.assignment)
        self._selected = True

    def _enter_weight_training(self) -> None:
        if not self._selected:  # in an earlier fit, or before a restart: the scores are the same
            self._select()
        model: Any = self.model
        prepare_weight_training(model, self.statistics_data, self.statistics_batches)

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
        found = {}
        for name, choice in searched_choices(model).items():
            found[name] = np.exp(choice.log_probabilities()).tolist()
        self.probabilities.append({"step": self._step, "layers": found})

    def _budget_line(self) -> str:
        model: Any = self.model
        return ", ".join(
            f"{budget.unit} {budget.total(model.bit_assignment):.4g}, budget {budget.limit:.4g}"
            for budget in self._priced
        )

    def _say(self, line: str) -> None:
        if self.verbose:
            print(f"[MetaMix] {line}", flush=True)


def _budgets(budget: Any, target_bops: Any) -> tuple[Budget, ...]:
    """The budgets of a callback's arguments."""
    if budget is not None and target_bops is not None:
        raise ValueError(
            f"expected budget or target_bops, found both: {shown(budget)} and {shown(target_bops)}."
        )
    if budget is None and target_bops is None:
        raise ValueError(
            "MetaMixCallback: expected a budget, such as keras_metamix.Bops(5.3e9) or "
            "Bops(share=0.5), half the way from the fewest bits to the most; found none."
        )
    return as_budgets(target_bops if budget is None else budget)


def _to_dict(bits: BitAssignment | None) -> dict[str, Any] | None:
    if bits is None:
        return None
    return {"activation_bits": dict(bits.activation_bits), "weight_bits": dict(bits.weight_bits)}


def _from_dict(state: dict[str, Any] | None) -> BitAssignment | None:
    return BitAssignment(**state) if state else None
