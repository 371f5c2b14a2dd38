"""Files of a Bit-Mixer compute what its folded network computes, at whatever bit-widths."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.graph.transitions import TRANSITION_RULES
from keras_metamix.layers.parts import batch_norms
from metamix_tflite.read.files import read_file

BITS = (4, 3, 2)


def norm(x, name, relu=None):
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return x if relu is None else layers.ReLU(relu or None, name=f"{name}_relu")(x)


def classifier(image, x, name):
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(image, layers.Dense(5, name="logits")(x), name=name)


def residual():
    """A block with a downsample branch, then a plain one."""
    x = image = keras.Input((8, 8, 1), name="image")
    x = norm(layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(x), "stem", 0)
    y = norm(layers.Conv2D(6, 3, 2, padding="same", name="conv1")(x), "conv1", 0)
    y = norm(layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv2")(y), "conv2")
    x = norm(layers.Conv2D(6, 1, 2, use_bias=False, name="downsample")(x), "downsample")
    x = layers.ReLU(name="add1_relu")(layers.Add(name="add1")([y, x]))
    y = norm(layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv3")(x), "conv3", 0)
    y = norm(layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv4")(y), "conv4")
    x = layers.ReLU(name="add2_relu")(layers.Add(name="add2")([y, x]))
    return classifier(image, x, "residual")


def depthwise():
    """An inverted residual, and a depthwise layer that doubles the channels."""
    x = image = keras.Input((9, 9, 2), name="image")
    x = norm(layers.Conv2D(4, 3, 2, use_bias=False, name="stem")(x), "stem", 6.0)
    y = norm(layers.Conv2D(8, 1, use_bias=False, name="expand")(x), "expand", 6.0)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(y)
    y = layers.Conv2D(4, 1, use_bias=False, name="project")(norm(y, "depthwise", 6.0))
    x = layers.Add(name="add")([x, norm(y, "project")])
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="multiplied")(x)
    return classifier(image, norm(x, "multiplied", 6.0), "depthwise")


@pytest.fixture
def mixer():
    """(a mixer with random batch norms in every set, a scale of 0 among them; images)."""

    def make(build, batch_norm, seed):
        keras.utils.set_random_seed(seed)
        rng = np.random.default_rng(seed)
        model = kmm.BitMixerModel.from_float(build(), batch_norm=batch_norm)
        for layer in batch_norms(model.network):
            shape = layer.gamma.shape
            gamma = rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape, p=[0.3, 0.7])
            gamma[:, rng.integers(shape[1])] = 0.0
            layer.gamma.assign(gamma)
            layer.beta.assign(rng.normal(0.1, 0.4, shape))
            layer.moving_mean.assign(rng.normal(0, 0.2, shape))
            layer.moving_variance.assign(rng.uniform(0.3, 2.0, shape))
        shape = model.network.input_shape[1:]
        images = rng.normal(0, 1.5, (32, *shape)).astype(np.float32)
        kmm.calibrate(model, images, rule="mse")
        model.stage = "layer_wise"
        return model, images, rng

    return make


def by_layer(model, rng):
    """A random assignment that is never uniform."""
    searched = [layer.name for layer in model.mac_layers if layer.input_quantizer.choice.searched]
    drawn = rng.permutation(np.resize(BITS, len(searched))).tolist()
    bits = dict.fromkeys((layer.name for layer in model.mac_layers), 8)
    bits |= dict(zip(searched, drawn, strict=True))
    return kmm.BitAssignment(bits, bits)


QUICK = [(residual, "feeding"), (depthwise, "following")]
CASES = [
    pytest.param(
        build,
        reading,
        marks=() if (build, reading) in QUICK else pytest.mark.slow,
        id=f"{build.__name__}-{reading}",
    )
    for build in (residual, depthwise)
    for reading in TRANSITION_RULES
]


@pytest.mark.parametrize(("build", "batch_norm"), CASES)
def test_random_assignments_are_exact(build, batch_norm, mixer, differing):
    model, images, rng = mixer(build, batch_norm, seed=TRANSITION_RULES.index(batch_norm))
    outputs = []
    for bits in (by_layer(model, rng), by_layer(model, rng)):
        model.set_bits(bits)
        folded, flat = kmm.fold_batch_norm(model), mt.convert(model)
        mt.verify(flat, bits)
        assert differing(flat, folded, images) == (0, True)
        outputs.append(np.asarray(folded(images)))
        for tensor in read_file(flat).tensors:
            name = tensor.name.removesuffix("/weights")
            if name != tensor.name:
                assert np.abs(tensor.data).max() <= 2 ** (bits[name].weight - 1) - 1
    assert np.any(outputs[0] != outputs[1])


@pytest.mark.parametrize("build", [residual, depthwise], ids=lambda b: b.__name__)
def test_a_file_of_fewer_bits_holds_the_shifted_integers_of_the_file_of_most(build, mixer):
    """One copy of the weights is enough for a device: it adds and shifts."""
    model, _, _ = mixer(build, "shared", seed=4)  # one batch norm: signs fold alike
    stored, steps = {}, {4: 0, 3: 1, 2: 2}
    for bits, shift in steps.items():
        model.set_bits(model.uniform_bits(bits))
        seen = 0
        for tensor in read_file(mt.convert(model)).tensors:
            name = tensor.name.removesuffix("/weights")
            if name == tensor.name:
                continue
            data = np.asarray(tensor.data, np.int64)
            highest = stored.setdefault(name, data)
            if name in ("stem", "logits"):
                np.testing.assert_array_equal(data, highest, err_msg=name)
                continue
            shifted = (np.abs(highest) + (1 << shift >> 1)) >> shift
            expected = np.sign(highest) * np.minimum(shifted, 2 ** (bits - 1) - 1)
            np.testing.assert_array_equal(data, expected, err_msg=name)
            seen += bool(np.any(data))
        assert seen == len(model.mac_layers) - 2


def test_a_mixer_in_its_first_stage_is_refused(mixer):
    model, _, _ = mixer(depthwise, "feeding", seed=5)
    model.stage = "activations"
    with pytest.raises(ValueError, match="stage 'activations'"):
        mt.convert(model)
