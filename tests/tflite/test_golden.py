"""Golden inputs are the same everywhere, and their outputs tell one network from another."""

import base64
import hashlib
import itertools

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from metamix_tflite.read.files import only_signature, read_file, read_signatures
from metamix_tflite.read.golden_inputs import dequantized, golden_codes
from metamix_tflite.verification.replay import golden_of

SHAPES = [(5,), (7, 3), (1, 1, 1), (9, 21, 2), (300, 17, 1), (3, 5, 4, 2)]


def byte(stream, number):
    """The generator's definition in Python's integers."""
    weyl = 0x9E3779B97F4A7C15
    x = (number + 1 + (stream << 40)) * weyl % 2**64
    x = (x ^ (x >> 32)) * weyl % 2**64
    return (x ^ (x >> 32)) >> 56


def code(shape, place, number, index):
    """One code of a golden input, from the definition."""
    total = 0
    for layer, block in enumerate((256, 16, 4, 1)):
        blocks = [-(-n // block) for n in shape[:-1]] + [shape[-1]]
        where = [i // block for i in place[:-1]] + [place[-1]]
        number_in_layer = int(np.ravel_multi_index(where, blocks))
        total += byte(256 * number + 4 * index + layer, number_in_layer)
    return min(max((total - 510) // 2, -128), 127)


# --- inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("number", "index"), [(0, 0), (3, 0), (0, 2), (63, 63)])
def test_codes_are_those_of_the_definition(shape, number, index):
    found = golden_codes(shape, number, index)
    assert (found.shape, found.dtype) == ((1, *shape), np.int8)
    places = [*itertools.product(*map(range, shape))]
    for place in places[:: max(1, len(places) // 50)]:
        assert found[0][place] == code(shape, place, number, index), place


def test_codes_stay_what_they_are():
    # Files in the world hold outputs of these: a change takes another name than "blocks-1".
    codes = np.stack([golden_codes((32, 32, 3), number) for number in range(4)])
    digest = "3d783db7df63aae64cacaa3265e52a41b5fb1b0db5027048d9a961225111db37"
    assert hashlib.sha256(codes.tobytes()).hexdigest() == digest


@pytest.mark.parametrize("shape", [(224, 224, 3), (28, 28, 1)])
def test_inputs_use_all_codes_and_differ(shape):
    images = [golden_codes(shape, number).astype(int) for number in range(8)]
    assert len(np.unique(images)) == 256
    assert 50 < np.std(images) < 95
    means = [[np.mean(image[..., c]) for c in range(shape[-1])] for image in images]
    assert np.std(means) > 15  # of colour
    for image in images:
        neighbours = np.corrcoef(image[:, 1:].ravel(), image[:, :-1].ravel())[0, 1]
        assert 0.2 < neighbours < 0.95  # shapes, and a texture
    assert all(np.any(a != b) for a, b in itertools.combinations(images, 2))


def test_floats_become_the_same_codes_again():
    rng = np.random.default_rng(0)
    codes = np.arange(-128, 128).astype(np.int8)
    for scale in np.float32(10.0 ** rng.uniform(-6, 4, 300)):
        zero_point = int(rng.integers(-128, 128))
        values = dequantized(codes, float(scale), zero_point)
        assert values.dtype == np.float32
        inverse = np.float32(1.0) / scale  # XNNPACK multiplies, LiteRT's own kernels divide
        np.testing.assert_array_equal(np.rint(values * inverse) + zero_point, codes)
        np.testing.assert_array_equal(np.rint(values / scale) + zero_point, codes)


# --- outputs -------------------------------------------------------------------------------------


def exact(flat):
    """Whether a replay by XNNPACK compares something and finds no difference."""
    reports = mt.replay(flat)
    assert all(report.values > 0 and report.delegated for report in reports.values())
    return {name: report.differing == report.max_steps == 0 for name, report in reports.items()}


@pytest.mark.parametrize("io", ["float32", "int8"])
@pytest.mark.parametrize("golden", [1, 6])
def test_a_replay_gives_the_integers_that_keras_gave(io, golden, resnet):
    model = resnet[0]
    flat = mt.convert(model, io=io, golden=golden)
    assert exact(flat) == {"serving_default": True}
    (report,) = mt.replay(flat).values()
    assert (report.images, report.values) == (golden, 5 * golden)
    assert str(report).startswith(f"0 of {5 * golden} values differ (largest 0 steps), {golden} in")


def test_the_outputs_are_those_of_the_folded_network(resnet):
    model, _, flat, _ = resnet
    graph = read_file(flat)
    golden, folded = golden_of(graph), kmm.fold_batch_norm(model)
    (dequantize,) = [o for o in graph.operators if o.op == "DEQUANTIZE"]
    tensor = graph.tensors[dequantize.inputs[0]]
    for (image,), expected in zip(golden.images, golden.expected[0], strict=True):
        found = np.asarray(folded(image))[0] / tensor.scales[0] + tensor.zero_points[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert len({tuple(e) for e in golden.expected[0]}) == 4  # each input has its own outputs


def test_ends_of_several(quantized):
    keras.utils.set_random_seed(0)
    images = [keras.Input((6, 6, 2), name=name) for name in ("a", "b")]
    a, b = (layers.Conv2D(4, 3, name=f"conv_{i.name}")(i) for i in images)
    x = layers.ReLU(name="relu")(layers.Add(name="sum")([a, b]))
    pooled = layers.GlobalAveragePooling2D(name="pool")(x)
    network = keras.Model(images, [x, layers.Dense(5, name="logits")(pooled)], name="ends")
    model = kmm.MetaMixModel.from_float(network)
    kmm.calibrate(model, [np.random.default_rng(n).normal(size=(8, 6, 6, 2)) for n in range(2)])
    model.set_bits(kmm.uniform_assignment(network, 4, 4))
    for io in ("float32", "int8"):
        flat = mt.convert(model, io=io)
        golden = golden_of(read_file(flat))
        assert [e.shape for e in golden.expected] == [(4, 64), (4, 5)]
        assert all(np.any(a != b) for a, b in golden.images)
        assert exact(flat) == {"serving_default": True}


def test_of_a_large_output_some_values_are_kept(quantized):
    image = keras.Input((32, 32, 1), name="image")
    network = keras.Model(image, layers.Conv2D(9, 3, padding="same", name="c")(image), name="large")
    model, _ = quantized(network)
    flat = mt.convert(model, golden=2)
    ((entry,),) = [read_file(flat).metadata["golden"]["outputs"]]
    assert entry["stride"] == 3  # of 9,216 values, at most 4,096
    assert len(base64.b64decode(entry["codes"])) == 2 * 3072
    golden = golden_of(read_file(flat))
    runner = mt.Runner(flat)
    scale, zero_point = golden.grids[0]
    for (array,), expected in zip(golden.images, golden.expected[0], strict=True):
        codes = np.rint(runner.invoke(array)[0].ravel() / scale) + zero_point
        np.testing.assert_array_equal(codes[::3], expected)
    assert exact(flat) == {"serving_default": True}


def test_each_operating_point_has_its_own(quantized):
    from keras_metamix.zoo.small import small_cnn

    model, _ = quantized(small_cnn((8, 8, 1), classes=3, width=4))
    network = model.network
    points = {f"{n} bits": kmm.uniform_assignment(network, n, n, edge_bits=8) for n in (8, 4, 2)}
    flat = mt.convert(model, operating_points=points)
    assert exact(flat) == dict.fromkeys(points, True)
    held = {n: g.metadata["golden"] for n, g in read_signatures(flat).items()}
    assert held["8 bits"] != held["2 bits"]
    for name in points:  # a file cut to one of them still knows which it is
        assert exact(only_signature(flat, name)) == {name: True}


def test_changed_biases_of_any_layer_are_noticed(resnet, remake):
    _, _, flat, bits = resnet
    for layer in bits.weight_bits:

        def edit(model, layer=layer):
            (tensor,) = [
                t for t in model.subgraphs[0].tensors if t.name == f"{layer}/bias".encode()
            ]
            buffer = model.buffers[tensor.buffer]
            biases = np.frombuffer(bytes(bytearray(buffer.data)), np.int32)
            buffer.data = np.frombuffer(np.roll(biases, 1).tobytes(), np.uint8)

        (report,) = mt.replay(remake(flat, edit)).values()
        assert report.differing > 0 and report.max_steps > 0, layer


def test_other_kernels_round_otherwise(resnet):
    flat = resnet[2]
    for kernels in ("builtin", "reference"):
        (report,) = mt.replay(flat, kernels).values()
        assert not report.delegated
        assert report.values == 20
    with pytest.raises(ValueError, match="kernels: expected one of .*'builtin'.* found 'fast'"):
        mt.replay(flat, "fast")


def test_without_golden_outputs_there_is_no_replay(resnet):
    flat = mt.convert(resnet[0], golden=0)
    mt.verify(flat, resnet[3])
    with pytest.raises(mt.VerificationError, match="no golden outputs to compare with"):
        mt.replay(flat)
    assert len(flat) < len(resnet[2]) < len(flat) + 250


@pytest.mark.parametrize("golden", [-1, 65, 2.0, True, "4"])
def test_a_bad_number_of_golden_inputs_is_named(golden, resnet):
    with pytest.raises(ValueError, match="golden: expected 0 to 64 inputs, found"):
        mt.convert(resnet[0], golden=golden)
