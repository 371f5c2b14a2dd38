"""Files of random small networks are exact, or refused by the name of a layer.

    RANDOM_GRAPHS=5000 make test PYTEST_ARGS=tests/tflite/test_random_graphs.py

is the long mode: so many graphs, other ones each time. What it finds becomes a test of its own.
"""

import os

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt

COUNT = int(os.environ.get("RANDOM_GRAPHS", "0"))
QUICK, SHARD = 25, 60
RELUS = ("linear", "relu", "relu6")
GATES = ("hard_silu", "silu", "hard_sigmoid", "sigmoid", "tanh", "leaky_relu", "elu")


class RandomModel:
    """A small network whose every choice `pick` makes."""

    def __init__(self, pick):
        self.pick, self.count = pick, 0

    def name(self, kind):
        self.count += 1
        return f"{kind}{self.count}"

    def number(self, low, high):
        return self.pick(*range(low, high + 1))

    # --- layers ----------------------------------------------------------------------------

    def activation(self, x):
        name = self.name("act")
        kind = self.pick("linear", "relu", "relu", "relu6", "raw", *GATES)
        if kind == "linear":
            return x
        if kind == "relu" and len(x.shape) == 4 and self.pick(True, False, False, False):
            slopes = keras.initializers.RandomUniform(-0.5, 1.0)
            return layers.PReLU(slopes, shared_axes=[1, 2], name=name)(x)
        if kind == "raw":
            return self.pick(keras.ops.relu, keras.ops.relu6, keras.ops.hard_silu)(x)
        if kind in RELUS and self.pick(True, False):
            most = self.pick(None, 0.9, 4) if kind == "relu" else 6.0
            return layers.ReLU(most, name=name)(x)
        return layers.Activation(kind, name=name)(x)

    def norm(self, x):
        return layers.BatchNormalization(
            scale=self.pick(True, True, False), center=self.pick(True, True, False),
            name=self.name("bn"),
        )(x)  # fmt: skip

    def behind_mac(self, x, fused):
        if fused == "linear" and self.pick(True, False):
            x = self.norm(x)
        return self.activation(x) if fused == "linear" else x

    def fused(self):
        """A MAC layer's own activation, which leaves no place for a batch norm."""
        return self.pick("linear", "linear", "linear", "relu", "relu6", "hard_silu", "sigmoid")

    def conv(self, x, filters=None, strides=None, padding=None):
        size = min(self.pick(1, 2, 3, 5), *x.shape[1:3])
        strides = strides or self.pick(1, 1, 2)
        fits = strides == 1 and size > 1 and min(x.shape[1:3]) > 2 * (size - 1)
        fused, filters = self.fused(), filters or self.number(1, 8)
        groups = self.pick(1, 1, 2) if x.shape[-1] % 2 == filters % 2 == 0 else 1
        layer = layers.Conv2D(
            filters,
            size,
            strides,
            padding or self.pick("same", "valid"),
            dilation_rate=self.pick(1, 2) if fits and groups == 1 else 1,
            groups=groups,
            use_bias=self.pick(True, False),
            activation=fused,
            name=self.name("conv"),
        )
        return self.behind_mac(layer(x), fused)

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
        return self.behind_mac(layer(x), fused)

    def transposed(self, x):
        fused, size = self.fused(), self.pick(1, 2, 2, 3)
        if max(x.shape[1:3]) > 12:
            return self.conv(x)
        layer = layers.Conv2DTranspose(
            self.number(1, 6),
            (size, self.pick(size, size, 2)),
            self.pick(size, size, 1, 2),
            self.pick("same", "valid"),
            use_bias=self.pick(True, False),
            activation=fused,
            name=self.name("transposed"),
        )
        return self.behind_mac(layer(x), fused)

    def separable(self, x):
        layer = layers.SeparableConv2D(
            self.number(1, 6), min(3, *x.shape[1:3]), self.pick(1, 2), "same",
            use_bias=self.pick(True, False), activation=self.pick("linear", "relu"),
            name=self.name("separable"),
        )  # fmt: skip
        return layer(x)

    def twice(self, x):
        """One layer that is called on two tensors."""
        layer = layers.Conv2D(x.shape[-1], 3, padding="same", name=self.name("shared"))
        first = layer(x)
        return self.activation(layer(self.activation(first)))

    # --- blocks ----------------------------------------------------------------------------

    def pool(self, x):
        if min(x.shape[1:3]) < 2:
            return self.conv(x)
        cls, strides = self.pick(layers.MaxPooling2D, layers.AveragePooling2D), self.pick(1, 2)
        size = self.pick(2, 2, 1) if cls is layers.MaxPooling2D else 2
        return cls(size, strides, self.pick("same", "valid"), name=self.name("pool"))(x)

    def pad(self, x):
        amounts = tuple((self.number(0, 2), self.number(0, 2)) for _ in range(2))
        if min(x.shape[1:3]) > 4 and self.pick(True, False, False):
            return layers.Cropping2D(amounts, name=self.name("crop"))(x)
        return layers.ZeroPadding2D(amounts, name=self.name("pad"))(x)

    def resized(self, x):
        """Another size: bilinear, of repeated pixels, or blocks of pixels as channels."""
        kind, name = self.pick("bilinear", "bilinear", "nearest", "fewer", "blocks"), "resized"
        height, width, channels = x.shape[1:]
        if kind == "bilinear":
            return layers.Resizing(self.number(2, 9), self.number(2, 9), name=self.name(name))(x)
        if kind == "nearest":
            return layers.UpSampling2D((self.pick(1, 2), 2), name=self.name(name))(x)
        if kind == "blocks" and channels % 4 == 0:
            return keras.ops.depth_to_space(x, 2)
        if height % 2 or width % 2:
            return keras.ops.image.resize(x, (2 * height, width), "nearest")
        if kind == "blocks":
            return keras.ops.space_to_depth(x, 2)
        return keras.ops.image.resize(x, (height // 2, width), "nearest")

    def moved(self, x):
        """Values in other places: slices, halves, orders of the axes, copies."""
        height, width, channels = x.shape[1:]
        kind = self.pick("slice", "split", "shuffle", "turn", "strides", "stack", "copies")
        if kind == "slice":
            first = self.number(0, channels - 1)
            return x[
                :,
                self.number(0, height - 1) // 2 :,
                :,
                first : self.number(first, channels - 1) + 1,
            ]
        if kind == "split" and channels % 2 == 0:
            first, second = keras.ops.split(x, 2, axis=-1)
            parts = [first, self.conv(second, None, 1, "same")]
            return keras.ops.concatenate(parts[:: self.pick(1, -1)], axis=-1)
        if kind in ("split", "shuffle"):
            groups = self.pick(2, 3) if channels % 6 == 0 else 1 + (channels % 2 == 0)
            x = keras.ops.reshape(x, (-1, height, width, groups, channels // groups))
            x = keras.ops.transpose(x, (0, 1, 2, 4, 3))
            return keras.ops.reshape(x, (-1, height, width, channels))
        if kind == "turn":
            orders = ((2, 1, 3), (1, 3, 2), (3, 1, 2)) if max(x.shape[1:]) < 13 else ((2, 1, 3),)
            return layers.Permute(self.pick(*orders), name=self.name("turn"))(x)
        if kind == "strides":
            corners = [x[:, a::2, b::2] for a in (0, height > 1) for b in (0, width > 1)]
            if height % 2 or width % 2:
                return self.pick(*corners)
            return keras.ops.concatenate(corners, -1)
        if kind == "stack":
            rows = [x[:, n] for n in range(min(height, 3))]
            return keras.ops.stack(rows, self.pick(1, 2))
        if max(height, width) > 12:
            return x[:, ::2, ::2]
        return keras.ops.repeat(x, 2, 1) if self.pick(True, False) else keras.ops.tile(x, (2, 1))

    def reduced(self, x):
        """An axis, or two, as one place."""
        function = self.pick("mean", "sum", "max", "min")
        axes = self.pick(-1, (-1,), (1,), 2, (1, 2), (2, 3))
        found = getattr(keras.ops, function)(x, axes, keepdims=True)
        if self.pick(True, True, False):
            return x * keras.ops.sigmoid(found)
        return found

    def residual(self, x):
        """Post- or pre-activation, a sum of two or three, or a product."""
        branch = self.activation(self.norm(x)) if self.pick(True, False) else x
        branch = self.conv(branch, x.shape[-1], 1, "same")
        parts = [x, branch] if self.pick(True, False) else [branch, x]
        if self.pick(True, False, False):
            parts.append(self.conv(x, x.shape[-1], 1, "same"))
        if self.pick(True, False, False, False):
            joins = layers.Multiply, layers.Maximum, layers.Minimum
            return self.pick(*joins)(name=self.name("joined"))(parts)
        if len(parts) == 2 and self.pick(True, False, False):
            return parts[0] + parts[1]
        return self.activation(layers.Add(name=self.name("add"))(parts))

    def dense_block(self, x):
        """Concatenations, each of which reads the last."""
        for _ in range(self.number(1, 2)):
            parts = [x] + [self.conv(x, None, 1, "same") for _ in range(self.pick(1, 1, 2))]
            x = layers.Concatenate(name=self.name("concat"))(parts)
        if self.pick(True, False, False):
            x = layers.Concatenate(name=self.name("concat"))([x] * 6)
        return self.activation(self.norm(x)) if self.pick(True, False) else x

    def attention(self, x):
        """Products of pixels with pixels, or of channels with channels."""
        height, width, channels = x.shape[1:]
        x = layers.Reshape((height * width, channels), name=self.name("pixels"))(x)
        keys = layers.Dense(3, self.pick("linear", "relu", "sigmoid"), name=self.name("keys"))(x)
        if self.pick(True, False):
            sums = layers.Dot((1, 1), name=self.name("dot"))([keys, x])
            y = keras.ops.matmul(keys, sums)
        else:
            scores = self.activation(keras.ops.einsum("bqd,bkd->bqk", keys, keys))
            y = scores @ x
        return layers.Reshape((height, width, channels), name=self.name("image"))(y)

    def squeeze_and_excite(self, x):
        gate = layers.GlobalAveragePooling2D(keepdims=True, name=self.name("squeeze"))(x)
        gate = layers.Conv2D(3, 1, activation="relu", name=self.name("reduce"))(gate)
        gate = layers.Conv2D(x.shape[-1], 1, name=self.name("expand"))(gate)
        if self.pick(True, False):
            gate = layers.Activation(self.pick("sigmoid", "hard_sigmoid"))(gate)
        else:
            gate = keras.ops.relu6(gate + 3.0) * (1.0 / 6.0)
        return layers.Multiply(name=self.name("excite"))([x, gate])

    def constants(self, x):
        kind = self.pick("rescaling", "plus", "times", "minus")
        if kind == "rescaling":
            return layers.Rescaling(0.5, -0.25, name=self.name("rescaling"))(x)
        return {"plus": lambda: x + 0.5, "times": lambda: x * -0.75, "minus": lambda: 1.0 - x}[
            kind
        ]()

    def nested(self, x):
        inner = keras.Input(x.shape[1:])
        return keras.Model(inner, self.conv(inner), name=self.name("inner"))(x)

    def head(self, x):
        kind = self.pick("pool", "max", "flatten", "maps", "pixels", "rows")
        if kind == "pool":
            x = layers.GlobalAveragePooling2D(keepdims=self.pick(True, False), name="mean")(x)
            x = self.norm(x) if self.pick(True, False, False) else x
        elif kind == "max":
            x = layers.GlobalMaxPooling2D(keepdims=self.pick(True, False), name="largest")(x)
        elif kind == "flatten":
            x = layers.Flatten(name="flatten")(x)
            if self.pick(True, False):
                x = layers.Dense(6, activation=self.pick("relu", "relu6", "tanh"), name="hidden")(x)
                x = layers.Dropout(0.5, name="dropout")(x)
        elif kind == "rows":
            x = getattr(keras.ops, self.pick("mean", "sum", "max"))(x, self.pick(1, -1))
        elif kind == "maps":
            return self.conv(x)
        x = layers.Dense(self.number(2, 7), name="logits")(x)
        return self.pick(lambda t: t, layers.Softmax(name="softmax"))(x)

    def build(self):
        keras.utils.set_random_seed(self.number(0, 9))
        shape = (self.number(5, 10), self.number(5, 10), self.number(1, 4))
        x = image = keras.Input(shape, name="image")
        if self.pick(True, False, False, False):
            x = layers.Rescaling(0.7, 0.1, name="scaled")(x)
        blocks = (
            self.conv, self.conv, self.depthwise, self.separable, self.twice, self.pool, self.pad,
            self.residual, self.dense_block, self.squeeze_and_excite, self.constants, self.norm,
            self.activation, self.nested, self.resized, self.transposed,
            self.moved, self.moved, self.reduced, self.attention,
        )  # fmt: skip
        for _ in range(self.number(1, 4)):
            x = self.pick(*blocks)(x)
        return keras.Model(image, self.head(x), name="random")


class RandomSequence(RandomModel):
    """The same over time: 1-D layers, and those of no dimension between them."""

    def conv(self, x, filters=None, strides=None, padding=None):
        size, strides = min(self.pick(1, 2, 3, 5), x.shape[1]), strides or self.pick(1, 1, 2)
        fits = strides == 1 and size > 1 and x.shape[1] > 2 * (size - 1)
        fused, filters = self.fused(), filters or self.number(1, 8)
        layer = layers.Conv1D(
            filters,
            size,
            strides,
            padding or self.pick("same", "valid", "causal"),
            dilation_rate=self.pick(1, 2) if fits else 1,
            groups=self.pick(1, 1, 2) if x.shape[-1] % 2 == filters % 2 == 0 else 1,
            use_bias=self.pick(True, False),
            activation=fused,
            name=self.name("conv"),
        )
        return self.behind_mac(layer(x), fused)

    def depthwise(self, x):
        fused = self.fused()
        layer = layers.DepthwiseConv1D(
            min(self.pick(2, 3), x.shape[1]),
            self.pick(1, 2),
            self.pick("same", "valid"),
            depth_multiplier=self.pick(1, 1, 2),
            use_bias=self.pick(True, False),
            activation=fused,
            name=self.name("depthwise"),
        )
        return self.behind_mac(layer(x), fused)

    def separable(self, x):
        layer = layers.SeparableConv1D(
            self.number(1, 6), min(3, x.shape[1]), self.pick(1, 2), "same",
            use_bias=self.pick(True, False), activation=self.pick("linear", "relu"),
            name=self.name("separable"),
        )  # fmt: skip
        return layer(x)

    def transposed(self, x):
        size, padding = self.pick(1, 2, 3), self.pick("same", "valid")
        if x.shape[1] > 20:
            return self.conv(x)
        fused = self.fused()
        layer = layers.Conv1DTranspose(
            self.number(1, 6), size, self.pick(size, 1, 2), padding, activation=fused,
            name=self.name("transposed"),
        )  # fmt: skip
        return self.behind_mac(layer(x), fused)

    def twice(self, x):
        layer = layers.Conv1D(x.shape[-1], 3, padding="causal", name=self.name("shared"))
        return self.activation(layer(self.activation(layer(x))))

    def each(self, x):
        return layers.Dense(self.number(1, 6), self.fused(), name=self.name("each"))(x)

    def pool(self, x):
        if x.shape[1] < 2:
            return self.conv(x)
        cls = self.pick(layers.MaxPooling1D, layers.AveragePooling1D)
        return cls(2, self.pick(1, 2), self.pick("same", "valid"), name=self.name("pool"))(x)

    def pad(self, x):
        amounts = self.number(0, 2), self.number(0, 2)
        if x.shape[1] > 4 and self.pick(True, False, False):
            return layers.Cropping1D(amounts, name=self.name("crop"))(x)
        return layers.ZeroPadding1D(amounts, name=self.name("pad"))(x)

    def resized(self, x):
        return layers.UpSampling1D(2, name=self.name("resized"))(x)

    def squeeze_and_excite(self, x):
        gate = layers.GlobalAveragePooling1D(keepdims=True, name=self.name("squeeze"))(x)
        gate = layers.Dense(x.shape[-1], activation="sigmoid", name=self.name("expand"))(gate)
        return layers.Multiply(name=self.name("excite"))([x, gate])

    def head(self, x):
        kind = self.pick("pool", "max", "flatten", "steps")
        if kind == "steps":
            return self.conv(x)
        ends = {
            "pool": layers.GlobalAveragePooling1D(name="mean"),
            "max": layers.GlobalMaxPooling1D(name="largest"),
            "flatten": layers.Flatten(name="flatten"),
        }
        x = layers.Dense(self.number(2, 7), name="logits")(ends[kind](x))
        return self.pick(lambda t: t, layers.Softmax(name="softmax"))(x)

    def build(self):
        keras.utils.set_random_seed(self.number(0, 9))
        x = signal = keras.Input((self.number(5, 20), self.number(1, 6)), name="signal")
        blocks = (
            self.conv, self.conv, self.depthwise, self.separable, self.twice, self.pool, self.pad,
            self.residual, self.dense_block, self.squeeze_and_excite, self.constants, self.norm,
            self.activation, self.nested, self.resized, self.transposed, self.each,
        )  # fmt: skip
        for _ in range(self.number(1, 4)):
            x = self.pick(*blocks)(x)
        return keras.Model(signal, self.head(x), name="random")


def check_random(pick, quantized, differing):
    """ "exact", or "refused" with an error that names a layer."""
    source = pick(RandomModel, RandomModel, RandomSequence)(pick).build()
    names = [operation.name for operation in source._operations]
    try:
        model, images = quantized(source, 0, images=16)
        folded = kmm.fold_batch_norm(model)
        flat = mt.convert(folded)
    except ValueError as error:
        assert any(name in str(error) for name in names), error
        return "refused"
    mt.verify(flat, model.bit_assignment)
    wrong, delegated = differing(flat, folded, images)
    assert wrong == 0
    assert delegated, "not run by XNNPACK alone"
    return "exact"


@settings(
    max_examples=COUNT or QUICK,
    deadline=None,
    derandomize=not COUNT,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_random_graphs_are_exact_or_refused_by_name(quantized, differing, data):
    def pick(*values):
        return values[data.draw(st.integers(0, len(values) - 1))]

    check_random(pick, quantized, differing)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("shard", range(5))
def test_many_random_graphs_are_exact_and_few_are_refused(shard, quantized, differing):
    outcomes = []
    for seed in range(SHARD * shard, SHARD * (shard + 1)):
        rng = np.random.default_rng(seed)

        def pick(*values, rng=rng):
            return values[rng.integers(len(values))]

        outcomes.append(check_random(pick, quantized, differing))
        keras.utils.clear_session(free_memory=False)  # Keras keeps all names, and slows down
    assert outcomes.count("exact") >= 0.8 * len(outcomes)
