"""Measures on a finished run's network what the figures of the MetaMix paper show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_metamix.assignment import SearchSpace
from keras_metamix.batches import image_batches
from keras_metamix.calibration import calibrate, calibrate_weights
from keras_metamix.diagnosis import StopOnNonFinite
from keras_metamix.hessian import hessian_trace
from keras_metamix.launch.config import MetaMix
from keras_metamix.launch.datasets import Data, load_data, task_of
from keras_metamix.launch.finished_run import read_config, read_float_model
from keras_metamix.launch.optimization import compile_quantized, load_teacher
from keras_metamix.launch.training import search_space
from keras_metamix.metamix.instability import (
    DrawnBitsModel,
    RunningVariances,
    Weights,
    channel_variances,
    instability,
    quantized_gaussian_variance,
    quantizer_inputs,
)
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.report.analysis import Analysis, Gaussian, Instability, State, Trace

FLOAT, DRAWN, META = "float network", "random bits", "bit-meta"
_MOST_STEPS = 200  # of each training
_BATCHES = 4  # that variances are measured on
_SAMPLES = 24  # of the Hessian's trace
_BINS = 60
_GAUSSIAN_BITS = (8, 7, 6, 5, 4, 3, 2)


def analyse(run: Path, say: Callable[[str], None] = print) -> Analysis:
    """Trains the float network of a run for a moment in three ways, and measures what that does.

    Args:
      run: the folder of a finished `metamix-train` of MetaMix; nothing in it changes.
      say: takes a line for each part.

    Raises:
      OSError, ValueError: no such run, or one of another method; says what was expected.
    """
    config = read_config(run, "--analyse")
    if not isinstance(config, MetaMix):
        raise ValueError(
            f"--analyse: expected a run of MetaMix, found config.method={config.method!r} in "
            f"{run / 'config.json'}."
        )
    float_model, data = read_float_model(run, "--analyse"), load_data(config)
    found = None
    if len(search_space(config).activation_bits) > 1:
        found = _instability(config, data, float_model, say)
    say("Hessian")
    traces, note = _traces(config, data, float_model)
    gaussian = [
        Gaussian(
            grid=grid,
            rule=rule,
            bits=[*_GAUSSIAN_BITS],
            variance=[quantized_gaussian_variance(bits, grid, rule) for bits in _GAUSSIAN_BITS],
        )
        for grid in ("signed", "unsigned")
        for rule in ("lsq", "mse")
    ]
    return Analysis(instability=found, gaussian=gaussian, traces=traces, note=note)


def _instability(
    config: MetaMix, data: Data, float_model: keras.Model, say: Callable[[str], None]
) -> Instability:
    """The float network, and after as many steps at random bits and of bit-meta."""
    steps = min(_MOST_STEPS, max(config.search.meta_epochs, 1) * data.steps)
    known = list(image_batches(data.train, _BATCHES))
    space = search_space(config)
    most = f"{max(space.activation_bits)} bits"
    measured: dict[tuple[str, str], tuple[Any, Any]] = {}
    traces: dict[str, dict[str, list[float]]] = {}
    for name in (most, DRAWN, META):
        say(f"activation instability: {steps} steps, {name}")
        model = _model(config, data, float_model, name)
        calibrate(model, known[0])
        if not measured:
            measured |= _measured(FLOAT, model, known)
        traces[name] = _trained(model, data, steps)
        if name != most:
            calibrate_weights(model.network, model.weight_rule)
            measured |= _measured(name, model, known)
    changes = {key: _changes(variances) for key, (variances, _) in measured.items()}
    layer = _most_changed(measured[FLOAT, "float"][1])
    values = {key: list(inputs[layer].values()) for key, (_, inputs) in measured.items()}
    edges = _edges([part for parts in values.values() for part in parts])
    first = changes[FLOAT, "float"]
    traced = max(first, key=lambda name: first[name][-1])
    return Instability(
        bits=[*space.activation_bits],
        weight_bits=_weight_bits(space),
        states=[
            State(
                name=name,
                weights=weights,
                change=changes[name, weights],
                histogram=[
                    (np.histogram(part, edges)[0] / part.size).tolist()
                    for part in values[name, weights]
                ],
            )
            for name, weights in measured
        ],
        steps=steps,
        layer=layer,
        edges=edges.tolist(),
        traced=traced,
        traces={name: records[traced] for name, records in traces.items()},
    )


def _model(config: MetaMix, data: Data, float_model: keras.Model, name: str) -> MetaMixModel:
    """The float network's weights, compiled as for the run's bit-meta training."""
    keras.utils.set_random_seed(config.seed)
    kind = MetaMixModel if name == META else DrawnBitsModel
    model = kind.from_float(
        float_model, search_space(config), meta_weights=config.search.meta_weights
    )
    if isinstance(model, DrawnBitsModel):
        model.drawn, model.seed = name == DRAWN, config.seed
    model.meta = config.search.meta
    selection = config.search.meta_epochs + config.search.search_epochs
    teacher = load_teacher(config, float_model)
    compile_quantized(model, config, data.steps, selection, teacher)
    return model


def _trained(model: MetaMixModel, data: Data, steps: int) -> dict[str, list[float]]:
    """Trains so many steps; the running variances, see `RunningVariances.records`."""
    recorder = RunningVariances()
    callbacks = [recorder, StopOnNonFinite(data.train)]
    settings: Any = {"steps_per_epoch": steps, "shuffle": False, "verbose": 0}
    model.fit(data.train, epochs=1, callbacks=callbacks, **settings)
    return recorder.records


def _weight_bits(space: SearchSpace) -> str:
    """What quantized weights have, but at the edges."""
    if isinstance(space.weight_bits, str):
        return "the bits of the activations"
    return f"{np.max(space.weight_bits)} bits"


def _measured(
    name: str, model: MetaMixModel, known: list[Any]
) -> dict[tuple[str, str], tuple[Any, Any]]:
    """Variances, and what quantizers read, by the state's name and with weights in either form."""
    kinds: tuple[Weights, ...] = ("float", "quantized")
    return {
        (name, weights): (
            channel_variances(model, known, weights),
            quantizer_inputs(model, known[0], weights),
        )
        for weights in kinds
    }


def _changes(variances: Mapping[str, Mapping[int, np.ndarray]]) -> dict[str, list[float]]:
    """The metric of each layer that has a live channel."""
    found = {name: [*instability(of).values()] for name, of in variances.items()}
    return {n: values for n, values in found.items() if all(map(math.isfinite, values))}


def _most_changed(inputs: Mapping[str, Mapping[int, np.ndarray]]) -> str:
    """The layer whose quantizer's input changes its spread most between bit-widths."""

    def change(name: str) -> float:
        spreads = [float(np.std(part)) for part in inputs[name].values()]
        return max(spreads) / min(spreads) if min(spreads) > 0 else math.inf

    return max(inputs, key=change)


def _edges(values: list[np.ndarray]) -> np.ndarray:
    """Bins over what all but a hundredth of the values of each array span."""
    lows, highs = zip(*(np.percentile(part, [0.5, 99.5]) for part in values), strict=True)
    low, high = min(lows), max(highs)
    return np.linspace(low, high if high > low else low + 1, _BINS + 1)


def _traces(config: MetaMix, data: Data, float_model: keras.Model) -> tuple[dict[str, Trace], str]:
    """The Hessian's traces by layer, or why there are none."""
    compiled = task_of(config).compiled(keras, data.classes, config.train.label_smoothing)
    try:
        found = hessian_trace(float_model, data.train, compiled["loss"], _SAMPLES)
    except ValueError as error:
        return {}, f"The Hessian's trace was not measured: {error}"
    note = f"The Hessian's traces are estimates from {_SAMPLES} samples of each layer."
    return {n: Trace(trace=t.trace, error=t.error) for n, t in found.items()}, note
