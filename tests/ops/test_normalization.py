"""Batch norm of a training step against its closed form in float64."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port

from keras_metamix.ops import batch_norm, normalization

EPSILON = 1e-3
# Rows of pixels that divide into blocks, and that do not; small images, which TensorFlow computes.
SHAPES = [(6, 16, 16, 8), (5, 14, 14, 64), (7, 13, 13, 24), (3, 7, 7, 129), (4, 3, 3, 5)]


def drawn(shape, mean=3.0, deviation=0.5):
    """Values far from 0, upstream gradients, gamma and beta."""
    generator = np.random.default_rng(0)
    centre = generator.normal(0, mean, shape[-1])
    values = generator.normal(centre, deviation, shape)
    upstream = generator.normal(0.1, 1, shape)
    gamma, beta = (generator.normal(1, 1, shape[-1]) for _ in range(2))
    return [v.astype(np.float32) for v in (values, upstream, gamma, beta)]


def closed_form(x, upstream, gamma, beta):
    """Outputs, mean, variance and the gradients of x, gamma and beta."""
    x, upstream = x.astype(float), upstream.astype(float)
    axes, count = (0, 1, 2), x.size / x.shape[-1]
    mean, variance = x.mean(axes), x.var(axes)
    inverse = 1 / np.sqrt(variance + EPSILON)
    normal = (x - mean) * inverse
    dbeta, dgamma = upstream.sum(axes), (upstream * normal).sum(axes)
    dx = gamma * inverse * (upstream - dbeta / count - normal * dgamma / count)
    return gamma * normal + beta, mean, variance, dx, dgamma, dbeta


def computed(x, upstream, gamma, beta):
    with tf.GradientTape() as tape:
        tape.watch([x, gamma, beta])
        outputs, mean, variance = batch_norm(x, gamma, beta, EPSILON)
        total = tf.reduce_sum(outputs * upstream)
    return outputs, mean, variance, *tape.gradient(total, [x, gamma, beta])


@pytest.mark.parametrize("how", ["eager", "graph", "compiled"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_closed_form(shape, how, library_has_batch_norm):
    if library_has_batch_norm and how == "compiled":
        pytest.skip("XLA's own batch norm is TensorFlow's matter")
    tolerance = 5e-5 if library_has_batch_norm else 1e-5
    values = drawn(shape)
    function = computed
    if how != "eager":
        unknown = [tf.TensorSpec((None, *shape[1:]))] * 2 + [tf.TensorSpec(shape[-1:])] * 2
        function = tf.function(computed, unknown, jit_compile=how == "compiled")
    found = function(*map(tf.constant, values))
    names = ["outputs", "mean", "variance", "dx", "dgamma", "dbeta"]
    for name, ours, exact in zip(names, found, closed_form(*values), strict=True):
        np.testing.assert_allclose(
            ours, exact, rtol=0, atol=tolerance * np.max(np.abs(exact)), err_msg=name
        )


def test_whose_kernel_it_is(library_has_batch_norm):
    x, _, gamma, beta = map(tf.constant, drawn((5, 14, 14, 64)))
    operations = tf.function(lambda: batch_norm(x, gamma, beta, EPSILON)).get_concrete_function()
    kinds = {op.type for op in operations.graph.get_operations()}
    assert ("FusedBatchNormV3" in kinds) == library_has_batch_norm


def test_library_has_it_on_gpus_and_by_onednn(monkeypatch):
    for onednn, devices in ((False, []), (True, []), (False, ["GPU:0"])):
        monkeypatch.setattr(_pywrap_util_port, "IsMklEnabled", lambda on=onednn: on)
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind, found=devices: found)
        assert normalization._library_has_it() == (onednn or bool(devices))


def test_onednn_is_on_as_the_environment_says():
    """`IsMklEnabled` is no public name."""
    line = "from tensorflow.python.util import _pywrap_util_port as p; print(p.IsMklEnabled())"
    for value in ("0", "1"):
        environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": value}
        command = [sys.executable, "-c", line]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert found.stdout.split() == [str(value == "1" and platform.machine() == "x86_64")]


@pytest.mark.usefixtures("library_has_batch_norm")
def test_values_far_from_zero_keep_their_variance():
    """The sum of squares less the square of the sum would have lost it."""
    values = drawn((6, 16, 16, 8), mean=3000.0)
    variance = batch_norm(*map(tf.constant, (values[0], *values[2:])), EPSILON)[2]
    np.testing.assert_allclose(variance, values[0].astype(float).var((0, 1, 2)), rtol=1e-4)


@pytest.mark.usefixtures("library_has_batch_norm")
def test_the_same_values_give_the_same_bits():
    x, upstream, gamma, beta = map(tf.constant, drawn((5, 14, 14, 64)))
    once, again = (computed(x, upstream, gamma, beta) for _ in range(2))
    for first, second in zip(once, again, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.usefixtures("library_has_batch_norm")
def test_statistics_are_constants_for_gradients():
    x, _, gamma, beta = map(tf.constant, drawn((5, 14, 14, 64)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        _, mean, variance = batch_norm(x, gamma, beta, EPSILON)
        total = tf.reduce_sum(mean) + tf.reduce_sum(variance)
    np.testing.assert_array_equal(tape.gradient(total, x), tf.zeros_like(x))
