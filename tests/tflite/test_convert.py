"""`convert` and `parity`: the same bytes each time, outputs in order, arguments and refusals."""

import dataclasses
import json
from contextlib import nullcontext

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.layers.integer import IntegerMac
from keras_metamix.zoo.small import small_cnn, small_mobilenet
from metamix_tflite.operators import mac
from metamix_tflite.read.files import read_file


def test_parity_reports_what_was_compared(resnet):
    model, images, flat, _ = resnet
    report = mt.parity(flat, model, images)
    assert (report.differing, report.max_lsb, report.outputs) == (0, 0, 5 * len(images))
    assert report.delegated
    assert report.top1_agreement == 1.0
    assert "0 of 160 outputs differ" in str(report)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("kind", ["dataset", "endless", "generator"])
def test_parity_takes_what_evaluate_takes(kind, labels, resnet):
    model, images, flat, _ = resnet
    arrays = (images, np.zeros(len(images))) if labels else images
    batches = tf.data.Dataset.from_tensor_slices(arrays).batch(10)
    given = {"dataset": batches, "endless": batches.repeat(), "generator": iter(batches)}[kind]
    report = mt.parity(flat, model, given)
    count = 32 if kind != "endless" else 16 * 8  # every fourth batch has 2 images
    assert (report.differing, report.outputs) == (0, 5 * count)
    with pytest.raises(ValueError, match="at least one image, found none"):
        mt.parity(flat, model, batches.take(0))


def test_the_same_model_gives_the_same_bytes(resnet, tmp_path):
    model, _, flat, _ = resnet
    assert mt.convert(model) == flat
    folded = kmm.fold_batch_norm(model)
    assert mt.convert(folded) == mt.convert(folded) == flat
    model.save(tmp_path / "model.keras")
    assert mt.convert(keras.models.load_model(tmp_path / "model.keras")) == flat
    folded.save(tmp_path / "folded.keras")
    assert mt.convert(keras.models.load_model(tmp_path / "folded.keras")) == flat


def test_metadata_declares_the_layers(resnet):
    _, _, flat, bits = resnet
    declared = read_file(flat).metadata
    assert json.loads(json.dumps(declared)) == declared
    assert (declared["io"], declared["weight_container"]) == ("float32", "fast")
    assert {n: e["weight_bits"] for n, e in declared["layers"].items()} == bits.weight_bits


@pytest.mark.parametrize(
    ("window", "strides", "whole"),
    [
        (2, 2, True),
        (3, 2, True),
        ((3, 2), (1, 2), True),
        (1, 2, True),  # a convolution of one pixel
        (2, 3, False),
        ((2, 1), 2, False),
        ((1, 3), (2, 1), False),
    ],
)
def test_a_max_pool_that_xnnpack_lacks_is_said(window, strides, whole):
    keras.utils.set_random_seed(0)
    image = keras.Input((9, 9, 2), name="image")
    x = layers.MaxPooling2D(window, strides, name="pool")(layers.Conv2D(4, 3)(image))
    source = keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))
    model, images = kmm.QuantizedModel.from_float(source), np.random.normal(size=(9, 9, 9, 2))
    kmm.calibrate(model, images)
    said = pytest.warns(UserWarning, match="'pool': XNNPACK has no max pool.*Strides of at most")
    with nullcontext() if whole else said:
        flat = mt.convert(model)
    mt.verify(flat, model.bit_assignment)
    report = mt.parity(flat, model, images)
    assert (report.differing, report.delegated) == (0, whole)
    (row,) = [row for row in kmm.explain(source).rows if row.name == "pool"]
    assert (row.xnnpack, "not run by XNNPACK" in row.note) == (whole, not whole)
    mt.convert(model, "ethosu", golden=0)  # not for XNNPACK: no word


def test_two_outputs(quantized, differing):
    keras.utils.set_random_seed(0)
    x = image = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    first = layers.Conv2D(3, 1, name="first")(x)
    pooled = layers.GlobalAveragePooling2D(name="pool")(x)
    second = layers.Dense(5, name="second")(pooled)
    model, images = quantized(keras.Model(image, [first, second], name="two_outputs"), 0)
    for io in ("float32", "int8"):
        flat = mt.convert(model, io=io)
        mt.verify(flat, model.bit_assignment)
        shapes = [read_file(flat).tensors[i].shape for i in read_file(flat).outputs]
        assert shapes == [(1, 4, 4, 3), (1, 5)]
    flat = mt.convert(model)
    assert differing(flat, kmm.fold_batch_norm(model), images) == (0, True)
    report = mt.parity(flat, model, images)
    assert (report.differing, report.outputs) == (0, len(images) * (4 * 4 * 3 + 5))


def test_two_inputs():
    names = ("image", "other")
    image, other = (keras.Input((6, 6, 2), name=name) for name in names)
    first = layers.Conv2D(4, 3, padding="same", name="first")(other)  # read first, given second
    total = layers.Add(name="total")([first, layers.Conv2D(4, 1, name="second")(image)])
    logits = layers.Dense(3, name="logits")(layers.Flatten(name="flatten")(total))
    source = keras.Model([image, other], logits, name="two_inputs")
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(8, 6, 6, 2)).astype(np.float32) for _ in names]
    model = kmm.MetaMixModel.from_float(source, kmm.SearchSpace())
    kmm.calibrate(model, images)
    model.set_bits(kmm.uniform_assignment(source, activation_bits=4, weight_bits=4, edge_bits=8))
    flat = mt.convert(model)
    mt.verify(flat, model.bit_assignment)
    (found,) = mt.Runner(flat, batch_size=8).invoke(*images)
    np.testing.assert_array_equal(found, kmm.fold_batch_norm(model)(images))
    graph = mt.verify(mt.convert(model, io="int8"), model.bit_assignment)
    read_by = {o.inputs[0]: graph.tensors[o.outputs[0]].name for o in graph.operators}
    assert [read_by[i] for i in graph.inputs] == ["second_input", "first"]


@pytest.mark.parametrize(("factor", "refused"), [(300.0, True), (100.0, False), (0.0005, True)])
def test_a_sum_that_xnnpack_leaves_to_other_kernels_is_refused(factor, refused, quantized):
    x = image = keras.Input((6, 6, 2), name="image")
    stem = layers.Conv2D(4, 3, padding="same", activation="relu", name="stem")(x)
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="branch")(stem)
    x = layers.Conv2D(4, 3, name="after")(layers.Add(name="total")([stem, x]))
    model, _ = quantized(keras.Model(image, x, name="far_scales"), 0)
    folded = kmm.fold_batch_norm(model)
    total = folded.get_layer("total")
    step = total.output_grid.scale * factor
    first = dataclasses.replace(total.input_grids[0], scale=step, step=step)
    total.input_grids = (first, total.input_grids[1])
    with pytest.raises(ValueError, match="'total': .*outside") if refused else nullcontext():
        mt.convert(folded)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_container": "tiny"}, r"weight_container: expected one of .*'smallest'.*'tiny'"),
        ({"io": "int4"}, "io: expected one of .* found 'int4'"),
    ],
)
def test_bad_arguments_are_named(arguments, message, resnet):
    with pytest.raises(ValueError, match=message):
        mt.convert(resnet[0], **arguments)


def test_a_float_model_is_refused():
    with pytest.raises(TypeError, match="BitMixerModel, found Functional"):
        mt.convert(small_cnn((8, 8, 1), width=4))


def test_a_model_that_is_not_ready_is_refused():
    model = kmm.MetaMixModel.from_float(small_cnn((8, 8, 1), width=4))
    with pytest.raises(ValueError, match="'bit_meta'"):
        mt.convert(model)


def test_a_step_that_has_run_away_is_refused(quantized):
    model, _ = quantized(small_cnn((8, 8, 1), width=4), 0)
    quantizer = model.mac_layers[1].input_quantizer
    quantizer.log_step.assign(np.full(quantizer.log_step.shape, -60.0))
    with pytest.raises(ValueError, match="'conv1'.*256"):
        mt.convert(model)


@pytest.mark.parametrize("images", [np.zeros((0, 8, 8, 1)), np.full((2, 8, 8, 1), np.nan)])
def test_parity_refuses_images_that_tell_nothing(images, resnet):
    model, _, flat, _ = resnet
    with pytest.raises(ValueError, match="image"):
        mt.parity(flat, model, images)


def test_a_layer_that_is_called_twice_is_verified_by_its_own_name(quantized):
    image = keras.Input((8, 8, 3), name="image")
    conv = layers.Conv2D(4, 3, padding="same", activation="relu", name="twice")
    pool = layers.MaxPooling2D(2, name="pool")
    x = layers.Conv2D(4, 1, activation="relu", name="first")(image)
    x = pool(conv(pool(conv(x))))
    x = layers.Dense(3, name="last")(layers.Flatten(name="flat")(x))
    model, images = quantized(keras.Model(image, x, name="shared"), 0)
    bits, flat = model.bit_assignment, mt.convert(model)
    mt.verify(flat, bits)
    report = mt.parity(flat, model, images)
    assert report.differing == 0 and report.delegated
    fewer = {"twice": bits.activation_bits["twice"] - 1}
    other = kmm.BitAssignment(bits.activation_bits | fewer, bits.weight_bits)
    with pytest.raises(mt.VerificationError, match="'twice'.*activation bits"):
        mt.verify(flat, other)


def test_sums_that_int4_kernels_for_arm_cannot_hold_are_refused(quantized, monkeypatch):
    # No network of ours reaches 2^27: the limit comes down to the largest sum of its INT4 layers.
    model, _ = quantized(small_mobilenet(), 0)
    flat = mt.convert(model)
    sums = {
        layer.name: layer.largest_sum()
        for layer in kmm.fold_batch_norm(model).layers
        if isinstance(layer, IntegerMac)
    }
    held = read_file(flat).metadata["layers"]
    largest = max(sums[name] for name, entry in held.items() if entry["container"] == "INT4")
    monkeypatch.setattr(mac, "_LARGEST_SMALL_SUM", largest + 1)
    assert mt.convert(model) == flat
    monkeypatch.setattr(mac, "_LARGEST_SMALL_SUM", largest)
    with pytest.raises(ValueError, match=f"sums may reach {largest:,}, and weights of few"):
        mt.convert(model)
