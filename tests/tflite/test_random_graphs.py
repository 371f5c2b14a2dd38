"""Files of random small networks are exact, or refused by the name of a layer."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt


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


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_are_exact_or_refused_by_name(seed, quantized, differing):
    check_random(seed, quantized, differing)


@pytest.mark.slow
def test_many_random_graphs_are_exact_and_few_are_refused(quantized, differing):
    outcomes = []
    for seed in range(100, 150):
        outcomes.append(check_random(seed, quantized, differing))
        keras.backend.clear_session()
    assert outcomes.count("exact") > 0.8 * len(outcomes)
