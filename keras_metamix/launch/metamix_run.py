"""MetaMix in an experiment: search, weight training, and the files to compare."""

from __future__ import annotations

from typing import Any

import keras

from keras_metamix.cost import Latency, assignment_bops
from keras_metamix.distillation import Teacher
from keras_metamix.graph.layer_costs import layer_costs
from keras_metamix.launch.budget import naming_table, naming_target, search_budget
from keras_metamix.launch.comparison.stock_converter import float_file
from keras_metamix.launch.config import MetaMix
from keras_metamix.launch.optimization import load_teacher
from keras_metamix.launch.results import (
    Candidate,
    Outcome,
    bits_of,
    layer_rows,
    search_history,
    training_run,
)
from keras_metamix.launch.session import Session
from keras_metamix.launch.training import search_space, train_metamix, train_uniform
from keras_metamix.metamix.callback import MetaMixCallback
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.report.results import Budget, Epoch, Search
from metamix_tflite import convert, verify


def check(session: Session[MetaMix], float_model: keras.Model) -> None:
    """Finds out what is wrong with the search before hours of float training."""
    config, table = session.config, session.table
    model = MetaMixModel.from_float(float_model, search_space(config))
    with naming_table(config):
        budget = search_budget(config, table, float_model).priced(model)
    with naming_table(config), naming_target(config, table):
        budget.require_reachable()
    teacher = load_teacher(config, float_model)
    if teacher is not None:
        Teacher(teacher, config.train.distillation, model)
    if config.train.epochs <= config.search.meta_epochs + config.search.search_epochs:
        raise ValueError(
            f"config.train.epochs={config.train.epochs} leaves no epoch for weight training after "
            f"{config.search.meta_epochs} of bit-meta and {config.search.search_epochs} of search."
        )


def run(session: Session[MetaMix], float_model: keras.Model) -> Outcome:
    """Searches, trains and exports."""
    config = session.config
    teacher = load_teacher(config, float_model)
    model, callback, lines = train_metamix(session, float_model, teacher)
    uniform = None
    if config.train.uniform:
        session.say("uniform bit-widths, for comparison")
        uniform, _ = train_uniform(session, float_model, teacher)
    session.say("export, verification, benchmark")
    bits = model.bit_assignment
    told = training_run(config, lines.records)
    candidates = _export(config, float_model, model, uniform, told)
    budget, summary = _budget(session, callback, model)
    return Outcome(
        model,
        candidates,
        layers=layer_rows(verify(candidates[-1].flat, bits), model, bits),
        epochs=[Epoch(**record) for record in lines.records],
        search=Search(
            budgets=[budget],
            argmax_bits=bits_of(callback.argmax_assignment),
            alphas=search_history(callback, model),
        ),
        files={"bits.json": bits.save},
        summary=summary,
    )


def _budget(
    session: Session[MetaMix], callback: MetaMixCallback, model: MetaMixModel
) -> tuple[Budget, str]:
    """The budget and what the chosen bits cost, for `metrics.json` and in words."""
    bits, (given,) = model.bit_assignment, callback.budgets
    priced, bops = given.priced(model), assignment_bops(layer_costs(model), bits)
    limit, found = priced.limit, priced.total(bits)
    if not isinstance(given, Latency):
        told = f"BOPs {bops:,} of {limit:,.0f}; "
        return Budget(cost=priced.log, limit=limit, found=found), told
    told = f"BOPs {bops:,}; predicted latency {found:,.1f} us of {limit:,.1f} us; "
    source, origin = session.config.search.latency_table, dict(given.table.origin)
    budget = Budget(cost=priced.log, limit=limit, found=found, source=source, origin=origin)
    return budget, told


def _export(
    config: Any, float_model: Any, model: Any, uniform: Any, told: dict[str, Any]
) -> list[Candidate]:
    container = config.export.weight_container
    candidates = [Candidate("float", "float.tflite", float_file(float_model), float_model)]
    if uniform is not None:
        flat = convert(uniform, weight_container=container)
        candidates.append(Candidate("uniform A4W4", "uniform.tflite", flat, uniform))
    flat = convert(model, weight_container=container, run=told)
    return [*candidates, Candidate("MetaMix", "model.tflite", flat, model)]
