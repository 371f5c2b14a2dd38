"""Bit-Mixer in an experiment: three stages, operating points, one file with a signature each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_metamix.assignment import BitAssignment
from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.bitmixer.operating_points import (
    OperatingPoint,
    choose_points,
    cost_axis,
    uniform_points,
)
from keras_metamix.cost import Bops, Budget, Latency, Size
from keras_metamix.launch.budget import naming_table
from keras_metamix.launch.comparison.stock_converter import float_file
from keras_metamix.launch.config import BitMixer
from keras_metamix.launch.datasets import Data
from keras_metamix.launch.results import (
    Candidate,
    Outcome,
    layer_rows,
    training_run,
)
from keras_metamix.launch.session import Session
from keras_metamix.launch.training import search_space, train_mixer
from keras_metamix.report.bitmixer_page import draw_pareto
from keras_metamix.report.results import Epoch, Mixer, Point, UniformPoint
from metamix_tflite import convert, verify

_KINDS: dict[str, Any] = {"bops": Bops, "size": Size}  # of config.mixer.cost


def check(session: Session[BitMixer], float_model: keras.Model) -> None:
    """Finds out what is wrong with the config before hours of training.

    Raises:
      ValueError: a latency table of another model; names it.
    """
    config = session.config
    model = BitMixerModel.from_float(float_model, search_space(config), config.mixer.batch_norm)
    with naming_table(config):
        _budget(session, 1.0).priced(model)


def _budget(session: Session[BitMixer], share: float) -> Budget:
    """A share of the way from the fewest bits' cost to that of the most."""
    if session.table is not None:
        return Latency(session.table, share=share)
    return _KINDS[session.config.mixer.cost](share=share)


def run(session: Session[BitMixer], float_model: keras.Model) -> Outcome:
    """Trains, chooses operating points and exports them."""
    config, data = session.config, session.data
    mixer, container = config.mixer, config.export.weight_container
    model, lines = train_mixer(session, float_model)

    session.say("operating points")
    shares = sorted(mixer.operating_points.items(), key=lambda item: -item[1])
    budgets = {name: _budget(session, share) for name, share in shares}
    front = {
        f"front {number}": _budget(session, float(share))
        for number, share in enumerate(np.linspace(0, 1, mixer.front))
    }
    batches = -(-mixer.images // config.train.batch_size)
    known = data.train.take(batches).cache()  # the test images choose nothing
    chosen = choose_points(model, known, budgets | front, mixer.method)
    points = {name: chosen[name].bits for name in budgets}
    limits = {name: limit.priced(model).limit for name, limit in (budgets | front).items()}

    session.say("export, verification, benchmark")
    told = training_run(config, lines.records)
    flat = convert(model, container, operating_points=points, run=told)
    graphs = verify(flat, points)
    candidates = [Candidate("float", "float.tflite", float_file(float_model), float_model)]
    candidates += [
        Candidate(name, "model.tflite", flat, model, name, bits) for name, bits in points.items()
    ]
    last = list(points)[-1]
    separate = sum(
        len(convert(model, container, operating_points={name: bits}))
        for name, bits in points.items()
    )
    whole = _budget(session, 1.0)
    found = Mixer(
        unit=cost_axis(whole),
        points=_measured(model, data, chosen, limits, set(points)),
        uniform=[
            UniformPoint(bits=bits, cost=point.cost, test_accuracy=point.metrics["accuracy"])
            for bits, point in uniform_points(model, data.test, whole).items()
        ],
        separate_bytes=separate,
    )
    notes = [
        f"One file of {len(flat):,} bytes holds {len(points)} signatures; as files of their own "
        f"they take {separate:,}.",
        f"The layers are those of operating point {last!r}.",
    ]
    notes += [
        f"Uniform {point.bits} bits: {point.test_accuracy:.2%} of the test images, training graph."
        for point in found.uniform
    ]
    if session.table is not None:
        notes += [
            f"Operating point {name!r}: {chosen[name].cost:,.1f} us predicted by "
            f"{mixer.latency_table}, of a budget of {limits[name]:,.1f} us."
            for name in budgets
        ]
    files: dict[str, Any] = {f"{name}.bits.json": bits.save for name, bits in points.items()}
    figure = draw_pareto(found)
    files["pareto.png"] = lambda path: figure.savefig(path, format="png", facecolor="white")
    return Outcome(
        model,
        candidates,
        layers=layer_rows(graphs[last], model, points[last]),
        epochs=[Epoch(**record) for record in lines.records],
        mixer=found,
        files=files,
        notes=tuple(notes),
    )


def _measured(
    model: BitMixerModel,
    data: Data,
    points: Mapping[str, OperatingPoint],
    limits: Mapping[str, float],
    named: set[str],
) -> list[Point]:
    """The named operating points, and the others whose bits are new, with their test accuracy."""
    found: dict[tuple[int, ...], float] = {}
    rows = []
    for name, point in points.items():
        bits = tuple(point.bits.activation_bits.values())
        if bits in found and name not in named:
            continue
        if bits not in found:
            found[bits] = _accuracy(model, data, point.bits)
        label = name if name in named else ""
        rows.append(
            Point(name=label, cost=point.cost, budget=limits[name], test_accuracy=found[bits])
        )
    return rows


def _accuracy(model: BitMixerModel, data: Data, bits: BitAssignment) -> float:
    before = model.bit_assignment
    model.set_bits(bits)
    found: Any = model.evaluate(data.test, verbose=0, return_dict=True)
    model.set_bits(before)
    return float(found["accuracy"])
