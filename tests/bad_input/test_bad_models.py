"""What from_float, the cost functions and the export say of models that they cannot take."""

import pathlib

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.zoo import small_cnn

IMAGE = (8, 8, 1)


def functional(body, shape=IMAGE):
    image = keras.Input(shape, name="image")
    return keras.Model(image, body(image), name="network")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="subclassed")
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


class OwnWeights(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape[-1:], name="scale")

    def call(self, inputs):
        return inputs * self.scale


class FrozenNorm(layers.Layer):
    """A composite that runs its batch norm in inference mode."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.BatchNormalization(name="frozen")

    def call(self, inputs):
        return self.norm(inputs, training=False)


def named_sin():
    keras.utils.clear_session()  # the first operation of its kind has no number
    return keras.ops.sin


def through(layer, shape=IMAGE):
    return functional(lambda x: layers.Dense(2)(layer(x)), shape)


def under(policy):
    """A model built under a dtype policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return functional(lambda x: layers.Conv2D(2, 3, name="conv")(x))
    finally:
        keras.config.set_dtype_policy(before)


def wrapped_under(policy, model):
    """from_float under a dtype policy, of a model that was built without."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return kmm.MetaMixModel.from_float(model)
    finally:
        keras.config.set_dtype_policy(before)


def any_size():
    def body(x):
        x = layers.Conv2D(4, 3, name="conv")(x)
        return layers.Dense(2)(layers.GlobalAveragePooling2D()(x))

    return functional(body, (None, None, 3))


def not_a_number(name, value):
    """A quantized model, one weight of which is no number."""
    model = kmm.MetaMixModel.from_float(small_cnn(IMAGE, classes=4, width=4))
    kmm.calibrate(model, np.random.default_rng(0).normal(size=(4, *IMAGE)))
    model.set_bits(kmm.uniform_assignment(model, 4, 4))
    (variable,) = [v for v in model.network.weights if v.path == name]
    variable.assign(np.full(variable.shape, value))
    return model


def float_weights(value):
    model = small_cnn(IMAGE, classes=4, width=4)
    kernel = model.get_layer("conv2").kernel
    kernel.assign(np.full(kernel.shape, value))
    return model


def metamix(model, *arguments):
    return kmm.MetaMixModel.from_float(model, *arguments)


def mixer(model, *arguments):
    return kmm.BitMixerModel.from_float(model, *arguments)


GRAPHLESS = "Expected a functional or Sequential Keras model, found {}"
CASES = [
    ("none", lambda g: metamix(None), TypeError, GRAPHLESS.format("None")),
    ("file name", lambda g: metamix("m.keras"), TypeError, GRAPHLESS.format("the path")),
    ("array", lambda g: metamix(g.images), TypeError, GRAPHLESS.format("array")),
    ("layer", lambda g: mixer(layers.Dense(3)), TypeError, GRAPHLESS.format("<Dense")),
    ("class", lambda g: mixer(keras.Model), TypeError, GRAPHLESS.format("<class .*Model")),
    ("explain none", lambda g: kmm.explain(None), TypeError, GRAPHLESS.format("None")),
    ("bops of none", lambda g: kmm.bops(None, g.bits), TypeError, GRAPHLESS.format("None")),
    ("summary of text", lambda g: kmm.summary("x"), TypeError, GRAPHLESS.format("the path")),
    (
        "subclassed",
        lambda g: metamix(Subclassed()),
        TypeError,
        "found Subclassed 'subclassed'.*no graph",
    ),
    (
        "subclassed inside",
        lambda g: metamix(through(lambda x: Subclassed()(layers.Flatten()(x)))),
        ValueError,
        r"Layer 'subclassed' \(Subclassed\): a subclassed model, whose call has no graph",
    ),
    (
        "unbuilt Sequential",
        lambda g: metamix(keras.Sequential([layers.Dense(3)], name="unbuilt")),
        ValueError,
        "Sequential model 'unbuilt' has no input shape: add a keras.Input",
    ),
    ("no layer", lambda g: metamix(functional(lambda x: x)), ValueError, "no MAC layer"),
    ("no MAC", lambda g: metamix(functional(layers.ReLU())), ValueError, "'network' has no MAC"),
    (
        "costs of no MAC",
        lambda g: kmm.layer_costs(functional(layers.ReLU())),
        ValueError,
        "'network' has no Conv2D, DepthwiseConv2D or Dense layer",
    ),
    *(
        (
            name,
            lambda g, make=make: metamix(make()),
            ValueError,
            f"'{name}'.*: {why}.* float_layers=..{name}.. leaves it in float",
        )
        for name, (why, make) in {
            "up": (
                "no exact integer form",
                lambda: through(layers.Conv2DTranspose(2, 3, dilation_rate=2, name="up")),
            ),
            "time": (
                "exported with data_format='channels_last'",
                lambda: through(
                    layers.Conv1D(2, 1, data_format="channels_first", name="time"), (8, 2)
                ),
            ),
            "volume": (
                "no exact integer form",
                lambda: through(layers.Conv3D(2, 3, name="volume"), (4, 4, 4, 1)),
            ),
            "lstm": ("not exported yet", lambda: through(layers.LSTM(3, name="lstm"), (8, 2))),
            "embedding": (
                "no exact integer form",
                lambda: through(layers.Embedding(5, 3, name="embedding"), (4,)),
            ),
            "own": ("computes with weights", lambda: through(OwnWeights(name="own"))),
            "sin": (
                "not exported; it acts on the model's input alone",
                lambda: through(named_sin()),
            ),
        }.items()
    ),
    (
        "inside a composite",
        lambda g: metamix(
            functional(lambda x: layers.MultiHeadAttention(2, 3, name="attention")(x, x), (4, 4))
        ),
        ValueError,
        r"Layer 'attention' \(MultiHeadAttention\): no exact integer form that holds",
    ),
    (
        "training=False inside",
        lambda g: metamix(through(FrozenNorm(name="block"))),
        ValueError,
        r"Layer 'block' \(FrozenNorm\): calls 'frozen' with training=False",
    ),
    (
        "channels first",
        lambda g: metamix(
            through(layers.Conv2D(2, 3, data_format="channels_first", name="first"), (3, 8, 8))
        ),
        ValueError,
        r"Layer 'first' \(Conv2D\): expected data_format='channels_last', found 'channels_first'",
    ),
    (
        "batch norm of rows",
        lambda g: metamix(through(layers.BatchNormalization(axis=1, name="rows"))),
        ValueError,
        "Layer 'rows' .* expected the channel axis -1, found 1",
    ),
    *(
        (
            policy,
            lambda g, policy=policy: metamix(under(policy)),
            ValueError,
            f"Layer 'conv': expected the dtype policy 'float32', found '{policy}'",
        )
        for policy in ("mixed_float16", "mixed_bfloat16", "float16", "float64")
    ),
    (
        "mixer of mixed_float16",
        lambda g: mixer(under("mixed_float16")),
        ValueError,
        "Layer 'conv': expected the dtype policy 'float32'",
    ),
    (
        "explain mixed_float16",
        lambda g: kmm.explain(under("mixed_float16")),
        ValueError,
        "Layer 'conv': expected the dtype policy 'float32'",
    ),
    (
        "default policy",
        lambda g: wrapped_under("mixed_float16", g.model),
        ValueError,
        "keras.config.dtype_policy: .*float32.*found 'mixed_float16'",
    ),
    *(
        (
            f"{name} of any size",
            lambda g, call=call: call(any_size()),
            ValueError,
            r"Layer 'conv': the cost needs every size .* found shape \(None, None, None, 4\)",
        )
        for name, call in {
            "bops": lambda m: kmm.bops(m, kmm.BitAssignment({"conv": 4}, {"conv": 4})),
            "uniform_assignment": lambda m: kmm.uniform_assignment(m, 4, 4),
            "summary": kmm.summary,
        }.items()
    ),
    *(
        (
            f"{name} of any size",
            lambda g, call=call: call(any_size()),
            ValueError,
            r"Input 'image': expected .* found \(None, None, 3\).* keras.Input\(\(224, 224, 3\)\)",
        )
        for name, call in {"explain": kmm.explain, "metamix": metamix, "mixer": mixer}.items()
    ),
    (
        "quantized already",
        lambda g: metamix(g.quantized),
        TypeError,
        "Expected a float Keras model, found MetaMixModel .*quantized already",
    ),
    ("mixer of a mixer", lambda g: mixer(g.mixer), TypeError, "found BitMixerModel .*already"),
    (
        "network of one",
        lambda g: metamix(g.quantized.network),
        ValueError,
        r"Layer 'conv1' \(QuantizedConv2D\) is quantized already",
    ),
    (
        "folded",
        lambda g: metamix(kmm.fold_batch_norm(g.quantized)),
        ValueError,
        r"Layer 'conv1_input' \(QuantizeInput\) is quantized already",
    ),
    ("no such float layer", lambda g: metamix(g.model, None, ["a"]), ValueError, r"'small_cnn'.*a"),
    ("float layer by name", lambda g: metamix(g.model, None, "conv1"), TypeError, "found 'conv1'"),
    ("float_layers none", lambda g: metamix(g.model, None, None), TypeError, "float_layers: .*Non"),
    ("float_layers numbers", lambda g: kmm.explain(g.model, None, [3]), TypeError, r"found \[3\]"),
    (
        "lambda in float",
        lambda g: metamix(through(layers.Lambda(lambda x: x, name="f")), None, ["f"]),
        ValueError,
        r"Layer 'f' \(Lambda\): holds a Python lambda",
    ),
    (
        "all in float",
        lambda g: metamix(g.model, None, ["conv1", "conv2", "conv3", "logits"]),
        ValueError,
        "'small_cnn' has no MAC layer",
    ),
    *(
        (
            f"{what} in {name}",
            lambda g, name=name, value=value: mt.convert(not_a_number(name, value)),
            ValueError,
            rf"{name}: expected finite weights, found \d+ NaN or Inf",
        )
        for what, value in {"NaN": np.nan, "Inf": np.inf}.items()
        for name in (
            "conv2/kernel",
            "conv1/conv1_bn/gamma",
            "conv2/conv2_input/log_step",
            "logits/bias",
        )
    ),
    (
        "NaN from float",
        lambda g: metamix(float_weights(np.nan)),
        ValueError,
        "'conv2' .*found 288 of 288 in kernel",
    ),
    ("Inf from float", lambda g: mixer(float_weights(np.inf)), ValueError, "'conv2' .*finite"),
    (
        "1e30 from float",
        lambda g: metamix(float_weights(1e30)),
        ValueError,
        "'conv2' .*below 1e.18",
    ),
    ("convert none", lambda g: mt.convert(None), TypeError, "MetaMixModel .* found None"),
    ("convert float", lambda g: mt.convert(g.model), TypeError, "found Functional"),
    ("fold a name", lambda g: kmm.fold_batch_norm("m.keras"), TypeError, "found the path"),
    (
        "convert before the search ends",
        lambda g: mt.convert(metamix(g.model)),
        ValueError,
        "expected a model in phase 'weight_training', found 'bit_meta'",
    ),
    (
        "convert before calibration",
        lambda g: mt.convert(set_bits_of(metamix(g.model), g.bits)),
        ValueError,
        "no step sizes yet: fit it, or call keras_metamix.calibrate",
    ),
    ("no phase", lambda g: setattr(g.quantized, "phase", "x"), ValueError, "phase: .*found 'x'"),
    ("no stage", lambda g: setattr(g.mixer, "stage", 3), ValueError, "stage: .*found 3"),
    (
        "no batch norm",
        lambda g: kmm.BitMixerModel.from_float(g.model, batch_norm="x"),
        ValueError,
        "batch_norm: expected one of .* found 'x'",
    ),
    (
        "seed",
        lambda g: kmm.BitMixerModel.from_float(g.model, seed="x"),
        ValueError,
        "seed: expected a whole number, at least 0, found 'x'",
    ),
    (
        "container",
        lambda g: mt.convert(g.quantized, weight_container="tiny"),
        ValueError,
        "weight_container: .*tin",
    ),
    (
        "io",
        lambda g: mt.convert(g.quantized, io="int4"),
        ValueError,
        "io: expected .* found 'int4'",
    ),
    (
        "no operating point",
        lambda g: mt.convert(g.mixer, operating_points={}),
        ValueError,
        "operating_points: expected .* at least one, found {}",
    ),
    (
        "operating point of none",
        lambda g: mt.convert(g.mixer, operating_points={"eco": None}),
        ValueError,
        "Operating point 'eco': expected a BitAssignment, found NoneType",
    ),
    (
        "two names alike",
        lambda g: metamix(
            functional(lambda x: layers.Conv2D(2, 3, name="a")(layers.Conv2D(2, 3, name="a")(x)))
        ),
        ValueError,
        'The name "a" is used 2 times',
    ),
]


def set_bits_of(model, bits):
    model.set_bits(bits)
    return model


# Every public function that takes a model.
TAKES_A_MODEL = {
    "MetaMixModel.from_float": lambda g, m: kmm.MetaMixModel.from_float(m),
    "QuantizedModel.from_float": lambda g, m: kmm.QuantizedModel.from_float(m),
    "BitMixerModel.from_float": lambda g, m: kmm.BitMixerModel.from_float(m),
    "QuantizedModel": lambda g, m: kmm.QuantizedModel(m),
    "MetaMixModel": lambda g, m: kmm.MetaMixModel(m, kmm.SearchSpace()),
    "BitMixerModel": lambda g, m: kmm.BitMixerModel(m, kmm.SearchSpace()),
    "explain": lambda g, m: kmm.explain(m),
    "summary": lambda g, m: kmm.summary(m),
    "layer_costs": lambda g, m: kmm.layer_costs(m),
    "bops": lambda g, m: kmm.bops(m, g.bits),
    "uniform_assignment": lambda g, m: kmm.uniform_assignment(m, 8, 4),
    "calibrate": lambda g, m: kmm.calibrate(m, g.images),
    "select_bits": lambda g, m: kmm.select_bits(m, kmm.Bops(share=0.5)),
    "prepare_weight_training": lambda g, m: kmm.prepare_weight_training(m, g.images),
    "fold_batch_norm": lambda g, m: kmm.fold_batch_norm(m),
    "choose_bits": lambda g, m: kmm.choose_bits(m, (g.images, g.labels), 1e9),
    "choose_points": lambda g, m: kmm.choose_points(m, (g.images, g.labels), {"a": 1e9}),
    "pareto_front": lambda g, m: kmm.pareto_front(m, (g.images, g.labels)),
    "priced": lambda g, m: kmm.Bops(share=0.5).priced(m),
    "teacher": lambda g, m: metamix(g.model).compile("sgd", teacher=m),
    "convert": lambda g, m: mt.convert(m),
    "convert points": lambda g, m: mt.convert(m, operating_points=g.points),
    "parity": lambda g, m: mt.parity(g.flat, m, g.images),
}


@pytest.mark.parametrize("kind", [str, pathlib.Path])
@pytest.mark.parametrize("name", TAKES_A_MODEL)
def test_a_path_in_the_place_of_a_model_is_reported(name, kind, given, refuses):
    message = "found the path 'model.keras': load the file first, with keras.models.load_model"
    error = (TypeError, ValueError)
    refuses(lambda: TAKES_A_MODEL[name](given, kind("model.keras")), error, message)


@pytest.mark.parametrize("name", TAKES_A_MODEL)
def test_none_in_the_place_of_a_model_is_reported(name, given, refuses):
    if name != "teacher":  # there may be none
        refuses(lambda: TAKES_A_MODEL[name](given, None), (TypeError, ValueError), "found None")


@pytest.mark.parametrize("name", ["calibrate", "fold_batch_norm", "convert", "parity"])
def test_a_float_model_in_the_place_of_a_quantized_one_is_reported(name, given, refuses):
    message = f"{name}: expected a QuantizedModel.*found Functional .*: from_float makes one"
    refuses(lambda: TAKES_A_MODEL[name](given, given.model), TypeError, message)


@pytest.mark.parametrize(
    "call",
    [mt.verify, mt.replay, mt.Runner, mt.benchmark, mt.OperatingPointRunner],
    ids=lambda call: call.__name__,
)
def test_a_path_in_the_place_of_a_file_is_reported(call, refuses):
    message = r"the path 'm.tflite': read .*pathlib.Path\('m.tflite'\).read_bytes\(\)"
    for path in ("m.tflite", pathlib.Path("m.tflite")):
        refuses(lambda path=path: call(path), TypeError, message)


@pytest.mark.parametrize(
    ("call", "error", "message"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_bad_model_is_refused(call, error, message, given, refuses):
    refuses(lambda: call(given), error, message)
