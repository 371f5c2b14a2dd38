"""MetaMix in an experiment: search, weight training, and the files to compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_metamix.checks import naming
from keras_metamix.cost import Bops, Latency, Size, require_all_reachable
from keras_metamix.distillation import Teacher
from keras_metamix.graph.layer_costs import bops
from keras_metamix.launch.budget import (
    TABLE,
    UNIFORM_BITS,
    naming_kind,
    search_budgets,
    uniform_name,
)
from keras_metamix.launch.config import MetaMix
from keras_metamix.launch.datasets import task_of
from keras_metamix.launch.messages import budget_text
from keras_metamix.launch.optimization import compile_model, compile_quantized, load_teacher
from keras_metamix.launch.results import (
    UNIFORM_FILE,
    Candidate,
    Outcome,
    layer_rows,
    point_file,
    search_history,
    training_run,
)
from keras_metamix.launch.session import CHECKPOINTS, Session
from keras_metamix.launch.training import search_space, train_metamix, train_uniform
from keras_metamix.metamix.callback import MetaMixCallback
from keras_metamix.metamix.front import trace_front
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.points import cost_axis
from keras_metamix.report.results import Budget, Point, Search
from keras_metamix.report.sections import METAMIX
from metamix_tflite import convert, verify
from metamix_tflite.devices import ethosu

_SHARE = 8  # of an epoch, one in so many batches estimates batch norm's statistics of a point
_POINT_RATE = 0.1  # of a point's learning rate, over that where the cosine begins


def check(session: Session[MetaMix], float_model: keras.Model) -> None:
    """Finds out what is wrong with the search before hours of float training."""
    config = session.config
    model = MetaMixModel.from_float(float_model, search_space(config))
    priced, given = [], search_budgets(config, session.table, float_model)
    for kind, budget in zip(config.search.kinds, given, strict=True):
        field = config.search.field_of(kind)
        with naming_kind(config, kind):
            priced.append(budget.priced(model))
            with naming(f"config.search.{field}={getattr(config.search, field)}"):
                priced[-1].require_reachable()
    require_all_reachable(priced)
    for multiple in config.search.budgets:
        with naming(f"config.search.budgets={multiple}"):
            require_all_reachable([scaled.priced(model) for scaled in _scaled(given, multiple)])
    if config.search.point_epochs and config.distribute:
        raise ValueError(
            "config.search.point_epochs: points are trained on one device, found "
            f"config.distribute={config.distribute!r}: set it to 0."
        )
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
    config, target, candidates = session.config, session.config.export.convert_options, []
    files: dict[str, Any] = {}
    teacher = load_teacher(config, float_model)
    model, epochs, callback = train_metamix(session, float_model, teacher)
    if config.train.uniform:
        session.say("uniform bit-widths, for comparison")

        def ready(uniform: MetaMixModel) -> None:
            compile_quantized(uniform, config, session.data.steps, 0, teacher)

        uniform = train_uniform(session, float_model, UNIFORM_BITS, config.train.epochs, ready)
        flat = convert(uniform, **target)
        candidates.append(Candidate(uniform_name(config), "uniform.tflite", flat, uniform))
        files[UNIFORM_FILE] = uniform.save
    session.say("export, verification, benchmark")
    bits, argmax = model.bit_assignment, callback.argmax_assignment
    run = training_run(config, epochs)
    flat = convert(model, **target, run=run, budget=callback.budgets)
    budgets, summary = _budgets(session, callback, model, flat)
    candidates.append(Candidate(METAMIX, "model.tflite", flat, model))
    points: list[Point] = []
    if config.search.budgets:
        points, further = _points(session, callback, model)
        candidates += further
        for candidate in further:
            stem = Path(candidate.file).stem
            files[f"{stem}.bits.json"] = candidate.model.bit_assignment.save
            files[f"{stem}.keras"] = candidate.model.save
    return Outcome(
        model,
        candidates,
        layers=layer_rows(verify(flat, bits), model, bits),
        epochs=epochs,
        search=Search(
            budgets=budgets,
            argmax_bits=dict(argmax.activation_bits) if argmax else {},
            argmax_weight_bits=dict(argmax.weight_bits) if argmax else {},
            alphas=search_history(callback, model),
            points=points,
            unit=cost_axis(callback.budgets[0]),
        ),
        files={"bits.json": bits.save, **files},
        summary=summary,
    )


def _scaled(budgets: Sequence[Any], multiple: float) -> tuple[Any, ...]:
    """Budgets of as many times the limits."""
    return tuple(dataclasses.replace(b, limit=b.limit * multiple) for b in budgets)


def _points(
    session: Session[MetaMix], callback: MetaMixCallback, model: MetaMixModel
) -> tuple[list[Point], list[Candidate]]:
    """The chosen bits and those of further budgets, and the files of the latter."""
    config, data = session.config, session.data
    multiples, key = config.search.budgets, task_of(config).metric.key
    folder = session.workdir and session.workdir / CHECKPOINTS / "points"
    session.say("further budgets")
    if config.search.point_epochs:
        rate = config.train.learning_rate * _POINT_RATE
        compile_model(model, config, rate)
    given = [_scaled(callback.budgets, multiple) for multiple in multiples]
    found = trace_front(
        model,
        data.test,
        given,
        data.train,
        config.search.point_epochs,
        data.steps,
        folder,
        batches=max(1, min(session.statistics_batches, data.steps // _SHARE)),
    )
    before: Any = model.evaluate(data.test, verbose=0, return_dict=True)
    priced = callback.budgets[0].priced(model)
    points = [
        Point(
            name=METAMIX,
            cost=priced.total(model.bit_assignment),
            budget=priced.limit,
            score=before[key],
        )
    ]
    candidates = []
    for multiple, budgets, point in zip(multiples, given, found, strict=True):
        name = f"{METAMIX} x{multiple:g}"
        points.append(
            Point(
                name=name,
                cost=point.cost,
                budget=budgets[0].limit,
                score=point.metrics[key],
                images=point.images / (data.steps * config.train.batch_size),
                epochs=point.epochs,
            )
        )
        loaded = keras.saving.load_model(point.file, compile=False)
        flat = convert(loaded, **config.export.convert_options, budget=budgets)
        candidates.append(Candidate(name, point_file(multiple, "tflite"), flat, loaded))
    return points, candidates


def _budgets(
    session: Session[MetaMix], callback: MetaMixCallback, model: MetaMixModel, flat: bytes
) -> tuple[list[Budget], str]:
    """The budgets and what the chosen bits cost, for `metrics.json` and in words."""
    bits, found, summary = model.bit_assignment, [], []
    if not any(isinstance(given, Bops) for given in callback.budgets):
        summary.append(f"BOPs {bops(model, bits):,}")
    for given in callback.budgets:
        priced = given.priced(model)
        budget = Budget(cost=priced.log, limit=priced.limit, found=priced.total(bits))
        cost, limit = budget_text(given, budget.found), budget_text(given, budget.limit)
        if isinstance(given, Latency):
            search, origin = session.config.search, dict(given.table.origin)
            source = search.latency_table or TABLE
            budget = dataclasses.replace(budget, source=source, origin=origin)
            compiled = ""
            if search.accelerator:
                vela = ethosu.compiler(ethosu.Options(search.accelerator))
                written = vela.compile("model.tflite", flat).microseconds
                budget = dataclasses.replace(budget, written=written)
                compiled = f", {budget_text(given, written)} compiled,"
            summary.append(f"predicted latency {cost}{compiled} of {limit}")
        elif isinstance(given, Size):
            budget = dataclasses.replace(budget, written=len(flat))
            summary.append(f"file {len(flat):,} bytes, predicted {cost}, of {limit}")
        else:
            summary.append(f"BOPs {budget.found:,} of {budget.limit:,.0f}")
        found.append(budget)
    return found, "; ".join([*summary, ""])
