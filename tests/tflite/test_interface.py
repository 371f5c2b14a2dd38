"""Files have the inputs and outputs of the float model: names, order, structure and types."""

import copy
import json

import keras
import numpy as np
import pytest
from keras import layers, ops, tree

import keras_metamix as kmm
import metamix_tflite as mt
from metamix_tflite.read.files import read_file, read_interface
from metamix_tflite.read.interface import Interface
from metamix_tflite.verification import command

SPACE = kmm.SearchSpace((8, 4), 4)


def picture(name="picture", **arguments):
    return keras.Input((8, 8, 3), name=name, **arguments)


def camera():
    return picture("camera", dtype="uint8")


def conv(tensor, filters=4, name=None):
    return layers.Conv2D(filters, 3, activation="relu", name=name)(tensor)


def features(tensor):
    return layers.GlobalAveragePooling2D()(conv(tensor))


def dense(name=None, units=3, **arguments):
    return layers.Dense(units, name=name, **arguments)


def on_features(make):
    """A model whose outputs `make` computes from the features of a picture."""
    image = picture()
    return keras.Model(image, make(features(image)))


def logits_and_softmax():
    image = picture()
    logits = dense("logits")(features(image))
    return keras.Model(image, [layers.Softmax(name="scores")(logits), logits])


def input_and_output():
    image = picture()
    return keras.Model(image, [image, dense("logits")(features(image))])


def read_by_a_layer():
    image = picture()
    maps = conv(image, name="maps")
    pooled = layers.GlobalMaxPooling2D(name="pooled")(maps)
    return keras.Model(image, {"maps": maps, "pooled": pooled, "logits": dense()(pooled)})


def shared_head():
    image, head = picture(), dense("head")
    maps = conv(image)
    pools = layers.GlobalAveragePooling2D()(maps), layers.GlobalMaxPooling2D()(maps)
    return keras.Model(image, [head(pool) for pool in pools])


def two_inputs(structure):
    def make():
        left, right = picture("left"), picture("right")
        total = layers.Add()([features(left), features(right)])
        parts = {"dictionary": {"right": right, "left": left}, "list": [right, left]}
        return keras.Model(parts[structure], dense("logits")(total))

    return make


def camera_and_numbers():
    image, numbers = camera(), keras.Input((5,), name="numbers")
    x = features(layers.Rescaling(1 / 127.5, offset=-1)(image))
    both = layers.Concatenate()([x, dense(activation="relu")(numbers)])
    return keras.Model({"camera": image, "numbers": numbers}, {"logits": dense()(both)})


def on_bytes(make):
    def build():
        image = camera()
        return keras.Model(image, dense("logits")(features(make(image))))

    return build


def sequential():
    steps = [layers.Rescaling(1 / 255), layers.Conv2D(4, 3, activation="relu"), layers.Flatten()]
    return keras.Sequential([camera(), *steps, dense("scores", activation="softmax")])


def names_of_ours():
    image = picture("conv_input")
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.Conv2D(4, 1, name="conv_output")(x)
    x = layers.Concatenate(name="both")([x, layers.Conv2D(4, 1, name="both_part0")(x)])
    x = layers.Conv2D(4, 1, name="conv_input_stream")(x)
    x = layers.BatchNormalization(name="norm")(layers.GlobalMaxPooling2D(name="norm_image")(x))
    return keras.Model(image, dense("conv_output_output")(x))


def shared_layers():
    image, first, second = picture(), dense("dense", 4), dense("dense_1", 6)
    x = conv(image, 6)
    pools = layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)
    return keras.Model(image, dense("logits")(layers.Add()([second(first(p)) for p in pools])))


# Each with the names of its file's outputs, in order.
MODELS = {
    "dictionary": (
        lambda: on_features(lambda x: {"cls": dense()(x), "box": dense()(x)}),
        ["box", "cls"],
    ),
    "list of one shape": (
        lambda: on_features(lambda x: [dense("z")(x), dense("a")(x)]),
        ["z", "a"],
    ),
    "list of one": (lambda: on_features(lambda x: [dense("one")(x)]), ["one"]),
    "nest": (
        lambda: on_features(lambda x: {"heads": [dense("z")(x), dense("a")(x)], "deep": {"x": x}}),
        ["x", "z", "a"],
    ),
    "slashes and spaces": (
        lambda: on_features(lambda x: {"a/b c": dense()(x), "naïve": dense()(x)}),
        ["a/b c", "naïve"],
    ),
    "one tensor twice": (lambda: on_features(lambda x: [dense("o")(x)] * 2), ["o", "o_1"]),
    "activations": (
        lambda: on_features(
            lambda x: [dense("a", activation="relu")(x), dense("b", activation="sigmoid")(x)]
        ),
        ["a", "b"],
    ),
    "moves": (
        lambda: on_features(
            lambda x: [
                layers.Reshape((2, 2), name="reshape")(x),
                layers.Concatenate(name="both")([x, dense()(x)]),
            ]
        ),
        ["reshape", "both"],
    ),
    "logits and softmax": (logits_and_softmax, ["scores", "logits"]),
    "input and output": (input_and_output, ["picture", "logits"]),
    "read by a layer": (read_by_a_layer, ["logits", "maps", "pooled"]),
    "shared head": (shared_head, ["head", "head_1"]),
    "two inputs in a list": (two_inputs("list"), ["logits"]),
    "two inputs in a dictionary": (two_inputs("dictionary"), ["logits"]),
    "bytes and numbers": (camera_and_numbers, ["logits"]),
    "cast bytes": (on_bytes(lambda x: ops.cast(x, "float32") / 255.0), ["logits"]),
    "moved bytes": (
        on_bytes(lambda x: layers.Rescaling(1 / 255)(layers.ZeroPadding2D(1)(x))),
        ["logits"],
    ),
    "sequential": (sequential, ["scores"]),
    "names of ours": (names_of_ours, ["conv_output_output"]),
    "shared layers": (shared_layers, ["logits"]),
}


def images_for(model, count=5):
    """Arrays in the structure of a model's inputs."""
    generator = np.random.default_rng(0)

    def values(tensor):
        shape = (count, *tensor.shape[1:])
        if tensor.dtype == "uint8":
            return generator.integers(0, 256, shape).astype(np.uint8)
        return generator.normal(size=shape).astype(np.float32)

    return tree.map_structure(values, model.network.input)


@pytest.fixture(scope="module")
def made():
    """made(name) -> (float model, model at 8 and 4 bits, images), each made once."""
    found = {}

    def make(name):
        if name not in found:
            keras.utils.set_random_seed(0)
            source = MODELS[name][0]()
            model = kmm.MetaMixModel.from_float(source, SPACE)
            images = images_for(model)
            kmm.calibrate(model, images)
            model.set_bits(kmm.uniform_assignment(source, 4, 4))
            found[name] = source, model, images
        return found[name]

    return make


def same(found, expected):
    """Checks that two structures are one, and hold the same values."""
    tree.assert_same_structure(found, expected)
    for one, other in zip(tree.flatten(found), tree.flatten(expected), strict=True):
        np.testing.assert_array_equal(one, ops.convert_to_numpy(other))


@pytest.mark.parametrize("io", ["float32", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_a_file_has_the_ends_of_the_model_and_is_exact(name, io, made):
    source, model, images = made(name)
    flat = mt.convert(model, io=io)
    mt.verify(flat, model.bit_assignment)
    interface = read_interface(flat)
    assert interface.inputs == tuple(tensor.name for tensor in source.inputs)
    assert list(interface.outputs) == MODELS[name][1]
    (report,) = mt.replay(flat).values()
    assert (report.differing, report.images) == (0, 4)
    assert report.values == 4 * sum(np.prod(t.shape[1:]) for t in source.outputs)
    if io == "int8":
        return
    report = mt.parity(flat, model, images)
    assert (report.differing, report.delegated) == (0, True)
    assert report.outputs == 5 * sum(np.prod(t.shape[1:]) for t in source.outputs)
    found = mt.Runner(flat, batch_size=2).predict(images)
    same(found, kmm.fold_batch_norm(model)(images))
    outputs = source(images)
    tree.assert_same_structure(found, outputs)
    assert [a.shape for a in tree.flatten(found)] == [a.shape for a in tree.flatten(outputs)]


def test_the_output_of_a_softmax_gives_its_logits(made):
    _, model, images = made("logits and softmax")
    scores, logits = mt.Runner(mt.convert(model)).predict(images)
    np.testing.assert_array_equal(scores, logits)
    np.testing.assert_array_equal(logits, model(images)[1])
    assert mt.parity(mt.convert(model), model, images).top1_agreement == 1.0


@pytest.mark.parametrize("name", ["dictionary", "activations", "bytes and numbers", "nest"])
def test_a_loaded_model_gives_the_same_file(name, made, tmp_path):
    _, model, _ = made(name)
    flat = mt.convert(model)
    for part in (model, kmm.fold_batch_norm(model)):
        part.save(tmp_path / "part.keras")
        assert mt.convert(keras.models.load_model(tmp_path / "part.keras")) == flat


@pytest.mark.parametrize("name", ["two inputs in a list", "two inputs in a dictionary"])
def test_several_inputs_are_given_in_order_or_by_name(name, made):
    _, model, images = made(name)
    flat = mt.convert(model)
    order = read_interface(flat).inputs
    by_name = dict(zip(order, tree.flatten(images), strict=True))
    assert set(order) == {"left", "right"}
    runner, expected = mt.Runner(flat), kmm.fold_batch_norm(model)(images)
    for given in ([*by_name.values()], tuple(by_name.values()), dict(reversed(by_name.items()))):
        np.testing.assert_array_equal(runner.predict(given), expected)
        assert mt.parity(flat, model, given).differing == 0
    wrong = {
        r"\['left'\]": {"left": by_name["left"]},
        "found 1": by_name["left"],
        "'other'": {"left": by_name["left"], "other": by_name["right"]},
        "as many for each": [by_name["left"], by_name["right"][:2]],
    }
    for message, given in wrong.items():
        for function in (runner.predict, lambda x: mt.parity(flat, model, x)):
            with pytest.raises(ValueError, match=f"images: expected.*{message}"):
                function(given)


@pytest.mark.parametrize("name", ["dictionary", "bytes and numbers"])
def test_every_operating_point_has_the_ends_of_the_model(name, made):
    source, model, images = made(name)
    points = {"low": kmm.uniform_assignment(source, 4, 4), "high": model.bit_assignment}
    points["high"] = kmm.uniform_assignment(source, 8, 4)
    flat = mt.convert(model, operating_points=points)
    reports = mt.parity(flat, model, images, points)
    assert {name: report.differing for name, report in reports.items()} == {"low": 0, "high": 0}
    runner, before = mt.OperatingPointRunner(flat), model.bit_assignment
    for point, bits in points.items():
        runner.select(point)
        assert read_interface(flat, point).outputs == tuple(MODELS[name][1])
        model.set_bits(bits)
        same(runner.predict(images), kmm.fold_batch_norm(model)(images))
        same(mt.Runner(flat, signature=point).predict(images), runner.predict(images))
    model.set_bits(before)
    assert mt.benchmark(flat, runs=1, warmup=0, signature="low").delegated


def test_metamix_verify_replays_several_ends(made, tmp_path, capsys):
    _, model, _ = made("bytes and numbers")
    file, report = tmp_path / "model.tflite", tmp_path / "found.json"
    file.write_bytes(mt.convert(model, golden=2))
    assert command.main(command.parse_flags([str(file), f"--json={report}"])) == 0
    assert "exact: XNNPACK gives the trained integers" in capsys.readouterr().out
    found = {r["kernels"]: r for r in json.loads(report.read_text())["replays"]}
    assert (found["xnnpack"]["values"], found["xnnpack"]["differing"]) == (6, 0)


@pytest.mark.parametrize(
    ("name", "changed"), [("dictionary", "cls"), ("dictionary", "box"), ("list of one shape", "a")]
)
def test_parity_tells_which_output_differs(name, changed, made, remake):
    """The bias of one head is moved in the file, by two steps of its output."""
    _, model, images = made(name)
    flat = mt.convert(model)
    place, graph = read_interface(flat).outputs.index(changed), read_file(flat)
    head = graph.producer(graph.producer(graph.outputs[place]).inputs[0])
    step = graph.tensors[head.outputs[0]].scales[0] / graph.tensors[head.inputs[2]].scales

    def edit(model):
        bias = model.subgraphs[0].tensors[head.inputs[2]]
        buffer = copy.copy(model.buffers[bias.buffer])  # the other head may share it
        moved = np.frombuffer(bytes(buffer.data), np.int32) + np.ceil(2 * step).astype(np.int32)
        buffer.data = np.frombuffer(moved.tobytes(), np.uint8)
        model.buffers.append(buffer)
        bias.buffer = len(model.buffers) - 1

    report = mt.parity(remake(flat, edit), model, images)
    assert report.differing > 10
    assert report.by_output == {n: (n == changed) * report.differing for n in MODELS[name][1]}
    assert f"{report.differing} of {changed!r}" in str(report)
    exact = mt.parity(flat, model, images)
    assert exact.by_output == dict.fromkeys(MODELS[name][1], 0)
    assert repr(changed) not in str(exact)


@pytest.mark.parametrize("name", ["dictionary", "two inputs in a list", "bytes and numbers"])
def test_one_image_without_its_batch_axis_is_reported(name, made):
    _, model, images = made(name)
    points = {"low": model.bit_assignment}
    flat, pointed = mt.convert(model), mt.convert(model, operating_points=points)
    one = tree.map_structure(lambda array: array[0], images)
    first = read_interface(flat).inputs[0]
    message = rf"expected the shape \(images, .*\) for input {first!r}, .*image\[None\]"
    for call in (
        lambda given: mt.parity(flat, model, given),
        lambda given: mt.parity(pointed, model, given, points),
        mt.Runner(flat).predict,
        mt.OperatingPointRunner(pointed).predict,
    ):
        with pytest.raises(ValueError, match=message):
            call(one)
        call(tree.map_structure(lambda array: array[None], one))
    with pytest.raises(ValueError, match=r"expected the shape of the model's.*image\[None\]"):
        kmm.calibrate(model, one if name != "bytes and numbers" else [*one.values()])


def test_parity_names_what_differs_from_the_model(made):
    flat = mt.convert(made("dictionary")[1])
    _, model, images = made("list of one shape")
    with pytest.raises(ValueError, match=r"outputs are \['z', 'a'\].*outputs are \['box', 'cls'\]"):
        mt.parity(flat, model, images)
    _, model, images = made("two inputs in a list")
    with pytest.raises(ValueError, match=r"inputs are \['right', 'left'\], found.*'picture'"):
        mt.parity(flat, model, images)


# --- bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin", "reference"])
def test_every_byte_is_a_level_of_its_own(kernels):
    image = keras.Input((16, 16, 1), name="camera", dtype="uint8")
    maps = layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones", name="maps")
    scaled = layers.Rescaling(1 / 255)(image)
    source = keras.Model(image, [maps(scaled), image])
    model = kmm.MetaMixModel.from_float(source, SPACE)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    kmm.calibrate(model, pixels)
    model.set_bits(kmm.uniform_assignment(source, 8, 4))
    flat = mt.convert(model)
    (tensor,) = [read_file(flat).tensors[i] for i in read_file(flat).inputs]
    assert (tensor.type, tensor.scales.tolist(), tensor.zero_points.tolist()) == ("UINT8", [1], [0])
    assert mt.Runner(flat).input_details[0]["dtype"] == np.uint8
    maps, found = mt.Runner(flat, kernels=kernels).predict(pixels)
    np.testing.assert_array_equal(found, pixels)
    if kernels == "xnnpack":  # the others round products otherwise now and then
        np.testing.assert_array_equal(maps, kmm.fold_batch_norm(model)(pixels)[0])
        np.testing.assert_array_equal(maps, model(pixels)[0])


@pytest.mark.parametrize("last", [False, True], ids=["bytes first", "bytes last"])
@pytest.mark.parametrize("swapped", [False, True], ids=["arms as inputs", "arms swapped"])
@pytest.mark.parametrize("cameras", [1, 2])
def test_bytes_beside_floats_leave_xnnpack_one_partition(cameras, swapped, last):
    """The arm of floats is deeper: in the order of depth its QUANTIZE would be the first."""
    keras.utils.set_random_seed(0)
    bytes_ = [picture(f"camera{n}", dtype="uint8") for n in range(cameras)]
    floats = picture("floats")
    arms = [conv(layers.Rescaling(1 / 255)(image)) for image in bytes_]
    arms.append(conv(layers.Conv2D(4, 3, padding="same")(layers.ReLU()(floats))))
    inputs = [floats, *bytes_] if last else [*bytes_, floats]
    x = layers.Concatenate()(arms[::-1] if swapped else arms)
    source = keras.Model(inputs, dense()(layers.GlobalAveragePooling2D()(x)))
    model = kmm.QuantizedModel.from_float(source)
    images = images_for(model)
    kmm.calibrate(model, images)
    flat = mt.convert(model)
    mt.verify(flat, model.bit_assignment)
    report = mt.parity(flat, model, images)
    assert (report.differing, report.delegated) == (0, True)
    assert mt.replay(flat)["serving_default"].differing == 0


def test_a_model_on_bytes_trains_and_keeps_its_input(made):
    source, _, images = made("bytes and numbers")
    model = kmm.MetaMixModel.from_float(source, SPACE)
    model.compile("sgd", {"logits": "mse"})
    labels = {"logits": np.zeros((5, 3), np.float32)}
    model.fit(images, labels, epochs=1, verbose=0)
    model.set_bits(kmm.uniform_assignment(source, 8, 4))
    model.fit(images, labels, epochs=1, verbose=0)
    assert mt.parity(mt.convert(model), model, images).differing == 0


def test_other_values_than_bytes_are_refused(made):
    _, model, images = made("cast bytes")
    flat = mt.convert(model)
    assert mt.parity(flat, model, images.astype(np.float32)).differing == 0
    for wrong in (images + np.float32(0.5), images.astype(np.int32) + 200):
        with pytest.raises(TypeError, match="'camera' takes integers of 0 to 255"):
            mt.parity(flat, model, wrong)
    with pytest.raises(ValueError, match="FLOAT32 but expected type UINT8"):
        mt.Runner(flat).predict(images.astype(np.float32))


@pytest.mark.parametrize("field", ["scale", "zero_point"])
def test_an_input_of_bytes_that_are_other_levels_is_refused(field, made, remake):
    def edit(model):
        graph = model.subgraphs[0]
        quantization = graph.tensors[graph.inputs[0]].quantization
        if field == "scale":
            quantization.scale = np.array([0.5], np.float32)
        else:
            quantization.zeroPoint = np.array([1], np.int64)

    flat = mt.convert(made("cast bytes")[1])
    with pytest.raises(mt.VerificationError, match="scale and zero-point of its input"):
        mt.verify(remake(flat, edit))


@pytest.mark.parametrize("function", [kmm.MetaMixModel.from_float, kmm.explain])
@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "bool", "float16", "float64"])
def test_inputs_without_an_exact_form_are_refused_at_once(dtype, function):
    image = keras.Input((8, 8, 3), name="camera", dtype=dtype)
    source = keras.Model(image, dense()(features(layers.Rescaling(0.5)(image))))
    with pytest.raises(ValueError, match=f"Input 'camera': expected .*'uint8'.*found '{dtype}'"):
        function(source)


@pytest.mark.parametrize("function", [kmm.MetaMixModel.from_float, kmm.explain])
def test_an_input_that_nothing_reads_is_refused(function):
    image, other = picture(), picture("other")
    source = keras.Model([image, other], dense()(features(image)))
    with pytest.raises(ValueError, match="Input 'other': expected a layer that reads it"):
        function(source)


# --- structures --------------------------------------------------------------------------------


def test_structures_of_arrays():
    one, two = np.zeros((2, 1)), np.ones((2, 3))
    interface = Interface(("a", "b"), ("x", "y"), {"second": 1, "list": [0]})
    for given in ([one, two], (one, two), {"b": two, "a": one}, {"k": [one], "l": {"m": two}}):
        found = interface.arrays(given, [(1,), (3,)])
        assert found[0] is one and found[1] is two
    assert interface.structured(["first", "other"]) == {"second": "other", "list": ["first"]}
    for given, found in ((None, "NoneType"), ([one, None], "list of NoneType"), ([], "list")):
        with pytest.raises((TypeError, ValueError), match=f"images: expected.*{found}|found 0"):
            interface.arrays(given, [(1,), (3,)])


def test_images_are_given_as_litert_takes_them():
    interface = Interface(("a", "b"), ("x",), 0)
    inputs = [
        {"shape": np.array([1, 2]), "dtype": np.float32},
        {"shape": np.array([1, 3]), "dtype": np.uint8},
    ]
    one, two = np.ones((4, 2)), np.ones((4, 3), np.uint8)
    found = interface.images([one, two], inputs)
    assert [array.dtype for array in found] == [np.float32, np.uint8] and found[1] is two
    one[2, 1] = np.nan
    with pytest.raises(ValueError, match="images: expected finite ones, found NaN or Inf for 'a'"):
        interface.images([one, two], inputs)
