"""One trained network, a file for each target: the same integers, exact in each."""

import importlib.util
import itertools

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from metamix_tflite import devices
from metamix_tflite.read.files import read_file
from metamix_tflite.targets import TARGETS, target_of
from metamix_tflite.verification import command
from metamix_tflite.verification.kernels import kernels_of

# Of each target: container, inputs and outputs, and kernels of LiteRT that give the golden outputs.
EXPECTED = {
    "cpu": ("fast", "float32", "xnnpack"),
    "arm": ("int8", "float32", "xnnpack"),
    "web": ("int8", "float32", "xnnpack"),
    "gpu": ("int8", "float32", "xnnpack"),
    "micro": ("int4_conv", "int8", "reference"),
    "ethosu": ("int8", "int8", "xnnpack"),
    "edgetpu": ("int8", "int8", "xnnpack"),
}
BITS = {"wide": 4, "depthwise": 4, "even": 2, "strided": 4, "few": 2, "dense": 3}


def network():
    """Every form of a layer of weights; sums, differences, products and means."""
    image = keras.Input((10, 10, 3), name="image")
    x = layers.Conv2D(32, 3, activation="relu", name="first")(image)
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="wide")(x)
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    y = layers.Conv2D(32, 1, name="even")(y)
    x = layers.Conv2D(24, 1, strides=2, name="strided")(layers.Add()([x, y]))
    y = layers.Conv2D(24, 1, activation="relu", name="few")(x)
    x = layers.Subtract()([layers.Multiply()([x, y]), y])
    x = layers.Dense(16, activation="relu", name="dense")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(5, name="last")(x))


@pytest.fixture(scope="module")
def trained(quantized):
    keras.utils.set_random_seed(0)
    space = kmm.SearchSpace((8, 4), (8, 4, 3, 2))
    model, images = quantized(network(), 0, space=space)
    bits = model.bit_assignment
    model.set_bits(kmm.BitAssignment(bits.activation_bits, bits.weight_bits | BITS))
    return model, images


@pytest.fixture(scope="module")
def files(trained):
    """files(target, **arguments) -> its file, each made once."""
    made = {}

    def make(target, **arguments):
        key = target, *arguments.items()
        if key not in made:
            made[key] = mt.convert(trained[0], target, **arguments)
        return made[key]

    return make


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_s_file_is_exact(target, trained, files):
    container, io, kernels = EXPECTED[target]
    model, images = trained
    flat = files(target)
    graph = mt.verify(flat, model.bit_assignment)
    found = [graph.metadata[key] for key in ("target", "weight_container", "io")]
    assert found == [target, container, io]
    assert {graph.tensors[i].type for i in (*graph.inputs, *graph.outputs)} == {io.upper()}
    (report,) = mt.replay(flat).values()
    assert (report.differing, report.values) == (0, 4 * 5)
    assert report.delegated == (kernels == "xnnpack")
    report = mt.parity(files(target, io="float32"), model, images)
    assert (report.differing, report.outputs) == (0, 5 * len(images))


def test_targets_hold_the_same_integers(files):
    kept = [
        {name: (e["weights"], e["weight_scales"], e["bias"]) for name, e in layers_of.items()}
        for layers_of in (read_file(files(t)).metadata["layers"] for t in ("arm", "micro"))
    ]
    assert kept[0] == kept[1]
    layers_of = read_file(files("cpu")).metadata["layers"]
    biases = {name: entry["bias"] for name, entry in layers_of.items()}
    assert biases == {name: bias for name, (*_, bias) in kept[0].items()}
    golden = [read_file(files(t)).metadata["golden"] for t in ("cpu", "arm", "gpu", "ethosu")]
    assert all(found == golden[0] for found in golden)


def forms(flat):
    """Operator and type of the weights of each layer."""
    graph = read_file(flat)
    entries = graph.metadata["layers"]
    names = {graph.tensors[o.outputs[0]].name: o.op for o in graph.operators}
    return {name: (names[name], entry["container"]) for name, entry in entries.items()}


def test_operators_follow_from_the_target(files):
    conv, matrix, depthwise = "CONV_2D", "FULLY_CONNECTED", "DEPTHWISE_CONV_2D"
    cpu, arm, gpu, micro = (forms(files(t)) for t in ("cpu", "arm", "gpu", "micro"))
    assert (cpu["even"], cpu["few"]) == ((matrix, "INT2"),) * 2
    assert (cpu["wide"], cpu["dense"]) == ((matrix, "INT4"),) * 2
    assert (cpu["depthwise"], cpu["strided"]) == ((depthwise, "INT8"), (conv, "INT8"))
    assert set(arm.values()) == {(conv, "INT8"), (depthwise, "INT8")}
    assert gpu == arm | {"strided": (matrix, "INT8")}
    few = {name: (op, "INT4") if name in BITS else (op, held) for name, (op, held) in arm.items()}
    assert micro == few
    int4 = forms(files("cpu", weight_container="int4"))
    assert int4 == cpu | {"even": (matrix, "INT4"), "few": (matrix, "INT4")}


@pytest.mark.parametrize("target", ["cpu", "web", "ethosu"])
def test_inputs_and_outputs_of_bytes_hold_the_levels_of_int8_ones(target, files):
    flat = files(target, io="uint8")
    graph = mt.verify(flat)
    assert [t.type for t in (graph.tensors[i] for i in (*graph.inputs, *graph.outputs))] == [
        "UINT8",
        "UINT8",
    ]
    assert mt.replay(flat)["serving_default"].differing == 0
    codes = np.random.default_rng(0).integers(-128, 128, (8, 10, 10, 3)).astype(np.int8)
    found = mt.Runner(flat).predict((codes.astype(np.int32) + 128).astype(np.uint8))
    expected = mt.Runner(files("cpu", io="int8")).predict(codes)
    np.testing.assert_array_equal(found.astype(np.int32) - 128, expected)
    assert mt.Runner(flat).delegated


@pytest.mark.parametrize("change", ["scale", "type"])
def test_changed_inputs_and_outputs_are_refused(change, files, remake):
    def edit(model):
        graph = model.subgraphs[0]
        tensor = graph.tensors[graph.outputs[0]]
        if change == "scale":
            tensor.quantization.scale = 2 * tensor.quantization.scale
        else:
            tensor.type = 9  # INT8

    message = "scale and zero-point of its output" if change == "scale" else "types of its input"
    with pytest.raises(mt.VerificationError, match=message):
        mt.verify(remake(files("cpu", io="uint8"), edit))


tflm = pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None, reason="tflite-micro is not installed"
)


@tflm
@pytest.mark.parametrize("io", ["int8", "float32"])
def test_microcontrollers_give_the_golden_outputs(io, files):
    (row,) = devices.measure("micro", {"file": files("micro", io=io)}, runs=8).rows
    assert (row["differing"], row["values"], row["largest_steps"]) == (0, 8 * 5, 0)


def test_an_operator_that_boards_round_otherwise_is_reported(quantized, tmp_path, capsys):
    image = keras.Input((6, 6, 2), name="image")
    x = layers.Activation("sigmoid", name="gate")(layers.Conv2D(4, 3, name="conv")(image))
    model, _ = quantized(keras.Model(image, layers.Conv2D(3, 1, name="last")(x)))
    with pytest.warns(UserWarning, match="'gate.*target 'micro' round"):
        flat = mt.convert(model, "micro")
    file = tmp_path / "model.tflite"
    file.write_bytes(flat)
    assert command.main(command.parse_flags([str(file)])) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "nothing promised: some of its operators round in a way of their own on boards"


@pytest.mark.parametrize(("target", "kernels"), [("cpu", "XNNPACK"), ("micro", "LiteRT's ref")])
def test_metamix_verify_names_target_and_kernels(target, kernels, files, tmp_path, capsys):
    file = tmp_path / "model.tflite"
    file.write_bytes(files(target))
    assert command.main(command.parse_flags([str(file)])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"  target {target}, container {EXPECTED[target][0]}, io ")
    assert lines[-1].startswith(f"exact: {kernels}")
    graph = read_file(files(target))
    assert all(any(told in line for line in lines) for told in kernels_of(graph))


@pytest.mark.parametrize(
    ("target", "operator", "container", "expected"),
    [
        ("cpu", "FULLY_CONNECTED", "INT4", "SIMD"),
        ("cpu", "CONV_2D", "INT4", "LiteRT's own, not XNNPACK's"),
        ("arm", "FULLY_CONNECTED", "INT4", "scalar"),
        ("arm", "CONV_2D", "INT8", "SIMD"),
        ("web", "FULLY_CONNECTED", "INT2", "scalar"),
        ("micro", "CONV_2D", "INT4", "TFLM's"),
        ("ethosu", "CONV_2D", "INT8", ""),
    ],
)
def test_kernels(target, operator, container, expected):
    assert TARGETS[target].kernels(operator, container) == expected


def test_explain_says_which_kernels_run_a_layer():
    rows = {
        target: {row.name: row.kernels for row in kmm.explain(network(), target=target).rows}
        for target in ("cpu", "micro", "edgetpu")
    }
    found = [rows[target]["few"] for target in ("cpu", "micro", "edgetpu")]
    assert found == ["SIMD", "TFLM's", ""]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("phone",), "target: expected one of .*'edgetpu'.*found 'phone'"),
        (("cpu", "tiny"), "weight_container: expected one of .*found 'tiny'"),
        (("cpu", None, "int4"), "io: expected one of .*found 'int4'"),
        (("ethosu", "fast"), "weight_container: target 'ethosu' takes 'int8' alone, found 'fast'"),
        (("micro", "int4"), "takes 'int4_conv' or 'int8', found 'int4': LiteRT for Micro"),
        (("web", None, "int8"), "io: target 'web' takes 'float32' or 'uint8', found 'int8': LiteR"),
        (("micro", None, "uint8"), "io: target 'micro' takes 'int8' or 'float32'"),
    ],
)
def test_what_a_target_does_not_take_is_refused(arguments, message, trained):
    for function in (target_of, lambda *given: mt.convert(trained[0], *given)):
        with pytest.raises(ValueError, match=message):
            function(*arguments)
    names = dict(zip(("target", "weight_container", "io"), arguments, strict=False))
    with pytest.raises(ValueError, match=message):
        kmm.Size(1000, **names)


def test_every_choice_of_a_target_is_one():
    for target in TARGETS.values():
        for container, io in itertools.product(target.containers, target.io_types):
            chosen = target_of(target.name, container, io)
            assert (chosen.container, chosen.io) == (container, io)
        assert (target.container, target.io) == EXPECTED[target.name][:2]
        assert target.exact_kernels == EXPECTED[target.name][2]
