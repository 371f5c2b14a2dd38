"""Bit-Mixer in an experiment: three stages, operating points, one file with a signature each."""

from __future__ import annotations

import functools

import keras
import numpy as np

from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.bitmixer.operating_points import (
    choose_points,
    measured_points,
    uniform_points,
)
from keras_metamix.cost import Budget, Size
from keras_metamix.launch.budget import budget_of, naming_kind
from keras_metamix.launch.config import BitMixer
from keras_metamix.launch.datasets import task_of
from keras_metamix.launch.results import (
    Candidate,
    Outcome,
    layer_rows,
    training_run,
)
from keras_metamix.launch.session import Session
from keras_metamix.launch.training import search_space, train_mixer
from keras_metamix.points import cost_axis
from keras_metamix.report import save_figure
from keras_metamix.report.plots import operating_points
from keras_metamix.report.results import Mixer, Point, UniformPoint
from metamix_tflite import convert, verify


def check(session: Session[BitMixer], float_model: keras.Model) -> None:
    """Finds out what is wrong with the config before hours of training.

    Raises:
      ValueError: a latency table of another model; names it.
    """
    config = session.config
    model = BitMixerModel.from_float(float_model, search_space(config), config.mixer.batch_norm)
    for kind, budget in zip(config.mixer.kinds, _budgets(session, 1.0), strict=True):
        with naming_kind(config, kind):
            budget.priced(model)


def _budgets(session: Session[BitMixer], share: float) -> list[Budget]:
    """Of each kind a share of the way from the fewest bits' cost to that of the most."""
    config = session.config
    return [budget_of(kind, config, session.table, share=share) for kind in config.mixer.kinds]


def run(session: Session[BitMixer], float_model: keras.Model) -> Outcome:
    """Trains, chooses operating points and exports them."""
    config, data = session.config, session.data
    mixer, target, metric = config.mixer, config.export.convert_options, task_of(config).metric
    model, epochs = train_mixer(session, float_model)

    session.say("operating points")
    shares = sorted(mixer.operating_points.items(), key=lambda item: -item[1])
    budgets = {name: _budgets(session, share) for name, share in shares}
    front = np.linspace(0, 1, mixer.front)
    front = {f"front {n}": _budgets(session, float(share)) for n, share in enumerate(front)}
    batches = -(-mixer.images // config.train.batch_size)
    known = data.train.take(batches).cache()  # the test images choose nothing
    chosen = choose_points(model, known, budgets | front, mixer.method)
    bits = {name: chosen[name].bits for name in budgets}
    drawn = dict(bits)
    for name in front:  # those whose bits are new
        if chosen[name].bits not in drawn.values():
            drawn[name] = chosen[name].bits
    limits = {name: of[0].priced(model).limit for name, of in (budgets | front).items()}

    session.say("export, verification, benchmark")
    run = training_run(config, epochs)
    flat = convert(model, **target, operating_points=bits, run=run)
    graphs = verify(flat, bits)
    *_, last = bits
    alone = {n: convert(model, **target, operating_points={n: bits[n]}) for n in bits}
    whole, *_ = _budgets(session, 1.0)
    found = Mixer(
        unit=cost_axis(whole),
        points=[
            Point(
                name=name if name in bits else "",
                cost=point.cost,
                budget=limits[name],
                score=point.metrics[metric.key],
            )
            for name, point in measured_points(model, data.test, drawn, whole).items()
        ],
        uniform=[
            UniformPoint(bits=number, cost=point.cost, score=point.metrics[metric.key])
            for number, point in uniform_points(model, data.test, whole).items()
        ],
        separate_bytes=sum(map(len, alone.values())),
    )
    notes = [
        f"Operating point {name!r}: {chosen[name].cost:,.1f} us predicted by "
        f"{mixer.latency_table}, of a budget of {limits[name]:,.1f} us."
        for name in (budgets if mixer.kinds[0] == "latency" else ())
    ]
    for name, given in budgets.items():
        for size in (one.priced(model) for one in given if isinstance(one, Size)):
            found_bytes = len(alone[name])
            met = "within" if found_bytes <= size.limit else "above"
            notes.append(
                f"Operating point {name!r}: a file of its own has {found_bytes:,} bytes, "
                f"{size.total(bits[name]):,.0f} predicted, {met} its budget of {size.limit:,.0f}."
            )
    return Outcome(
        model,
        [Candidate(name, "model.tflite", flat, model, name, bits[name]) for name in bits],
        layers=layer_rows(graphs[last], model, bits[last]),
        epochs=epochs,
        mixer=found,
        files={
            **{f"{name}.bits.json": bits[name].save for name in bits},
            "pareto.png": functools.partial(save_figure, operating_points(found, metric.name)),
        },
        notes=tuple(notes),
    )
