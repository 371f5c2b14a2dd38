"""Interpreter and CompiledModel give the same values; weight caches; batches and threads."""

import importlib.metadata
import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import keras_metamix as kmm
import metamix_tflite as mt
from metamix_tflite.run import weight_cache
from metamix_tflite.run.runner import ENGINES

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import arm64_operators

CACHES = ("", ":memory", "folder")


@pytest.fixture(scope="module")
def points(resnet):
    """A file of three points, two of which have the same bits: (images, bits, file, expected)."""
    model, images, _, bits = resnet
    few = {name: min(count, 3) for name, count in bits.weight_bits.items()}
    low = kmm.BitAssignment(bits.activation_bits, few | {"stem": 8, "logits": 8})
    each = {"low": low, "high": bits, "again": bits}
    flat = mt.convert(model, operating_points=each, golden=0)
    expected = {}
    for name, chosen in (("low", low), ("high", bits)):
        model.set_bits(chosen)
        expected[name] = np.asarray(kmm.fold_batch_norm(model)(images[:8]))
    return images[:8], flat, expected | {"again": expected["high"]}


@pytest.fixture(scope="module")
def transposed():
    """A file whose TRANSPOSE_CONV has the batch in a constant, with images."""
    flat = arm64_operators.convert(arm64_operators.FORMS["TRANSPOSE_CONV"], 0)
    return flat, np.random.default_rng(0).normal(size=(8, *arm64_operators.SHAPE)).astype("f")


# --- the engines ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["fast", "smallest", "int8 ends"])
def file(request, resnet):
    """The small ResNet in each container, and with integer ends."""
    if request.param == "int8 ends":
        return mt.convert(resnet[0], io="int8", golden=0), True
    return mt.convert(resnet[0], weight_container=request.param, golden=0), request.param == "fast"


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
def test_both_engines_give_the_same_values(file, kernels):
    flat, whole = file
    first, second = (mt.Runner(flat, kernels=kernels, engine=engine) for engine in ENGINES)
    (detail,) = first.input_details
    codes = np.random.default_rng(0).integers(-128, 128, (6, *detail["shape"][1:]))
    codes = codes.astype(detail["dtype"])
    np.testing.assert_array_equal(first.predict(codes), second.predict(codes))
    assert first.delegated is second.delegated is (kernels == "xnnpack" and whole)
    assert (first.partitions == 1) is second.delegated
    assert second.partitions == (1 if second.delegated else None)
    for key in ("shape", "dtype"):
        np.testing.assert_array_equal(detail[key], second.input_details[0][key])


def test_several_inputs_and_outputs_keep_their_order():
    names = ("zebra", "ant")
    zebra, ant = (keras.Input((6, 6, 2), name=name) for name in names)
    first = keras.layers.Conv2D(4, 3, padding="same", name="z_first")(ant)
    total = keras.layers.Add(name="total")([first, keras.layers.Conv2D(4, 1, name="conv")(zebra)])
    outputs = {"late": keras.layers.Conv2D(3, 1, name="late")(total), "early": first}
    source = keras.Model([zebra, ant], outputs, name="several")
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(3, 6, 6, 2)).astype(np.float32) for _ in names]
    model = kmm.QuantizedModel.from_float(source, activation_bits=8, weight_bits=4)
    kmm.calibrate(model, images)
    flat = mt.convert(model, golden=0)
    one, other = (mt.Runner(flat, engine=engine).predict(images) for engine in ENGINES)
    assert [*one] == [*other]
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])
    point = mt.convert(model, operating_points={"a": model.bit_assignment}, golden=0)
    both = mt.OperatingPointRunner(point, engine="compiled").predict(images)
    np.testing.assert_array_equal(both["late"], one["late"])


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((1, 8, 8, 1), np.int32), "int32 of shape (1, 8, 8, 1)"),
        (np.zeros((1, 8, 8, 1)), "float64 of shape (1, 8, 8, 1)"),
        (np.zeros((1, 8, 4, 1), np.float32), "float32 of shape (1, 8, 4, 1)"),
        (np.zeros((2, 8, 8, 1), np.float32), "float32 of shape (2, 8, 8, 1)"),
    ],
)
def test_arrays_that_a_compiled_model_would_misread_are_refused(array, found, resnet):
    runner = mt.Runner(resnet[2], engine="compiled")
    with pytest.raises(ValueError) as raised:
        runner.invoke(array)
    wanted = "input 'image': expected float32 of shape (1, 8, 8, 1), found "
    assert str(raised.value) == wanted + found + "."
    with pytest.raises(ValueError, match="expected an array for each of 1 inputs, found 0"):
        runner.invoke()


@pytest.mark.parametrize("make", [mt.Runner, mt.OperatingPointRunner])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"engine": "both"},
            r"engine: expected one of \['interpreter', 'compiled'\], found 'both'",
        ),
        (
            {"engine": "compiled", "weight_cache": "none"},
            "expected ':memory' or a folder, found no",
        ),
        ({"weight_cache": ":memory"}, "weight_cache: expected engine='compiled' beside it, found"),
        (
            {"engine": "compiled", "weight_cache": "none"},
            "expected ':memory' or a folder, found no",
        ),
    ],
)
def test_bad_engines_and_caches_are_named(make, arguments, message, points):
    signature = {"signature": "low"} if make is mt.Runner else {}
    with pytest.raises((ValueError, NotADirectoryError), match=message):
        make(points[1], **arguments, **signature)


def test_a_cache_beside_other_kernels_and_a_refused_file_are_named(resnet, remake, tmp_path):
    with pytest.raises(ValueError, match="expected 'xnnpack' or 'builtin' beside engine='compi"):
        mt.Runner(resnet[2], kernels="reference", engine="compiled")
    with pytest.raises(ValueError, match="weight_cache: expected kernels='xnnpack' beside it"):
        mt.Runner(resnet[2], kernels="builtin", engine="compiled", weight_cache=":memory")

    def edit(model):
        model.operatorCodes[0].version = 99

    with pytest.raises(ValueError, match=r"Expected a .tflite that LiteRT runs, found \d+ bytes"):
        mt.Runner(remake(resnet[2], edit), engine="compiled", weight_cache=tmp_path)
    assert not list(tmp_path.iterdir())


# --- weight caches -------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", CACHES)
def test_points_of_one_compiled_model(cache, points, tmp_path):
    images, flat, expected = points
    chosen = {"": None, "folder": tmp_path}.get(cache, cache)
    for _ in range(2 if cache == "folder" else 1):  # made, then opened
        runner = mt.OperatingPointRunner(flat, engine="compiled", weight_cache=chosen)
        for name in ("high", "low", "again", "low"):
            runner.select(name)
            np.testing.assert_array_equal(runner.predict(images), expected[name])
            np.testing.assert_array_equal(runner.invoke(images)[0], expected[name])
    assert len(list(tmp_path.iterdir())) == (cache == "folder")


def test_points_share_packed_weights(points, tmp_path):
    _, flat, _ = points
    sizes = {}
    for name in ("high", None):
        folder = tmp_path / str(name)
        folder.mkdir()
        if name is None:
            mt.OperatingPointRunner(flat, engine="compiled", weight_cache=folder)
        else:
            mt.Runner(flat, signature=name, engine="compiled", weight_cache=folder)
        (made,) = folder.iterdir()
        sizes[name] = made.stat().st_size
    assert sizes["high"] < sizes[None] < 2 * sizes["high"]  # of three points, two of other weights


def test_a_cache_file_is_its_file_s_alone(resnet, remake, tmp_path):
    def edit(model):  # as the next training run of the network
        graph = model.subgraphs[0]
        (weights,) = [t for t in graph.tensors if t.name == b"stem/weights"]
        data = np.array(model.buffers[weights.buffer].data, np.uint8).view(np.int8)
        model.buffers[weights.buffer].data = (-data).view(np.uint8)

    _, images, flat, _ = resnet
    flats = [flat, remake(flat, edit)]
    expected = [mt.Runner(flat).predict(images) for flat in flats]
    assert not np.array_equal(expected[0], expected[1])
    paths = [tmp_path / weight_cache.cache_name(flat) for flat in flats]
    stamps = []
    for _ in range(2):
        for seed, flat in enumerate(flats):
            runner = mt.Runner(flat, engine="compiled", weight_cache=tmp_path)
            np.testing.assert_array_equal(runner.predict(images), expected[seed])
        stamps.append([path.stat().st_mtime_ns for path in paths])
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert stamps[0] == stamps[1]
    # What the name is for: LiteRT itself takes any weights of the structure.
    shutil.copy(paths[0], paths[1])
    deceived = mt.Runner(flats[1], engine="compiled", weight_cache=tmp_path).predict(images)
    assert not np.array_equal(deceived, expected[1])


def test_a_cache_serves_every_batch_and_damage_is_mended(resnet, tmp_path):
    _, images, flat, _ = resnet
    expected = mt.Runner(flat).predict(images[:8])
    settings = {"engine": "compiled", "weight_cache": tmp_path}
    for size in (8, 1, 3):
        runner = mt.Runner(flat, batch_size=size, **settings)
        np.testing.assert_array_equal(runner.predict(images[:8]), expected)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2]):
        path.unlink()
        path.write_bytes(damaged)
        runner = mt.Runner(flat, **settings)
        np.testing.assert_array_equal(runner.predict(images[:8]), expected)
        assert path.stat().st_size == len(whole)


def test_the_name_is_of_all_that_packed_weights_depend_on(monkeypatch):
    found = {weight_cache.cache_name(b"one"), weight_cache.cache_name(b"two")}
    with monkeypatch.context() as other:
        other.setattr(weight_cache, "_cpu", lambda: "another CPU")
        found.add(weight_cache.cache_name(b"one"))
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "9.9")
    assert len(found | {weight_cache.cache_name(b"one")}) == 4
    assert weight_cache.cache_name(b"one") == weight_cache.cache_name(b"one")


# --- batches and threads -------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batches_and_threads_change_no_value(batch, threads, engine, points, transposed):
    images, flat, expected = points
    settings = {"batch_size": batch, "threads": threads, "engine": engine}
    for name, values in expected.items():
        runner = mt.Runner(flat, signature=name, **settings)
        assert (runner.delegated, runner.partitions) == (True, 1)
        np.testing.assert_array_equal(runner.predict(images), values)
    flat, images = transposed
    runner = mt.Runner(flat, **settings)
    assert (runner.delegated, runner.partitions) == (True, 1)
    np.testing.assert_array_equal(runner.predict(images), mt.Runner(flat).predict(images))


@pytest.mark.parametrize("threads", [1, 4])
def test_a_batch_in_the_file_s_own_signature(threads, points):
    # As a user of LiteRT alone runs it, whose first call resizes the network.
    images, flat, expected = points
    interpreter = Interpreter(model_content=flat, num_threads=threads)
    for name, values in expected.items():
        (found,) = interpreter.get_signature_runner(name)(image=images).values()
        np.testing.assert_array_equal(found, values)
    operators = [op["op_name"] for op in interpreter._get_ops_details()]  # the first subgraph's
    assert operators.count("DELEGATE") == 1
