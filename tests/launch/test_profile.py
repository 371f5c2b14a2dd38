"""`metamix-profile`: each operator timed once, sums that are whole inferences, and going on."""

import itertools
import json

import keras
import numpy as np
import pytest

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.launch import profile
from metamix_tflite.read.files import read_file
from metamix_tflite.run.latency import run_times
from metamix_tflite.write.operator_files import empty_file, operator_files

QUICK = ("--runs=3", "--warmup=1")


@pytest.fixture
def saved(folder, float_model):
    float_model.save("float.keras")
    return folder


@pytest.fixture
def profiled(saved, command):
    """The folder, with table.json in it."""
    status, out, err = command(profile, "float.keras", "--output=table.json", *QUICK)
    assert (status, err) == (0, "")
    assert "0 of " in out and "table.json: " in out
    return saved


def content(folder):
    return json.loads((folder / "table.json").read_text())


def test_every_operator_of_every_assignment_is_in_the_table(profiled, float_model, quantized):
    found = content(profiled)
    assert found["origin"] == profile.origin(1, "fast")
    assert all(us >= 0 for us in found["kernels"].values())
    model = kmm.MetaMixModel.from_float(float_model, kmm.SearchSpace((8, 4, 3), (8, 4)))
    kmm.calibrate(model, np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype("float32"))
    names = ("conv2", "conv3")
    for pairs in itertools.product([(8, 4), (3, 8), (4, 4)], repeat=2):
        bits = kmm.uniform_assignment(float_model, 8, 8)
        activation, weight = dict(bits.activation_bits), dict(bits.weight_bits)
        for name, (a, w) in zip(names, pairs, strict=True):
            activation[name], weight[name] = a, w
        bits = kmm.BitAssignment(activation, weight)
        model.set_bits(bits)
        kernels = [file.kernel for file in operator_files(mt.convert(model, golden=0))]
        assert set(kernels) <= set(found["kernels"])
        # The prices and the fixed cost are the times of the file's operators, each counted once.
        expected = sum(found["kernels"][kernel] for kernel in kernels)
        expected += float(np.median(list(found["empty_us"].values())))
        table = kmm.LatencyTable.load("table.json")
        assert table.predict(kmm.layer_costs(model), bits) == pytest.approx(expected, rel=1e-9)


def test_prices_go_by_the_kernel(profiled, float_model):
    """Activations change no INT8 kernel; nor do weights of k x k convolutions, INT8 in "fast"."""
    prices = kmm.LatencyTable.load("table.json").prices(kmm.layer_costs(float_model))
    assert len(prices["conv2"]) == 6 and len(set(prices["conv2"].values())) == 1
    assert [*prices["conv1"]] == [*prices["logits"]] == [(8, 8)]


def test_it_goes_on_where_it_was(profiled, command, monkeypatch):
    before = content(profiled)
    kept = dict(list(before["kernels"].items())[:3])
    partial = before | {"kernels": kept, "fixed_us": None}
    (profiled / "table.json").write_text(json.dumps(partial))
    with pytest.raises(ValueError, match="the same metamix-profile command goes on"):
        kmm.LatencyTable.load("table.json")
    asked = []

    def recorded(files, *arguments):
        asked.extend(files)
        return run_times(files, *arguments)

    monkeypatch.setattr(profile, "run_times", recorded)
    status, _, err = command(profile, "float.keras", "--output=table.json", *QUICK)
    assert (status, err) == (0, "")
    assert set(asked) - {""} == set(before["kernels"]) - set(kept)
    assert {k: content(profiled)["kernels"][k] for k in kept} == kept
    assert kmm.LatencyTable.load("table.json").fixed_us > 0


def test_a_stop_leaves_what_was_measured(saved, command, monkeypatch):
    monkeypatch.setattr(profile, "TOGETHER", 2)
    calls = []

    def stopping(files, *arguments):
        calls.append(files)
        if len(calls) == 3:
            raise OSError("stopped")
        return run_times(files, *arguments)

    monkeypatch.setattr(profile, "run_times", stopping)
    status, _, err = command(profile, "float.keras", "--output=table.json", *QUICK)
    assert status == 1 and "stopped" in err
    assert len(content(saved)["kernels"]) == 4 and content(saved)["fixed_us"] is None


def test_a_table_of_another_machine_is_refused_unless_asked(profiled, command):
    found = content(profiled)
    found["origin"] |= {"cpu": "another one", "runtime": "ai-edge-litert 0.0"}
    (profiled / "table.json").write_text(json.dumps(found))
    arguments = ("float.keras", "--output=table.json", *QUICK)
    status, _, err = command(profile, *arguments)
    assert status == 1 and "found one of cpu 'another one', runtime 'ai-edge-litert 0.0'" in err
    assert content(profiled) == found
    status, _, err = command(profile, *arguments, "--overwrite")
    assert (status, err) == (0, "")
    assert content(profiled)["origin"] == profile.origin(1, "fast")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device=android",), "--device: expected one of ('local', 'ethosu'), found 'android'"),
        (("--accelerator=u55",), "--accelerator: device 'local' takes --activation_bits"),
        (("--device=ethosu", "--runs=3"), "--runs: device 'ethosu' takes --activation_bits"),
        (("--device=ethosu", "--containers=fast"), "--containers: Vela takes files of 'int8'"),
        (("--device=ethosu", "--accelerator=u55"), "--accelerator: expected one of ethos-u55-32"),
        (("--runs=0",), "--runs: expected a whole number, at least 1, found 0"),
        (("--threads=0",), "--threads: expected a whole number, at least 1"),
        (("--containers=tiny",), "weight_container: expected one of"),
        (("--output=absent/table.json",), "--output: expected a folder absent, found none"),
        (("--output=float.keras",), "--output: expected a name that ends in .json"),
        (("--activation_bits=99",), "99"),
    ],
)
def test_mistakes_are_one_line(saved, command, arguments, message):
    status, out, err = command(profile, "float.keras", "--output=table.json", *arguments)
    assert (status, out, err.count("\n")) == (1, "", 1), err
    assert message in err
    assert not (saved / "table.json").exists()


def test_what_is_no_table_is_not_written_over(saved, command):
    (saved / "table.json").write_text("{}")
    status, _, err = command(profile, "float.keras", "--output=table.json", *QUICK)
    assert status == 1 and "table.json: expected a file of metamix-profile" in err
    assert (saved / "table.json").read_text() == "{}"


def test_unknown_sizes_are_refused(saved, command):
    image = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(4, 3, name="stem")(image)
    x = keras.layers.Dense(3, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(image, x).save("float.keras")
    status, _, err = command(profile, "float.keras", "--output=table.json", *QUICK)
    assert status == 1 and "Layer 'stem': the cost needs every size" in err


def test_a_quantized_model_is_refused(saved, command, quantized):
    quantized.save("quantized.keras")
    status, _, err = command(profile, "quantized.keras", "--output=table.json", *QUICK)
    assert status == 1 and "expected a float model, Functional or Sequential, found a Meta" in err


# --- files of one operator -------------------------------------------------------------------


def test_operators_alone_compute_what_they_do_in_the_file(quantized):
    """Each one run on the codes that the one before it put out gives the whole file's result."""
    flat = mt.convert(quantized, io="int8", golden=0)
    image = np.random.default_rng(0).integers(-128, 128, (1, 8, 8, 1)).astype(np.int8)
    (expected,) = mt.Runner(flat).invoke(image)
    graph, (values,) = read_file(flat), [{}]
    values[graph.inputs[0]] = image
    for operator, file in zip(graph.operators, operator_files(flat), strict=True):
        read = [values[i] for i in dict.fromkeys(operator.inputs) if graph.tensors[i].data is None]
        (values[operator.outputs[0]],) = mt.Runner(file.flat).invoke(*read)
    np.testing.assert_array_equal(values[graph.outputs[0]], expected)


def test_layers_of_operators(quantized):
    files = operator_files(mt.convert(quantized, golden=0))
    assert [f.layer for f in files if f.layer] == ["conv1", "conv2", "conv3", "logits"]
    (conv2,) = [f for f in files if f.layer == "conv2"]
    assert conv2.kernel.startswith("CONV_2D INT8 1x4x4x4, constant INT8 8x3x3x4, constant INT32 8")


def test_the_empty_file_is_delegated():
    assert mt.Runner(empty_file()).delegated
