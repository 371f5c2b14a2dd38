"""Activation instability beside NumPy, and the variance of a quantized Gaussian beside a draw."""

import keras
import numpy as np
import pytest

import keras_metamix as kmm
from keras_metamix.layers.grid import activation_range
from keras_metamix.metamix.instability import (
    DrawnBitsModel,
    RunningVariances,
    channel_variances,
    instability,
    quantized_gaussian_variance,
    quantizer_inputs,
)

SPACE = kmm.SearchSpace((8, 4, 2), 4)


def _quantized(x, step, low, high):
    return np.clip(np.rint(x / step), low, high) * step


def test_variances_are_those_of_the_layer_at_each_bit_width(metamix, data):
    """The second layer's, whose input is 8 bits at the stem whatever the searched bits are."""
    model = metamix(SPACE)
    images, before = data[0], [np.array(v) for v in model.variables]
    batches = [images[:12], images[12:]]
    found = channel_variances(model, batches)
    assert [*found] == ["stem", "depthwise", "project"]
    assert all([*by_bits] == [8, 4, 2] for by_bits in found.values())
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)

    stem, depthwise = model.mac_layers[0], model.mac_layers[1]
    quantizer, steps = depthwise.input_quantizer, depthwise.input_quantizer.steps()
    for number, bits in enumerate((8, 4, 2)):
        variances = []
        for batch in batches:
            step, low, high = (float(v) for v in stem.input_quantizer.assigned_grid())
            product = keras.ops.conv(_quantized(batch, step, low, high), stem.kernel, 2, "same")
            product = np.float64(product)
            mean, variance = product.mean((0, 1, 2)), product.var((0, 1, 2))
            normal = (product - mean) / np.sqrt(variance + stem.norm.epsilon)
            normal = normal * np.array(stem.norm.gamma) + np.array(stem.norm.beta)
            rectified = np.maximum(normal, 0)
            ends = activation_range(bits, quantizer.sign)
            read = _quantized(rectified, float(steps[number]), *ends).astype("float32")
            depth = keras.ops.depthwise_conv(read, depthwise.kernel, 1, "same")
            variances.append(np.float64(depth).var((0, 1, 2)))
        np.testing.assert_allclose(found["depthwise"][bits], np.mean(variances, 0), rtol=2e-3)
    np.testing.assert_array_equal(found["stem"][8], found["stem"][2])


def test_the_metric_is_the_mean_of_logarithms():
    variances = {8: np.array([1.0, 2.0, 0.0]), 4: np.array([2.0, 1.0, 3.0]), 2: np.ones(3)}
    found = instability(variances)
    assert found == pytest.approx({4: np.log(2), 2: np.log(2) / 2})  # the third has no signal
    dead = instability({8: np.zeros(2), 4: np.ones(2)})
    assert [*dead] == [4] and np.isnan(dead[4])


def test_weights_are_quantized_where_that_is_asked(metamix, data):
    model = metamix(SPACE)
    in_float, quantized = (
        channel_variances(model, [data[0]], weights)["project"][8]
        for weights in ("float", "quantized")
    )
    assert not np.allclose(in_float, quantized, rtol=1e-3)
    for layer in model.mac_layers:  # onto its own grid, and then quantizing changes nothing
        layer.kernel.assign(layer.weight_quantizer(layer.kernel))
    in_float, quantized = (
        channel_variances(model, [data[0]], weights)["project"]
        for weights in ("float", "quantized")
    )
    for bits in in_float:
        np.testing.assert_allclose(in_float[bits], quantized[bits], rtol=1e-5)


def test_what_quantizers_read(metamix, data):
    """The first reads what follows from the stem, whose bits are fixed; the second does not."""
    model = metamix(SPACE)
    found = quantizer_inputs(model, data[0])
    assert [*found] == ["depthwise", "project"]
    stem = model.mac_layers[0]
    image = _quantized(data[0], *(float(v) for v in stem.input_quantizer.assigned_grid()))
    expected = stem.norm(keras.ops.conv(image, stem.kernel, 2, "same"), training=False)
    for bits in (8, 4, 2):
        np.testing.assert_allclose(
            np.maximum(found["depthwise"][bits], 0), np.maximum(np.ravel(expected), 0), atol=1e-5
        )
    assert np.std(found["project"][2] - found["project"][8]) > 0.01


@pytest.mark.parametrize("drawn", [False, True])
def test_running_variances_are_recorded_step_by_step(tiny_model, data, loss, drawn):
    model = DrawnBitsModel.from_float(tiny_model(), SPACE)
    model.drawn = drawn
    model.compile(keras.optimizers.SGD(0.0), loss)
    kmm.calibrate(model, data[0])
    first = np.array(model.mac_layers[2].norm.moving_variance)
    recorder = RunningVariances()
    model.fit(*data, batch_size=8, epochs=1, callbacks=[recorder], shuffle=False, verbose=0)
    assert {len(record) for record in recorder.records.values()} == {3}
    now = np.array(model.mac_layers[2].norm.moving_variance)
    expected = np.exp(np.mean(np.log(now / first)))
    assert recorder.records["project"][-1] == pytest.approx(expected)


def test_the_most_bits_everywhere_are_what_is_trained_beside(tiny_model, data, loss):
    """One step of one batch moves the statistics by what that batch has at the most bits."""
    model = DrawnBitsModel.from_float(tiny_model(), SPACE)
    model.drawn = False
    model.compile(keras.optimizers.SGD(0.0), loss)
    kmm.calibrate(model, data[0])
    norm = model.mac_layers[2].norm
    first = np.array(norm.moving_variance)
    batch = channel_variances(model, [data[0][:8]])["project"][8]
    model.fit(data[0][:8], data[1][:8], batch_size=8, epochs=1, verbose=0)
    expected = norm.momentum * first + (1 - norm.momentum) * batch
    np.testing.assert_allclose(norm.moving_variance, expected, rtol=1e-4)


def test_bits_are_drawn_anew_in_each_step(tiny_model, data, loss):
    model = DrawnBitsModel.from_float(tiny_model(), SPACE)
    model.compile(keras.optimizers.SGD(0.0), loss)
    draws = []
    for step in range(30):
        model.optimizer.iterations.assign(step)
        draws.append([int(number) for number in model._draw().values()])
    assert {tuple(draw) for draw in draws} == {(a, b) for a in range(3) for b in range(3)}


@pytest.mark.parametrize(
    ("sign", "rule", "expected"),
    [
        ("signed", "lsq", [1.00, 1.03, 1.06, 1.08]),
        ("signed", "mse", None),
        ("unsigned", "lsq", None),
        ("unsigned", "mse", None),
    ],
)
def test_a_quantized_gaussian(sign, rule, expected):
    """The first row's numbers are known; all of them are those of a draw."""
    values = np.random.default_rng(0).normal(size=100_000)
    values = np.maximum(values, 0) if sign == "unsigned" else values
    found = [quantized_gaussian_variance(bits, sign, rule) for bits in (8, 4, 3, 2)]
    for bits, variance in zip((8, 4, 3, 2), found, strict=True):
        low, high = activation_range(bits, sign)
        if rule == "lsq":
            steps = [2 * np.mean(np.abs(values)) / np.sqrt(high)]
        else:
            steps = np.geomspace(0.05, 1, 60) * np.max(np.abs(values)) / high
        errors = [np.mean((values - _quantized(values, s, low, high)) ** 2) for s in steps]
        quantized = _quantized(values, steps[int(np.argmin(errors))], low, high)
        assert variance == pytest.approx(np.var(quantized) / np.var(values), abs=0.02)
    if expected:
        assert found == pytest.approx(expected, abs=0.006)
    elif rule == "mse":
        assert found == sorted(found, reverse=True)
