"""MetaMix in an experiment: search, weight training, and the files to compare."""

from __future__ import annotations

import dataclasses

import keras

from keras_metamix.checks import naming
from keras_metamix.cost import Latency
from keras_metamix.distillation import Teacher
from keras_metamix.graph.layer_costs import bops
from keras_metamix.launch.budget import UNIFORM_BITS, naming_table, search_budget, target_field
from keras_metamix.launch.config import MetaMix
from keras_metamix.launch.optimization import compile_quantized, load_teacher
from keras_metamix.launch.results import (
    Candidate,
    Outcome,
    layer_rows,
    search_history,
    training_run,
)
from keras_metamix.launch.session import Session
from keras_metamix.launch.training import search_space, train_metamix, train_uniform
from keras_metamix.metamix.callback import MetaMixCallback
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.report.results import Budget, Search
from keras_metamix.report.sections import METAMIX
from metamix_tflite import convert, verify


def check(session: Session[MetaMix], float_model: keras.Model) -> None:
    """Finds out what is wrong with the search before hours of float training."""
    config = session.config
    model = MetaMixModel.from_float(float_model, search_space(config))
    with naming_table(config):
        budget = search_budget(config, session.table, float_model).priced(model)
        field = target_field(config)
        with naming(f"config.search.{field}={getattr(config.search, field)}"):
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
    config, container, candidates = session.config, session.config.export.weight_container, []
    teacher = load_teacher(config, float_model)
    model, epochs, callback = train_metamix(session, float_model, teacher)
    if config.train.uniform:
        session.say("uniform bit-widths, for comparison")

        def ready(uniform: MetaMixModel) -> None:
            compile_quantized(uniform, config, session.data.steps, 0, teacher)

        uniform = train_uniform(session, float_model, UNIFORM_BITS, config.train.epochs, ready)
        flat = convert(uniform, weight_container=container)
        candidates.append(Candidate("uniform A4W4", "uniform.tflite", flat, uniform))
    session.say("export, verification, benchmark")
    bits, argmax = model.bit_assignment, callback.argmax_assignment
    flat = convert(model, weight_container=container, run=training_run(config, epochs))
    budget, summary = _budget(session, callback, model)
    return Outcome(
        model,
        [*candidates, Candidate(METAMIX, "model.tflite", flat, model)],
        layers=layer_rows(verify(flat, bits), model, bits),
        epochs=epochs,
        search=Search(
            budgets=[budget],
            argmax_bits=dict(argmax.activation_bits) if argmax else {},
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
    priced, found = given.priced(model), bops(model, bits)
    budget = Budget(cost=priced.log, limit=priced.limit, found=priced.total(bits))
    if not isinstance(given, Latency):
        return budget, f"BOPs {found:,} of {budget.limit:,.0f}; "
    source, origin = session.config.search.latency_table, dict(given.table.origin)
    told = f"predicted latency {budget.found:,.1f} us of {budget.limit:,.1f} us; "
    return dataclasses.replace(budget, source=source, origin=origin), f"BOPs {found:,}; {told}"
