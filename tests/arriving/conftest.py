"""Small models that have each of the things that a Keras model can have."""

import keras
import numpy as np
import pytest
from keras import layers, regularizers

import keras_metamix as kmm

SIZE = 10


def image(name="image", **arguments):
    return keras.Input((SIZE, SIZE, 2), name=name, **arguments)


def conv(filters=3, size=3, **arguments):
    return layers.Conv2D(filters, size, **arguments)


def body(x, **arguments):
    """A convolution with a batch norm, and a depthwise one."""
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(conv(name="stem", **arguments)(x)))
    return layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)


def features(x):
    return layers.GlobalAveragePooling2D(name="mean")(body(x))


def heads(structure):
    """A model whose outputs, `cls` and `box`, are in a structure."""

    def build():
        x = image()
        pooled = features(x)
        classes = layers.Dense(3, name="cls")(pooled)
        return keras.Model(x, structure(classes, layers.Dense(2, name="box")(pooled)))

    return build


def two_inputs(structure):
    def build():
        first, second = image("left"), image("right")
        x = layers.Add(name="sum")([body(first), conv(3, 5, name="other")(second)])
        x = layers.Dense(3, name="cls")(layers.Flatten()(x))
        return keras.Model(structure(first, second), x)

    return build


def sequential():
    return keras.Sequential(
        [
            image(),
            conv(activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def chain(*parts, source=image, end=True):
    """A model of layers one after the other, with a classifier behind them."""

    def build():
        x = inputs = source()
        for part in parts:
            x = part()(x)
        if end:
            x = layers.Dense(3, name="cls")(layers.GlobalAveragePooling2D()(conv(size=1)(x)))
        return keras.Model(inputs, x)

    return build


def adapted(**arguments):
    def build():
        layer = layers.Normalization(**arguments)
        layer.adapt(np.random.default_rng(1).normal(7, 3, (4, SIZE, SIZE, 2)).astype("float32"))
        return layer

    return build


def frozen_backbone(whole=False, nested=True):
    def build():
        x = image()
        backbone = keras.Model(x, body(x), name="backbone")
        backbone.trainable = False
        outer = image("outer")
        y = backbone(outer) if nested else backbone.output
        y = layers.Dense(3, name="cls")(layers.GlobalAveragePooling2D()(y))
        model = keras.Model(outer if nested else x, y)
        model.trainable = not whole
        return model

    return build


def frozen_by_constructor():
    x = image()
    return keras.Model(x, layers.Dense(3)(features(x)), trainable=False)


def frozen_bias():
    x = image()
    model = keras.Model(x, layers.Dense(3, name="cls")(features(x)))
    model.get_layer("cls").bias.trainable = False
    return model


def regularized(cls, *args, activation="relu", **more):
    """A MAC layer with everything that its class can be given."""

    def build():
        kernel = "depthwise" if issubclass(cls, layers.DepthwiseConv2D) else "kernel"
        whats = ("depthwise", "pointwise") if issubclass(cls, layers.SeparableConv2D) else (kernel,)
        given = {f"{w}_regularizer": regularizers.L2(0.01 + 0.01 * n) for n, w in enumerate(whats)}
        given |= {
            f"{w}_constraint": keras.constraints.MaxNorm(0.5 + n) for n, w in enumerate(whats)
        }
        given |= {f"{w}_initializer": "he_normal" for w in whats}
        return cls(
            *args,
            activation=activation,
            name="given",
            bias_regularizer="l1",
            bias_constraint="non_neg",
            bias_initializer="ones",
            activity_regularizer=regularizers.L2(0.1),
            **given,
            **more,
        )

    return build


def shared():
    """Two layers that are called twice, of the names that Keras gives."""
    x = image()
    y = conv(activation="relu", name="conv")(x)
    first, second = (
        layers.Dense(4, activation="relu", name="dense"),
        layers.Dense(3, name="dense_1"),
    )
    pools = layers.GlobalAveragePooling2D()(y), layers.GlobalMaxPooling2D()(y)
    return keras.Model(x, layers.Add(name="sum")([second(first(pool)) for pool in pools]))


def nested_twice():
    inner = image("inner")
    block = keras.Model(inner, conv(2, padding="same", activation="silu", name="conv")(inner))
    x = image()
    y = layers.Concatenate()([block(block(x)), block(x)])
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(y)))


def hostile_names():
    """Names that the rewrite or the training could want for itself."""
    x = image("conv_input")
    y = conv(activation="relu", padding="same", name="conv")(x)
    y = conv(activation="silu", padding="same", name="conv_activation")(y)
    y = conv(2, padding="same", name="phase")(y)
    y = layers.Add(name="sum_stream")([y, x])
    y = layers.Add(name="sum")([y, x])
    y = layers.SeparableConv2D(3, 3, name="conv_activation_gate")(y)
    y = conv(name="conv_activation_gate_depthwise")(y)
    y = layers.GlobalAveragePooling2D(name="calibrated")(y)
    return keras.Model(x, layers.Dense(3, name="loss")(y), name="network")


@keras.saving.register_keras_serializable("arriving")
class Block(layers.Layer):
    """A composite layer of the user's own, whose results are regularized."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.first, self.second = conv(activation="relu"), conv()

    def call(self, x):
        return self.second(self.first(x))


def branch_of_outputs():
    """A tensor inside is an output too, and the model's input is read three times."""
    x = image()
    y = layers.ReLU(name="kept")(conv(padding="same", name="conv")(x))
    z = layers.Concatenate()([y, x, conv(2, padding="same")(x)])
    return keras.Model(x, [y, layers.Dense(3, name="cls")(layers.Flatten()(z))])


L2 = regularizers.L2(0.1)

MODELS = {
    # inputs and outputs
    "sequential": sequential,
    "list of one": heads(lambda a, b: [a]),
    "tuple of one": heads(lambda a, b: (a,)),
    "dict of one": heads(lambda a, b: {"a": a}),
    "list of outputs": heads(lambda a, b: [a, b]),
    "tuple of outputs": heads(lambda a, b: (a, b)),
    "dict by output names": heads(lambda a, b: {"cls": a, "box": b}),
    "dict by other names": heads(lambda a, b: {"z": a, "y": b}),
    "nest of outputs": heads(lambda a, b: {"x": [a, b], "w": (b,)}),
    "list of inputs": two_inputs(lambda a, b: [a, b]),
    "list of inputs, unsorted": two_inputs(lambda a, b: [b, a]),
    "tuple of inputs": two_inputs(lambda a, b: (a, b)),
    "dict of inputs": two_inputs(lambda a, b: {"left": a, "right": b}),
    "list of one input": lambda: keras.Model([x := image()], layers.Dense(3)(features(x))),
    "inside and outside": branch_of_outputs,
    "uint8": chain(
        lambda: layers.Rescaling(1 / 127.5, -1), conv, source=lambda: image(dtype="uint8")
    ),
    # state outside of weights
    "adapted": chain(adapted(), conv),
    "adapted, inverted": chain(adapted(invert=True), conv),
    "adapted, over all": chain(adapted(axis=None), conv),
    "mean and variance": chain(
        lambda: layers.Normalization(mean=[3.0, 2.0], variance=[4.0, 0.5]), conv
    ),
    "mean and variance, arrays": chain(
        lambda: layers.Normalization(mean=np.array([3.0, 2]), variance=np.array([4.0, 0.5])), conv
    ),
    "rescaling by arrays": chain(
        lambda: layers.Rescaling(np.array([0.5, 2.0]), offset=np.array([1.0, -1.0])), conv
    ),
    "dropout": chain(
        conv, lambda: layers.Dropout(0.5), lambda: layers.SpatialDropout2D(0.2, seed=3)
    ),
    # what trains
    "frozen backbone": frozen_backbone(),
    "frozen backbone, its own layers": frozen_backbone(nested=False),
    "frozen as a whole": frozen_backbone(whole=True),
    "frozen by its constructor": frozen_by_constructor,
    "frozen bias": frozen_bias,
    "frozen separable": chain(lambda: layers.SeparableConv2D(3, 3, trainable=False), conv),
    # regularizers, constraints, initializers
    "regularized": chain(regularized(layers.Conv2D, 3, 3), conv),
    "regularized, linear": chain(regularized(layers.Conv2D, 3, 3, activation=None), conv),
    "regularized, gated": chain(regularized(layers.Conv2D, 3, 3, activation="silu"), conv),
    "regularized, a layer": chain(
        lambda: regularized(layers.Conv2D, 3, 3, activation=layers.ReLU(6.0))(), conv
    ),
    "regularized, a regularized layer": chain(
        lambda: conv(activation=layers.ReLU(activity_regularizer=L2), activity_regularizer=L2), conv
    ),
    "regularized depthwise": chain(
        regularized(layers.DepthwiseConv2D, 3, depth_multiplier=2), conv
    ),
    "regularized separable": chain(regularized(layers.SeparableConv2D, 3, 3), conv),
    "regularized separable, linear": chain(
        regularized(layers.SeparableConv2D, 3, 3, activation=None, depth_multiplier=2), conv
    ),
    "regularized dense": chain(
        conv, layers.Flatten, regularized(layers.Dense, 3, activation="sigmoid"), end=False
    ),
    "regularized norm": chain(
        conv,
        conv,
        lambda: layers.BatchNormalization(
            beta_regularizer="l1", gamma_regularizer="l2", gamma_constraint="max_norm"
        ),
        conv,
    ),
    "activity of a relu": chain(
        lambda: conv(activation=None), lambda: layers.ReLU(activity_regularizer=L2), conv
    ),
    "activity of a silu": chain(
        conv, lambda: layers.Activation("silu", activity_regularizer=L2), conv
    ),
    "activity of a norm": chain(
        conv, lambda: layers.BatchNormalization(activity_regularizer=L2), layers.ReLU, conv
    ),
    "activity before a norm": chain(
        lambda: conv(activity_regularizer=L2), layers.BatchNormalization, layers.ReLU, conv
    ),
    "activity of a composite": chain(lambda: Block(activity_regularizer="l2"), conv),
    "activity of a pool": chain(conv, lambda: layers.MaxPooling2D(activity_regularizer=L2)),
    # names
    "shared layers": shared,
    "nested twice": nested_twice,
    "hostile names": hostile_names,
}


def inputs_of(model, count=4):
    """Random inputs in the model's structure."""
    generator = np.random.default_rng(2)

    def values(tensor):
        shape = (count, *tensor.shape[1:])
        if tensor.dtype == "uint8":
            return generator.integers(0, 256, shape).astype("uint8")
        return generator.normal(2, 3, shape).astype("float32")

    one = isinstance(model, keras.Sequential)
    return keras.tree.map_structure(values, model.inputs[0] if one else model.input)


METHODS = {"MetaMix": kmm.MetaMixModel, "Bit-Mixer": kmm.BitMixerModel}
SPACES = {"MetaMix": kmm.SearchSpace((4, 2), 4), "Bit-Mixer": kmm.SearchSpace((3, 2), "same")}
# What is Bit-Mixer's own are its batch norms; the rest of its network is MetaMix's.
FOR_BIT_MIXER = ("sequential", "regularized norm", "frozen backbone", "nest of outputs")


def randomized(model):
    """Every weight random, but those that `adapt` has found."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if variable.path.split("/")[-2].startswith("normalization"):
            continue
        positive = variable.name in ("moving_variance", "gamma")
        low, high = (0.5, 2.0) if positive else (-0.6, 0.6)
        variable.assign(generator.uniform(low, high, variable.shape))
    return model


CASES = [(name, "MetaMix") for name in MODELS] + [(name, "Bit-Mixer") for name in FOR_BIT_MIXER]


@pytest.fixture(scope="module", params=CASES, ids=" in ".join)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def name(case):
    return case[0]


@pytest.fixture(scope="module")
def method(case):
    return case[1]


@pytest.fixture(scope="module")
def float_model(name):
    keras.utils.set_random_seed(0)
    return randomized(MODELS[name]())


@pytest.fixture(scope="module")
def model(float_model, method):
    return METHODS[method].from_float(float_model, SPACES[method])


@pytest.fixture(scope="module")
def x(float_model):
    return inputs_of(float_model)


@pytest.fixture(scope="session")
def models():
    return MODELS


@pytest.fixture(scope="session", name="inputs_of")
def _inputs_of():
    return inputs_of


@pytest.fixture(scope="session")
def wrap():
    """wrap(float model, method) -> its quantized model."""
    return lambda model, method: METHODS[method].from_float(model, SPACES[method])
