"""The file computes what the folded model computes, to the bit, and holds the trained integers."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.zoo.small import small_cnn, small_mobilenet, small_resnet
from metamix_tflite.read import read_file

ZOO = {"small_cnn": small_cnn, "small_resnet": small_resnet, "small_mobilenet": small_mobilenet}


def zoo_model(name):
    keras.utils.set_random_seed(0)
    return ZOO[name]((12, 12, 1), width=8)


def mlp():
    return keras.Sequential(
        [
            keras.Input((12,), name="features"),
            layers.Dense(16, activation="relu", name="hidden1"),
            layers.Dropout(0.5, name="dropout"),
            layers.Dense(9, activation="relu", name="hidden2"),
            layers.Dense(5, activation="softmax", name="classes"),
        ],
        name="mlp",
    )


def sequential_cnn():
    return keras.Sequential(
        [
            keras.Input((9, 9, 2), name="image"),
            layers.Conv2D(6, 3, activation="relu", name="conv1"),
            layers.MaxPooling2D(name="pool"),
            layers.SpatialDropout2D(0.2, name="spatial"),
            layers.Conv2D(8, 1, activation="relu6", name="conv2"),
            layers.Flatten(name="flatten"),
            layers.Dropout(0.3, name="dropout"),
            layers.Dense(10, activation="relu", name="dense1"),
            layers.Dense(4, name="dense2"),
            layers.Softmax(name="softmax"),
        ],
        name="sequential_cnn",
    )


def padded():
    x = image = keras.Input((10, 10, 2), name="image")
    x = layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad1")(x)
    x = layers.Conv2D(6, 3, 2, use_bias=False, name="conv1")(x)
    x = layers.BatchNormalization(name="conv1_bn")(x)
    x = layers.ReLU(name="conv1_relu")(x)
    x = layers.ZeroPadding2D(((0, 1), (1, 0)), name="pad2")(x)
    x = layers.DepthwiseConv2D(3, 2, use_bias=False, name="depthwise")(x)
    x = layers.BatchNormalization(name="depthwise_bn")(x)
    x = layers.ZeroPadding2D(1, name="pad3")(x)  # of a signed tensor
    x = layers.Conv2D(8, 3, activation="relu", name="conv2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(5, name="logits")(x), name="padded")


def dilated():
    x = image = keras.Input((11, 11, 2), name="image")
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv1")(x)
    x = layers.Conv2D(6, 3, dilation_rate=2, padding="same", name="conv2")(x)
    x = layers.BatchNormalization(name="bn2")(x)
    x = layers.ReLU(6.0, name="relu2")(x)
    x = layers.Conv2D(7, 3, dilation_rate=3, padding="valid", activation="relu", name="conv3")(x)
    x = layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", name="depthwise")(x)
    return keras.Model(image, layers.Conv2D(3, 1, name="last")(x), name="dilated")


def odd_channels():
    x = image = keras.Input((7, 5, 3), name="image")
    x = layers.Conv2D(5, 3, padding="same", activation="relu", name="conv1")(x)
    x = layers.Conv2D(7, 1, activation="relu", name="odd")(x)
    x = layers.Conv2D(4, 1, strides=2, activation="relu", name="strided")(x)
    x = layers.Conv2D(9, 1, activation="relu", name="even")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="multiplied")(x)
    return keras.Model(image, layers.Conv2D(3, 1, name="last")(x), name="odd_channels")


def dense_on_maps():
    x = image = keras.Input((6, 6, 4), name="image")
    x = layers.Dense(6, activation="relu", name="each_pixel1")(x)
    x = layers.Dense(5, activation="relu", name="each_pixel2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Reshape((3, 60), name="reshape")(x)
    x = layers.Dense(4, activation="relu", name="rows")(x)
    x = layers.Flatten(name="flatten2")(x)
    return keras.Model(image, layers.Dense(3, name="logits")(x), name="dense_on_maps")


def rescaled_twice():
    """One sum read by layers of several bit-widths, by a product and by an output."""
    image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", name="stem")(image)
    left = layers.Conv2D(6, 1, activation="relu", name="left")(x)
    right = layers.DepthwiseConv2D(3, padding="same", name="right")(x)
    total = layers.Add(name="total")([left, right])
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(total)
    gate = layers.Conv2D(6, 1, activation="relu", name="excite")(gate)
    gated = layers.Multiply(name="gated")([total, gate])
    logits = layers.Conv2D(4, 3, name="logits")(gated)
    return keras.Model(image, logits, name="rescaled_twice")


MODELS = [
    mlp,
    sequential_cnn,
    padded,
    dilated,
    odd_channels,
    dense_on_maps,
    rescaled_twice,
]


def weights_of(graph, name):
    """A layer's weight tensor."""
    (tensor,) = [t for t in graph.tensors if t.name == f"{name}/weights"]
    return tensor


@pytest.mark.parametrize(
    ("name", "seed"),
    [("small_cnn", 0), ("small_resnet", 0), ("small_resnet", 1), ("small_mobilenet", 0)],
)
def test_zoo_models_are_exact(name, seed, quantized, differing):
    model, images = quantized(zoo_model(name), seed)
    flat = mt.convert(model)
    mt.verify(flat, model.bit_assignment)
    assert differing(flat, kmm.fold_batch_norm(model), images) == (0, True)


def test_parity_reports_what_was_compared(resnet):
    model, images, flat, _ = resnet
    report = mt.parity(flat, model, images)
    assert (report.differing, report.max_lsb, report.outputs) == (0, 0, 5 * len(images))
    assert report.delegated
    assert report.top1_agreement == 1.0
    assert "0 of 160 outputs differ" in str(report)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_other_models_are_exact(build, seed, quantized, differing):
    keras.utils.set_random_seed(seed)
    model, images = quantized(build(), seed)
    flat = mt.convert(model)
    mt.verify(flat, model.bit_assignment)
    assert differing(flat, kmm.fold_batch_norm(model), images) == (0, True)


@pytest.mark.parametrize("container", ["fast", "smallest"])
@pytest.mark.parametrize("build", [odd_channels, padded, sequential_cnn], ids=lambda b: b.__name__)
def test_containers_and_integers_of_the_file(build, container, quantized):
    keras.utils.set_random_seed(1)
    space = kmm.SearchSpace((4, 3), (8, 4, 3, 2))
    model, _ = quantized(build(), 1, space=space)
    layers_of = {layer.name: layer for layer in model.mac_layers}
    norms = {n.producer.name: n for n in model.network.layers if getattr(n, "producer", None)}
    for weight_bits in (8, 4, 3, 2) if container == "fast" else (4, 2):
        model.set_bits(
            kmm.BitAssignment(
                model.bit_assignment.activation_bits,
                {
                    name: weight_bits if layer.weight_quantizer.searched else 8
                    for name, layer in layers_of.items()
                },
            )
        )
        graph = read_file(mt.convert(model, weight_container=container))
        for name, layer in layers_of.items():
            tensor = weights_of(graph, name)
            kernel = layer.integer_kernel()
            small = layer.weight_quantizer.bits <= 4
            is_dense = kernel.ndim == 2
            pointwise = is_dense or (
                kernel.shape[:2] == (1, 1)
                and tuple(layer.strides) == (1, 1)
                and not isinstance(layer, layers.DepthwiseConv2D)
            )
            int4 = small and (container == "smallest" or (pointwise and kernel.shape[-2] % 2 == 0))
            assert tensor.type == ("INT4" if int4 else "INT8"), name
            # The trained integers, number for number; a channel whose batch norm has a negative
            # gamma is negated as a whole.
            sign = np.ones(1, np.int8)
            if name in norms and norms[name].scale:
                sign = np.where(np.asarray(norms[name].gamma) < 0, -1, 1)
                assert (sign < 0).any(), name
            if isinstance(layer, layers.DepthwiseConv2D):
                expected = kernel.reshape(1, *kernel.shape[:2], -1) * sign
            else:
                flat_kernel = (kernel * sign).reshape(-1, kernel.shape[-1]).T
                expected = flat_kernel.reshape(tensor.shape)
            np.testing.assert_array_equal(tensor.data, expected, err_msg=name)


@pytest.mark.parametrize("name", ["small_resnet", "small_mobilenet"])
def test_int8_inputs_and_outputs(name, quantized):
    model, images = quantized(zoo_model(name), 5)
    floats, integers = mt.convert(model), mt.convert(model, io="int8")
    mt.verify(integers, model.bit_assignment)
    runner = mt.Runner(integers, batch_size=len(images))
    (detail,) = runner.input_details
    assert detail["dtype"] == np.int8
    scale, zero_point = detail["quantization"]
    reciprocal = np.float32(1) / np.float32(scale)
    codes = np.clip(np.rint(images * reciprocal) + zero_point, -128, 127).astype(np.int8)
    (found,) = runner.invoke(codes)
    assert found.dtype == np.int8
    assert runner.delegated
    graph = read_file(integers)
    output = graph.tensors[graph.outputs[0]]
    real = (found.astype(np.float32) - np.float32(output.zero_points[0])) * output.scales[0]
    np.testing.assert_array_equal(real, mt.Runner(floats).predict(images))
    with pytest.raises(ValueError, match="io='float32'"):
        mt.parity(integers, model, images)


@pytest.mark.parametrize("name", ["small_cnn", "small_mobilenet"])
def test_smallest_holds_every_low_bit_weight_in_int4(name, quantized):
    keras.utils.set_random_seed(2)
    space = kmm.SearchSpace((8,), (4, 3, 2), edge_bits=8)
    model, images = quantized(zoo_model(name), 2, images=64, space=space)
    fast, smallest = mt.convert(model), mt.convert(model, weight_container="smallest")
    mt.verify(smallest, model.bit_assignment)
    assert len(smallest) < len(fast)
    graph = read_file(smallest)
    for layer, bits in model.bit_assignment.weight_bits.items():
        assert weights_of(graph, layer).type == ("INT4" if bits <= 4 else "INT8")
    runner = mt.Runner(smallest, batch_size=64)
    assert not runner.delegated  # LiteRT has INT4 convolutions outside XNNPACK only
    found, exact = runner.predict(images), mt.Runner(fast).predict(images)
    # Its own kernels differ by a step now and then, which a random network amplifies.
    assert np.mean(found.argmax(-1) == exact.argmax(-1)) >= 0.85


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


def test_a_pool_of_one_pixel_is_exact_outside_xnnpack(quantized, differing):
    # The shortcut of ResNet-v2; XNNPACK has no 1x1 pool with strides, other kernels only move too.
    x = image = keras.Input((7, 7, 2), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    x = layers.MaxPooling2D(1, 2, name="every_other")(x)
    source = keras.Model(image, layers.Conv2D(3, 1, name="last")(x), name="one_pixel")
    model, images = quantized(source, 0)
    wrong, delegated = differing(mt.convert(model), kmm.fold_batch_norm(model), images)
    assert wrong == 0
    assert not delegated


def test_a_dead_branch_is_exact_or_refused(quantized, differing):
    # A ReLU that never opens: its tensor is all zeros, and no step size follows from the data.
    x = image = keras.Input((6, 6, 2), name="image")
    stem = layers.Conv2D(4, 3, padding="same", activation="relu", name="stem")(x)
    dead = layers.Conv2D(4, 3, padding="same", activation="relu", name="dead")(stem)
    x = layers.Add(name="total")([stem, dead])
    x = layers.Conv2D(4, 3, activation="relu", name="after")(x)
    source = keras.Model(image, layers.Conv2D(3, 1, name="last")(x), name="dead_branch")
    kernel = source.get_layer("dead").kernel
    kernel.assign(-10 * np.abs(kernel) - 1)
    try:
        model, images = quantized(source, 0)
        flat = mt.convert(model)
    except ValueError as error:
        assert any(f"'{name}" in str(error) for name in ("dead", "total"))
        return
    assert differing(flat, kmm.fold_batch_norm(model), images) == (0, True)


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
    assert differing(mt.convert(model), kmm.fold_batch_norm(model), images) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_container": "tiny"}, r"weight_container: expected one of .*'smallest'.*'tiny'"),
        ({"io": "uint8"}, "io: expected 'float32' or 'int8', found 'uint8'"),
    ],
)
def test_bad_arguments_are_named(arguments, message, resnet):
    with pytest.raises(ValueError, match=message):
        mt.convert(resnet[0], **arguments)


def test_a_float_model_is_refused():
    with pytest.raises(TypeError, match="MetaMixModel, found Functional"):
        mt.convert(small_cnn((8, 8, 1), width=4))


def test_a_model_that_is_not_ready_is_refused():
    model = kmm.MetaMixModel.from_float(small_cnn((8, 8, 1), width=4))
    with pytest.raises(ValueError, match="phase 'bit_meta'"):
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


# --- random graphs -----------------------------------------------------------------------------


class RandomModel:
    """A small network of random layers; `build` gives the Keras model of a seed."""

    def __init__(self, seed):
        self.rng, self.seed, self.count = np.random.default_rng(seed), seed, 0

    def pick(self, *values):
        return values[self.rng.integers(len(values))]

    def name(self, kind):
        self.count += 1
        return f"{kind}{self.count}"

    def activation(self, x, allowed=("", "relu", "relu6")):
        kind = self.pick(*allowed)
        if kind:
            x = layers.ReLU(6.0 if kind == "relu6" else None, name=self.name(kind))(x)
        return x

    def mac(self, x, layer, norm=True):
        x = layer(x)
        if norm and self.pick(True, False):
            x = layers.BatchNormalization(name=self.name("bn"))(x)
        return self.activation(x)

    def fused(self):
        """A MAC layer's own activation, which leaves no place for a batch norm."""
        return self.pick("linear", "linear", "relu", "relu6")

    def conv(self, x, filters=None, strides=None, padding=None):
        size = min(self.pick(1, 2, 3, 5), *x.shape[1:3])
        strides = strides or self.pick(1, 1, 2)
        fits = strides == 1 and size > 1 and min(x.shape[1:3]) > 2 * (size - 1)
        fused = self.fused()
        layer = layers.Conv2D(
            filters or int(self.rng.integers(1, 9)),
            size,
            strides,
            padding or self.pick("same", "valid"),
            dilation_rate=self.pick(1, 2) if fits else 1,
            use_bias=self.pick(True, False),
            activation=fused,
            name=self.name("conv"),
        )
        return self.mac(x, layer, norm=fused == "linear")

    def depthwise(self, x):
        fused = self.fused()
        layer = layers.DepthwiseConv2D(
            min(self.pick(2, 3), *x.shape[1:3]),
            self.pick(1, 2),
            self.pick("same", "valid"),
            depth_multiplier=self.pick(1, 1, 2),
            use_bias=self.pick(True, False),
            activation=fused,
            name=self.name("depthwise"),
        )
        return self.mac(x, layer, norm=fused == "linear")

    def pool(self, x):
        if min(x.shape[1:3]) < 2:
            return self.conv(x)
        return layers.MaxPooling2D(
            2, self.pick(1, 2), self.pick("same", "valid"), name=self.name("pool")
        )(x)

    def pad(self, x):
        amounts = tuple(tuple(int(n) for n in self.rng.integers(0, 3, 2)) for _ in range(2))
        return layers.ZeroPadding2D(amounts, name=self.name("pad"))(x)

    def residual(self, x):
        branch = self.conv(x, x.shape[-1], 1, "same")
        if self.pick(True, False):
            branch = self.conv(branch, x.shape[-1], 1, "same")
        pair = [x, branch] if self.pick(True, False) else [branch, x]
        return self.activation(layers.Add(name=self.name("add"))(pair))

    def head(self, x):
        kind = self.pick("pool", "flatten", "maps", "pixels")
        if kind == "pool":
            x = layers.GlobalAveragePooling2D(keepdims=self.pick(True, False), name="mean")(x)
        elif kind == "flatten":
            x = layers.Flatten(name="flatten")(x)
            if self.pick(True, False):
                x = layers.Dense(6, activation=self.pick("relu", "relu6"), name="hidden")(x)
                x = layers.Dropout(0.5, name="dropout")(x)
        elif kind == "maps":
            return self.conv(x)
        x = layers.Dense(int(self.rng.integers(2, 8)), name="logits")(x)
        return self.pick(lambda t: t, layers.Softmax(name="softmax"))(x)

    def build(self):
        keras.utils.set_random_seed(self.seed)
        shape = (*self.rng.integers(5, 11, 2), self.rng.integers(1, 5))
        x = image = keras.Input(tuple(int(n) for n in shape), name="image")
        for _ in range(self.rng.integers(2, 5)):
            block = self.pick(
                self.conv, self.conv, self.depthwise, self.pool, self.pad, self.residual
            )
            x = block(x)
        return keras.Model(image, self.head(x), name=f"random_{self.seed}")


def check_random(seed, quantized, differing):
    """ "exact", or "refused" with an error that names a layer."""
    source = RandomModel(seed).build()
    try:
        model, images = quantized(source, seed, images=16)
        folded = kmm.fold_batch_norm(model)
        flat = mt.convert(folded)
    except ValueError as error:
        names = [layer.name for layer in source.layers]
        assert any(f"{name}" in str(error) for name in names), error
        return "refused"
    mt.verify(flat, model.bit_assignment)
    assert differing(flat, folded, images) == (0, True)
    return "exact"


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs_are_exact_or_refused_by_name(seed, quantized, differing):
    check_random(seed, quantized, differing)


@pytest.mark.slow
def test_many_random_graphs_are_exact_and_few_are_refused(quantized, differing):
    outcomes = []
    for seed in range(100, 300):
        outcomes.append(check_random(seed, quantized, differing))
        keras.backend.clear_session()
    assert outcomes.count("exact") > 0.8 * len(outcomes)
