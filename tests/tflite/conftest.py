"""Quantized models without training, single-operator files, and edits of finished files."""

import contextlib

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

import keras_metamix as kmm
import metamix_tflite as mt
from metamix_tflite.encoding import FILE_IDENTIFIER, TensorType
from metamix_tflite.read.files import hashed
from metamix_tflite.write.flatbuffer import ModelBuilder, Signature

BITS = (8, 4, 3, 2)
# (activation, weight) bits of the `resnet` fixture; test_verify.py edits layers by what they hold.
RESNET_BITS = {
    "stem": (8, 8),
    "block1_conv1": (4, 4),
    "block1_conv2": (4, 3),
    "block2_conv1": (8, 3),
    "block2_downsample": (2, 4),
    "block2_conv2": (3, 2),
    "block3_conv1": (4, 8),
    "block3_downsample": (8, 2),
    "block3_conv2": (2, 4),
    "logits": (8, 8),
}


def _randomise(model, rng):
    """Weights and statistics that no initializer gives: negative scales, and one that is 0."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.moving_mean.shape[0]
            gamma = rng.uniform(0.5, 1.5, size) * rng.choice([-1.0, 1.0], size, p=[0.3, 0.7])
            gamma[rng.integers(size)] = 0.0
            if layer.scale:
                layer.gamma.assign(gamma)
            if layer.center:
                layer.beta.assign(rng.normal(0.1, 0.4, size))
            layer.moving_mean.assign(rng.normal(0, 0.2, size))
            layer.moving_variance.assign(rng.uniform(0.3, 2.0, size))
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(rng.normal(0, 0.2, layer.bias.shape))


def _random_bits(model, rng):
    layers = model.mac_layers
    return kmm.BitAssignment(
        {n.name: int(rng.choice(n.input_quantizer.candidates)) for n in layers},
        {n.name: int(rng.choice(n.weight_quantizer.candidates)) for n in layers},
    )


@pytest.fixture(scope="session")
def quantized():
    """quantized(float model, seed) -> (model in weight training, images): PTQ at random bits."""

    def make(model, seed=0, images=32, space=None, rule="mse", float_layers=()):
        rng = np.random.default_rng(seed)
        _randomise(model, rng)
        # A level and a contrast for each image, so that features differ from image to image.
        shape = model.inputs[0].shape[1:]
        level, contrast = rng.normal(0, 1.5, (2, images, *[1] * len(shape)))
        batch = (level + contrast * rng.normal(0, 1, (images, *shape))).astype(np.float32)
        space = space or kmm.SearchSpace(BITS, BITS)
        result = kmm.MetaMixModel.from_float(model, space, float_layers)
        kmm.calibrate(result, batch, rule=rule)
        result.set_bits(_random_bits(result, rng))
        return result, batch

    return make


@pytest.fixture
def trains_and_is_saved(tmp_path):
    """trains_and_is_saved(build, "MetaMix" or "Bit-Mixer", space): all phases, and its file."""

    def check(build, method, space):
        keras.utils.set_random_seed(2)
        source = build()
        images = np.random.default_rng(0).normal(size=(8, *source.input_shape[1:]))
        images = images.astype(np.float32)
        labels = keras.tree.map_structure(
            lambda t: np.random.default_rng(1).uniform(size=(8, *t.shape[1:])).astype(np.float32),
            source.output,
        )
        if method == "MetaMix":
            model = kmm.MetaMixModel.from_float(source, space)
            schedule = kmm.MetaMixCallback(
                meta_epochs=1, search_epochs=1, budget=kmm.Bops(share=0.5), verbose=0
            )
        else:
            model = kmm.BitMixerModel.from_float(source, kmm.SearchSpace((4, 2)))
            schedule = kmm.BitMixerCallback(stage_epochs=(1, 1, 1))
        # Tracing the phases takes longer than their few steps.
        model.compile("adam", "mse", run_eagerly=method == "MetaMix")
        fitted = model.fit(images, labels, epochs=3, batch_size=8, callbacks=[schedule], verbose=0)
        assert np.all(np.isfinite(fitted.history["loss"]))
        if method == "Bit-Mixer":
            model.set_bits(model.uniform_bits(2))
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        for found, expected in zip(
            *(keras.tree.flatten(m(images, training=False)) for m in (loaded, model)), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
        flat = mt.convert(loaded)
        mt.verify(flat, model.bit_assignment)
        parities = mt.parity(flat, model, images)
        found = parities.values() if isinstance(parities, dict) else [parities]
        assert all(parity.differing == 0 for parity in found)
        assert mt.Runner(flat).delegated

    return check


@pytest.fixture(scope="session")
def differing():
    """differing(file, folded model, images, signature) -> (output values that differ, delegated).

    `signature` is needed where the file has several.
    """

    def count(flat, folded, images, signature=None):
        runner = mt.Runner(flat, batch_size=len(images), signature=signature)
        found = runner.invoke(images)
        expected = keras.tree.flatten(folded(images))
        wrong = [np.sum(f != np.asarray(e)) for f, e in zip(found, expected, strict=True)]
        return int(sum(wrong)), runner.delegated

    return count


@pytest.fixture(scope="session")
def resnet(quantized):
    """A small ResNet with its images, file and bits: (model, images, file, bits)."""
    from keras_metamix.zoo.small import small_resnet

    keras.utils.set_random_seed(0)
    model, images = quantized(small_resnet((8, 8, 1), classes=5, width=4), seed=3)
    model.set_bits(
        kmm.BitAssignment(
            {name: activation for name, (activation, _) in RESNET_BITS.items()},
            {name: weight for name, (_, weight) in RESNET_BITS.items()},
        )
    )
    return model, images, mt.convert(model), model.bit_assignment


@pytest.fixture(scope="session")
def remake():
    """remake(file, edit) -> the file after `edit(ModelT)`, packed anew, with its hashes set anew as
    who edits a file on purpose would, where it still has them; not where `rehash` is False."""

    def apply(flat, edit, rehash=True):
        model = flatbuffer_utils.read_model_from_bytearray(bytearray(flat))
        edit(model)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
        edited = bytes(builder.Output())
        if rehash:
            with contextlib.suppress(mt.VerificationError):
                edited = hashed(edited)
        return edited

    return apply


@pytest.fixture(scope="session")
def run_operator():
    """run_operator(op, inputs, output, options, version, arrays) -> (output, delegated).

    `inputs` are (shape, type, scale, zero-point, constant or None[, quantized dimension]),
    `output` the first four of these, `options` the schema class's name and its fields.
    """

    def run(op, inputs, output, options=None, version=1, arrays=()):
        builder = ModelBuilder("one operator")
        graph = builder.subgraph("main")
        indices, names = [], {}
        for number, fields in enumerate(inputs):
            indices.append(graph.tensor(f"i{number}", *fields))
            if fields[4] is None:
                names[f"i{number}"] = indices[-1]
        result = graph.tensor("o", *output)
        fields = None
        if options is not None:
            fields = getattr(schema, f"{options[0]}T")()
            for key, value in options[1].items():
                setattr(fields, key, value)
        graph.operator(op, indices, [result], fields, version)
        graph.finish(Signature(names, {"o": result}))
        interpreter = Interpreter(model_content=builder.finish(), num_threads=1)
        interpreter.allocate_tensors()
        for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        details = interpreter._get_ops_details()
        delegated = any(d["op_name"] == "DELEGATE" for d in details)
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), delegated

    return run


@pytest.fixture(scope="session")
def int8():
    """int8(shape, scale, zero_point) -> an INT8 tensor's fields for `run_operator`."""

    def fields(shape, scale, zero_point=0, data=None, dimension=0):
        return (shape, TensorType.INT8, scale, zero_point, data, dimension)

    return fields


@pytest.fixture(scope="session")
def half_even():
    """half_even(accumulator, multiplier, zero_point, low, high) -> codes that XNNPACK gives."""

    def requantize(accumulator, multiplier, zero_point, low, high):
        scaled = accumulator.astype(np.float32) * np.asarray(multiplier, np.float32)
        return np.clip(np.rint(scaled).astype(np.int64) + zero_point, low, high)

    return requantize


@pytest.fixture(scope="session")
def as_trained():
    """as_trained(network) gives variables values that differ, as those of a trained one do."""

    def change(network, seed=0):
        generator = np.random.default_rng(seed)
        for variable in network.weights:
            noise = generator.normal(size=variable.shape, scale=0.2).astype(np.float32)
            if variable.name in ("beta", "bias", "moving_mean"):
                variable.assign(variable + noise)
            if variable.name in ("gamma", "moving_variance"):
                variable.assign(variable * np.exp(noise))

    return change
