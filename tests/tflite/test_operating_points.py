"""Several operating points in one file: exact, sharing weights, verified and switched between."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.layers.parts import batch_norms
from metamix_tflite.read.metadata import METADATA_NAME, decode, encode
from metamix_tflite.run.latency import benchmark_all

PAIRS = kmm.SearchSpace((4, 3, 2), (4, 3, 2))
SAME = kmm.SearchSpace((4, 3, 2), "same")


def norm(x, name, relu=None):
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return x if relu is None else layers.ReLU(relu, name=f"{name}_relu")(x)


def head(image, x, name):
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(image, layers.Dense(5, name="logits")(x), name=name)


def residual():
    x = image = keras.Input((8, 8, 1), name="image")
    x = norm(layers.Conv2D(4, 3, padding="same", name="stem")(x), "stem", 6.0)
    y = norm(layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv1")(x), "conv1", 6.0)
    y = norm(layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv2")(y), "conv2")
    return head(image, layers.Add(name="add")([x, y]), "residual")


def depthwise():
    x = image = keras.Input((9, 9, 2), name="image")
    x = norm(layers.Conv2D(4, 3, 2, use_bias=False, name="stem")(x), "stem", 6.0)
    y = norm(layers.Conv2D(8, 1, use_bias=False, name="expand")(x), "expand", 6.0)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(y)
    y = layers.Conv2D(4, 1, use_bias=False, name="project")(norm(y, "depthwise", 6.0))
    return head(image, layers.Add(name="add")([x, norm(y, "project")]), "inverted_residual")


def points_of(model, seed=0):
    """From few bits to many: uniform, random by layer, uniform."""
    rng = np.random.default_rng(seed)
    searched = [layer.name for layer in model.mac_layers if layer.input_quantizer.choice.searched]
    edges = {n.name: 8 for n in model.mac_layers if n.name not in searched}
    drawn = dict(zip(searched, rng.choice([4, 3, 2], len(searched)).tolist(), strict=True))
    low, high = dict.fromkeys(searched, 2), dict.fromkeys(searched, 4)
    points = {"eco": low, "mixed": drawn, "full": high}
    return {name: kmm.BitAssignment(b | edges, b | edges) for name, b in points.items()}


@pytest.fixture(scope="module")
def residual_points(quantized):
    """(model, images, points, file); the batch norms have negative gammas."""
    keras.utils.set_random_seed(0)
    model, images = quantized(residual(), seed=3, space=PAIRS)
    points = points_of(model)
    return model, images, points, mt.convert(model, operating_points=points)


@pytest.fixture(scope="module")
def depthwise_points(quantized):
    keras.utils.set_random_seed(0)
    model, images = quantized(depthwise(), seed=1, space=PAIRS)
    points = points_of(model)
    return model, images, points, mt.convert(model, operating_points=points)


@pytest.fixture(scope="module")
def mixer_points():
    """A BitMixerModel whose batch norms have other signs in each of their sets."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = BitMixerModel.from_float(depthwise(), SAME)
    for layer in norms(model):
        shape = layer.gamma.shape
        layer.gamma.assign(rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape))
        layer.beta.assign(rng.normal(0.1, 0.4, shape))
        layer.moving_mean.assign(rng.normal(0, 0.2, shape))
        layer.moving_variance.assign(rng.uniform(0.3, 2, shape))
    images = rng.normal(0, 1.5, (32, 9, 9, 2)).astype(np.float32)
    kmm.calibrate(model, images, rule="mse")
    model.stage = "layer_wise"
    points = points_of(model)
    return model, images, points, mt.convert(model, operating_points=points)


def norms(model):
    return list(batch_norms(model.network))


def buffers_of(flat):
    """{signature: {tensor name: buffer}} of a file's constants."""
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(flat))
    return {
        s.signatureKey.decode(): {
            t.name.decode(): t.buffer for t in model.subgraphs[s.subgraphIndex].tensors if t.buffer
        }
        for s in model.signatureDefs
    }


# --- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["residual_points", "depthwise_points", "mixer_points"])
def test_each_point_is_exact(network, request, differing):
    model, images, points, flat = request.getfixturevalue(network)
    before, outputs = model.bit_assignment, set()
    for name, bits in points.items():
        model.set_bits(bits)
        folded = kmm.fold_batch_norm(model)
        assert differing(flat, folded, images, signature=name) == (0, True), name
        outputs.add(np.asarray(folded(images)).tobytes())
    model.set_bits(before)
    assert len(outputs) == len(points)
    graphs = mt.verify(flat, points)
    assert {n: g.metadata["bops"] for n, g in graphs.items()} == {
        name: kmm.bops(model.network, bits) for name, bits in points.items()
    }


def test_the_file_is_smaller_than_its_parts_and_leaves_the_model_as_it_was(residual_points):
    model, _, points, flat = residual_points
    before, alone = model.bit_assignment, mt.convert(model)
    assert mt.convert(model, operating_points=points) == flat
    assert (model.bit_assignment, mt.convert(model)) == (before, alone)
    sizes = []
    for bits in points.values():
        model.set_bits(bits)
        sizes.append(len(mt.convert(model)))
    model.set_bits(before)
    assert max(sizes) < len(flat) < sum(sizes)


def apart(flat, first, second):
    """Layers of which two signatures hold different weights."""
    buffers = buffers_of(flat)
    assert set(buffers[first]) == set(buffers[second])
    weights = [name for name in buffers[first] if name.endswith("/weights")]
    differ = [n for n in weights if buffers[first][n] != buffers[second][n]]
    return [n.removesuffix("/weights") for n in differ]


def test_equal_weights_have_one_buffer(residual_points):
    model, _, points, _ = residual_points
    full = points["full"]
    fewer = kmm.BitAssignment(full.activation_bits | {"conv1": 2}, full.weight_bits | {"conv2": 3})
    flat = mt.convert(model, operating_points={"full": full, "fewer": fewer})
    assert apart(flat, "full", "fewer") == ["conv2"]


def test_weights_are_shared_where_their_signs_agree(mixer_points):
    model, _, points, _ = mixer_points
    full = points["full"]
    bits = full.activation_bits | {"expand": 2}  # it feeds "depthwise"
    given = {"full": full, "fewer": kmm.BitAssignment(bits, bits)}
    assert apart(mt.convert(model, operating_points=given), *given) == ["expand", "depthwise"]
    gammas = [np.array(layer.gamma) for layer in norms(model)]
    for layer, gamma in zip(norms(model), gammas, strict=True):
        layer.gamma.assign(np.abs(gamma))
    assert apart(mt.convert(model, operating_points=given), *given) == ["expand"]
    for layer, gamma in zip(norms(model), gammas, strict=True):
        layer.gamma.assign(gamma)


def test_one_point_is_a_file_of_one_signature(residual_points):
    model, _, points, _ = residual_points
    flat = mt.convert(model, operating_points={"eco": points["eco"]}, io="int8")
    assert mt.verify(flat, points["eco"]).metadata["io"] == "int8"
    assert [*mt.verify(flat, {"eco": points["eco"]})] == ["eco"]
    assert mt.Runner(flat).input_details[0]["dtype"] == np.int8
    runner = mt.OperatingPointRunner(flat)
    codes = np.zeros((2, 8, 8, 1), np.int8)
    np.testing.assert_array_equal(runner.predict(codes), mt.Runner(flat).predict(codes))


GOOD = "the bits of another point"
BAD_POINTS = {
    "none": ({}, r"operating_points: expected \{name: bit assignment\}, at least one, found \{\}"),
    "list": (["eco"], r"operating_points: expected \{name: bit assignment\}.*found \['eco'\]"),
    "empty name": ({"": GOOD}, "operating_points: expected printable names, found ''"),
    "number": ({3: GOOD}, "operating_points: expected printable names, found 3"),
    "NUL": ({"a\0b": GOOD}, "operating_points: expected printable names, found 'a.x00b'"),
    "no bits": ({"full": GOOD, "eco": 4}, "Operating point 'eco': expected a BitAss.*found int"),
    "other model": (
        {"eco": kmm.BitAssignment({"conv": 4}, {"conv": 4})},
        "Operating point 'eco': The bit assignment is of another model",
    ),
    "no candidate": ({"eco": 5}, "Operating point 'eco': Layer '.*': 5 activation bits are no"),
}


@pytest.mark.parametrize("case", BAD_POINTS)
def test_bad_points_are_named(case, residual_points):
    model, _, points, _ = residual_points
    given, message = BAD_POINTS[case]
    if isinstance(given, dict):
        given = {n: points["full"] if bits is GOOD else bits for n, bits in given.items()}
    if case == "no candidate":
        five = dict.fromkeys(points["eco"].activation_bits, 5)
        given = {"eco": kmm.BitAssignment(five, five)}
    before = model.bit_assignment
    with pytest.raises(ValueError, match=message):
        mt.convert(model, operating_points=given)
    assert model.bit_assignment == before


def test_a_model_that_cannot_switch_is_refused(residual_points):
    model, _, points, _ = residual_points
    with pytest.raises(TypeError, match="BitMixerModel or a MetaMixModel.*found Functional"):
        mt.convert(kmm.fold_batch_norm(model), operating_points=points)


def test_a_search_is_not_ended():
    model = kmm.MetaMixModel.from_float(residual(), PAIRS)
    with pytest.raises(ValueError, match="'bit_meta'"):
        mt.convert(model, operating_points=points_of(model))
    assert model.phase == "bit_meta"


# --- verify and parity ---------------------------------------------------------------------------


def test_verify_reads_all_signatures_or_compares_them(residual_points):
    _, _, points, flat = residual_points
    assert [*mt.verify(flat)] == [*mt.verify(flat, points)] == ["eco", "mixed", "full"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p | {"eco": p["full"]}, "Signature 'eco': Layer 'conv1': weight bits: "),
        (lambda p: {"eco": p["eco"]}, r"Expected signatures \['eco'\], found \['eco', 'mixed',"),
        (lambda p: p | {"top": p["full"]}, r"Expected signatures .*'top'\], found"),
        (lambda p: p["eco"], "Expected a file of one signature for one bit assignment"),
    ],
)
def test_other_bits_are_refused(change, message, residual_points):
    _, _, points, flat = residual_points
    with pytest.raises(mt.VerificationError, match=message):
        mt.verify(flat, change(points))


def subgraph_of(model, signature):
    (found,) = [s for s in model.signatureDefs if s.signatureKey == signature.encode()]
    return model.subgraphs[found.subgraphIndex]


def set_weights(model, tensor, data):
    """Gives a tensor a buffer of its own."""
    buffer = schema.BufferT()
    buffer.data = data
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1


@pytest.mark.parametrize("signature", ["eco", "full"])
def test_changed_weights_name_signature_and_layer(signature, residual_points, remake):
    _, _, points, flat = residual_points

    def edit(model):
        name = b"conv1/weights"
        (tensor,) = [t for t in subgraph_of(model, signature).tensors if t.name == name]
        data = np.array(model.buffers[tensor.buffer].data, np.uint8)
        data[5] = 1 - min(data[5], 1)
        set_weights(model, tensor, data)

    for bits in (points, None):
        with pytest.raises(
            mt.VerificationError, match=f"^Signature '{signature}': Layer 'conv1': weights"
        ):
            mt.verify(remake(flat, edit), bits)


def declare(model, edit):
    (entry,) = [m for m in model.metadata if m.name == METADATA_NAME.encode()]
    declared = decode(bytes(bytearray(model.buffers[entry.buffer].data)))
    edit(declared)
    model.buffers[entry.buffer].data = np.frombuffer(encode(declared), np.uint8)


def cheaper(declared):
    declared["signatures"]["full"]["bops"] -= 1


def renamed(declared):
    declared["signatures"]["top"] = declared["signatures"].pop("full")


def bops_of_no_number(declared):
    declared["signatures"]["full"]["bops"] = "few"


def signatures_of_no_names(declared):
    declared["signatures"] = []


def a_point_of_nothing(declared):
    declared["signatures"]["full"] = None


def no_layers(declared):
    del declared["signatures"]["full"]["layers"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (cheaper, r"Signature 'full': BOPs: declared \d+, found \d+"),
        (renamed, r"declaration is of \['eco', 'mixed', 'top'\], found"),
        (bops_of_no_number, "declaration of 'full' has no BOPs"),
        (signatures_of_no_names, "declaration has no signatures"),
        (a_point_of_nothing, "declaration of 'full' has no BOPs"),
        (no_layers, "declaration of 'full' has no layers"),
    ],
)
def test_another_declaration_is_refused(edit, message, residual_points, remake):
    with pytest.raises(mt.VerificationError, match=message):
        mt.verify(remake(residual_points[3], lambda model: declare(model, edit)))


def swapped_subgraphs(model):
    model.subgraphs = [*model.subgraphs[1:], model.subgraphs[0]]


def one_subgraph_less(model):
    model.subgraphs.pop()


def one_signature_less(model):
    model.signatureDefs.pop()


def one_subgraph_twice(model):
    model.signatureDefs[1].subgraphIndex = 0


def subgraph_that_is_not_there(model):
    model.signatureDefs[1].subgraphIndex = 2**31


def one_name_twice(model):
    model.signatureDefs[1].signatureKey = b"eco"


def no_name(model):
    model.signatureDefs[1].signatureKey = None


def name_of_no_text(model):
    model.signatureDefs[1].signatureKey = b"\xff\xfe"


def another_output(model):
    model.signatureDefs[1].outputs[0].tensorIndex -= 1


def no_inputs(model):
    model.signatureDefs[1].inputs = []


def no_signatures(model):
    model.signatureDefs = []


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (swapped_subgraphs, "^Signature '(eco|mixed|full)': "),
        (one_subgraph_less, "found 2 for 3"),
        (one_signature_less, "found 3 for 2"),
        (no_signatures, "found 3 for 0"),
        (one_subgraph_twice, "the same subgraph, or the same name"),
        (subgraph_that_is_not_there, "the same subgraph, or the same name"),
        (one_name_twice, "the same subgraph, or the same name"),
        (no_name, "declaration is of"),
        (name_of_no_text, "cannot be read"),
        (another_output, "Signature 'mixed': a signature has tensors {'logits': "),
        (no_inputs, "Signature 'mixed': a signature has tensors {}"),
    ],
)
def test_other_signatures_are_refused(edit, message, residual_points, remake):
    _, _, points, flat = residual_points
    changed = remake(flat, edit)
    with pytest.raises(mt.VerificationError, match=message):
        mt.verify(changed, points)
    with pytest.raises(mt.VerificationError, match=message):
        mt.verify(changed)


def test_a_signature_beside_a_file_of_one_is_refused(resnet, remake):
    def edit(model):
        model.subgraphs.append(model.subgraphs[0])
        model.signatureDefs.append(schema.SignatureDefT())
        model.signatureDefs[1].signatureKey, model.signatureDefs[1].subgraphIndex = b"more", 1
        for ends in ("inputs", "outputs"):
            setattr(model.signatureDefs[1], ends, getattr(model.signatureDefs[0], ends))

    with pytest.raises(mt.VerificationError, match="declaration is of one signature, found"):
        mt.verify(remake(resnet[2], edit))


def test_damaged_files_are_refused_or_pass(residual_points):
    _, _, points, flat = residual_points
    refused = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        damaged = bytearray(flat)
        for place in rng.integers(8, len(flat), rng.integers(1, 12)):
            damaged[place] ^= int(rng.integers(1, 256))
        try:
            mt.verify(bytes(damaged), points if seed % 2 else None)
        except mt.VerificationError:
            refused += 1
    assert refused > 30
    for length in np.linspace(8, len(flat) - 1, 12).astype(int):
        with pytest.raises(mt.VerificationError):
            mt.verify(flat[:length])


def test_parity_compares_points_with_the_model_at_their_bits(residual_points):
    model, images, points, flat = residual_points
    before = model.bit_assignment
    reports = mt.parity(flat, model, images, {"full": points["full"], "eco": points["mixed"]})
    assert [*reports] == ["full", "eco"]
    assert (reports["full"].differing, reports["full"].outputs) == (0, 5 * len(images))
    assert reports["full"].delegated
    assert reports["eco"].differing > 0
    assert model.bit_assignment == before
    for other in ({"top": points["full"]}, {}):
        with pytest.raises(ValueError, match=r"expected some of \['eco'.*found \["):
            mt.parity(flat, model, images, other)
    with pytest.raises(ValueError, match="Expected a file of one signature, found"):
        mt.parity(flat, model, images)


# --- running -------------------------------------------------------------------------------------


@pytest.mark.parametrize("signature", [None, "top"])
def test_a_runner_takes_one_signature(signature, residual_points):
    with pytest.raises(ValueError, match=r"signature: expected one of \['eco', 'mixed', 'full'\]"):
        mt.Runner(residual_points[3], signature=signature)
    with pytest.raises(ValueError, match="signature: expected one of"):
        mt.benchmark(residual_points[3], runs=1, signature=signature)


@pytest.mark.parametrize("container", ["fast", "smallest"])
def test_partitions_are_those_of_the_whole_file(container, residual_points):
    # LiteRT's Python tells of the first subgraph's operators: each point is the first one once.
    model, _, points, _ = residual_points
    found = {}
    for name in ("eco", "full"):
        order = {name: points[name]} | {n: points[n] for n in ("eco", "full")}
        flat = mt.convert(model, weight_container=container, operating_points=order)
        interpreter = Interpreter(model_content=flat, num_threads=1)
        interpreter.allocate_tensors()
        operators = [d["op_name"] for d in interpreter._get_ops_details()]
        found[name] = operators.count("DELEGATE")
    runners = {name: mt.Runner(flat, signature=name) for name in found}
    assert {name: runner.partitions for name, runner in runners.items()} == found
    assert {r.delegated for r in runners.values()} == {container == "fast"}


def test_benchmark_of_points_in_turn(residual_points):
    _, _, points, flat = residual_points
    reports = benchmark_all(
        dict.fromkeys(points, flat), runs=3, warmup=1, signatures={n: n for n in points}
    )
    assert [*reports] == ["eco", "mixed", "full"]
    assert {(r.delegated, r.partitions, r.file_bytes) for r in reports.values()} == {
        (True, 1, len(flat))
    }
    assert mt.benchmark(flat, runs=3, warmup=0, signature="eco").delegated


def test_the_runner_switches_between_inferences(residual_points):
    _, images, points, flat = residual_points
    expected = {n: mt.Runner(flat, signature=n).predict(images[:4]) for n in points}
    runner = mt.OperatingPointRunner(flat)
    assert runner.selected.name == "full"
    for name in ("full", "eco", "mixed", "eco", "full"):
        assert runner.select(name).name == runner.selected.name == name
        np.testing.assert_array_equal(runner.predict(images[:4]), expected[name])
        np.testing.assert_array_equal(runner.invoke(images[:4])[0], expected[name])


def test_the_runner_selects_the_best_point_that_fits(residual_points):
    flat = residual_points[3]
    runner = mt.OperatingPointRunner(flat, prices={"eco": 1.0, "mixed": 2.5, "full": 2.0})
    bops = {p.name: p.bops for p in runner.points}
    assert [*bops] == ["full", "mixed", "eco"]
    assert sorted(bops.values(), reverse=True) == [*bops.values()]
    for budget, name in ((9, "full"), (2.5, "full"), (2.0, "full"), (1.9, "eco"), (1.0, "eco")):
        assert runner.select(budget=budget).name == name
    own = {"eco": 3, "mixed": 2, "full": 5}
    for budget, name in ((5, "full"), (4, "mixed"), (2, "mixed")):
        assert runner.select(budget=budget, prices=own).name == name
    unpriced = mt.OperatingPointRunner(flat)
    assert unpriced.select(budget=bops["mixed"]).name == "mixed"
    assert unpriced.select(budget=bops["mixed"] - 1).name == "eco"
    assert [p.price for p in unpriced.points] == [None] * 3


def test_the_runner_selects_by_latency(residual_points):
    runner = mt.OperatingPointRunner(residual_points[3])
    with pytest.raises(ValueError, match="nothing is measured yet"):
        runner.select(latency_us=100)
    medians = runner.measure(runs=3, warmup=1)
    assert {p.name: p.latency_us for p in runner.points} == medians
    assert runner.selected.name == "full"
    assert runner.select(latency_us=max(medians.values())).name == "full"
    least = min(medians, key=lambda name: medians[name])
    assert runner.select(latency_us=medians[least]).name == least
    with pytest.raises(ValueError, match=rf"latency_us=0.*the least is '{least}' with"):
        runner.select(latency_us=0)
    assert runner.selected.name == least


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected one of a name, latency_us=... and budget"),
        ({"name": "eco", "budget": 3}, "expected one of a name, latency_us=... and budget"),
        ({"name": "top"}, r"select: expected one of \['full', 'mixed', 'eco'\], found 'top'"),
        ({"budget": 3}, r"select\(budget=3\): no operating point fits; the least is 'eco'"),
        ({"budget": float("nan")}, "no operating point fits"),
        ({"budget": 3, "prices": {"eco": 1}}, r"prices: expected one for each of \['full'"),
        (
            {"budget": 3, "prices": {"eco": 1, "mixed": float("nan"), "full": 3}},
            "prices: expected a number for 'mixed', found nan",
        ),
        (
            {"budget": 3, "prices": {"eco": 1, "mixed": "2", "full": 3}},
            "prices: expected a number for 'mixed', found '2'",
        ),
    ],
)
def test_selections_that_mean_nothing_are_refused(arguments, message, residual_points):
    runner = mt.OperatingPointRunner(residual_points[3])
    with pytest.raises(ValueError, match=message):
        runner.select(**arguments)
    assert runner.selected.name == "full"


@pytest.mark.parametrize(
    ("arguments", "message"), [({"runs": 0}, "runs: expected"), ({"warmup": -1}, "warmup: expect")]
)
def test_counts_of_measure(arguments, message, residual_points):
    with pytest.raises(ValueError, match=message):
        mt.OperatingPointRunner(residual_points[3]).measure(**arguments)


def test_a_file_without_points_is_refused(resnet):
    with pytest.raises(ValueError, match="declares no operating points"):
        mt.OperatingPointRunner(resnet[2])
    with pytest.raises(mt.VerificationError, match="bytes of a .tflite"):
        mt.OperatingPointRunner(b"nothing")


def test_inputs_stay_in_the_model_s_order():
    names = ("zebra", "ant")
    zebra, ant = (keras.Input((6, 6, 2), name=name) for name in names)
    first = keras.layers.Conv2D(4, 3, padding="same", name="first")(ant)
    total = keras.layers.Add(name="total")([first, keras.layers.Conv2D(4, 1, name="second")(zebra)])
    logits = keras.layers.Dense(3, name="logits")(keras.layers.Flatten(name="flatten")(total))
    source = keras.Model([zebra, ant], logits, name="two_inputs")
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(1, 6, 6, 2)).astype(np.float32) for _ in names]
    model = kmm.MetaMixModel.from_float(source, PAIRS)
    kmm.calibrate(model, images)
    points = {f"{b} Bit, öko": kmm.uniform_assignment(source, b, b) for b in (2, 4)}
    model.set_bits(points["4 Bit, öko"])
    for io in ("float32", "int8"):
        flat = mt.convert(model, operating_points=points, io=io)
        mt.verify(flat, points)
        runner = mt.OperatingPointRunner(flat)
        if io == "float32":
            np.testing.assert_array_equal(
                runner.invoke(*images)[0], kmm.fold_batch_norm(model)(images)
            )
            codes = images
        else:
            codes = [rng.integers(-128, 128, i.shape).astype(np.int8) for i in images]
        for name in points:
            runner.select(name)
            (expected,) = mt.Runner(flat, signature=name).invoke(*codes)
            np.testing.assert_array_equal(runner.invoke(*codes)[0], expected)
