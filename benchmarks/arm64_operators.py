"""Replays files of each form of operator on emulated ARM CPUs: the table in docs/devices/arm64.md.

    python benchmarks/arm64_operators.py [--only=TEXT,...] [--cpus=CPU,...] [--files=1]

Each form is between convolutions, in networks with random weights and random bits. The golden
outputs of the files, which are the form's result behind a 1x1 convolution, come from Keras.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers, ops

import keras_metamix as kmm
import metamix_tflite as mt
from metamix_tflite.devices import measure
from metamix_tflite.devices.arm64_cpu import CPUS
from metamix_tflite.read.golden_inputs import golden_codes
from metamix_tflite.read.metadata import MOST_GOLDEN

SHAPE = (8, 10, 3)
BITS = (8, 4, 3, 2)
IMAGES = 8  # of the calibration
GOLDEN = 6

Form = Callable[[Any], Any]


def conv(filters: int = 6, size: Any = 3, **arguments: Any) -> Any:
    """A convolution that keeps height and width."""
    return layers.Conv2D(filters, size, padding="same", **arguments)


def _pixels(x: Any) -> Any:
    return layers.Reshape((x.shape[1] * x.shape[2], x.shape[3]))(x)


def _attention(x: Any) -> Any:
    """Squared-ReLU and linear attention of pixels: both kinds of transposed factors."""
    x = _pixels(x)
    queries, keys, values = (layers.Dense(4)(x) for _ in range(3))
    scores = ops.relu(ops.einsum("bqd,bkd->bqk", queries, keys))
    x = layers.Multiply()([scores, scores]) @ values
    x = ops.matmul(x, layers.Dot((1, 1))([ops.relu(keys), values]))
    return layers.Reshape((*SHAPE[:2], 4))(x)


def _of_two(join: Callable[[Any, Any], Any]) -> Form:
    return lambda x: join(x, conv()(x))


# What the device runs, and the layers that give it.
FORMS: dict[str, Form] = {
    "TRANSPOSE_CONV": lambda x: layers.Conv2DTranspose(5, 3, 2, "same", activation="relu")(
        layers.Conv2DTranspose(6, (2, 3), (1, 2))(x)
    ),
    "FULLY_CONNECTED of blocks, INT4, and DEPTH_TO_SPACE": lambda x: layers.Conv2DTranspose(
        72, 2, 2
    )(layers.MaxPooling2D(2)(conv(72, 1, activation="relu")(x))),
    "FULLY_CONNECTED of blocks, INT8, and DEPTH_TO_SPACE": layers.Conv2DTranspose(4, 2, 2),
    "RESIZE_BILINEAR": lambda x: layers.Resizing(7, 13)(
        conv()(layers.UpSampling2D(2, interpolation="bilinear")(x))
    ),
    "CONCATENATION and RESHAPE (UpSampling2D)": layers.UpSampling2D((2, 3)),
    "LEAKY_RELU": lambda x: layers.LeakyReLU(0.1)(conv(activation="leaky_relu")(x)),
    "2 DEPTHWISE_CONV_2D and ADD (PReLU)": lambda x: layers.PReLU(
        keras.initializers.RandomUniform(-0.5, 0.9), shared_axes=[1, 2]
    )(x),
    "ELU": lambda x: layers.ELU()(conv(activation="elu")(x)),
    "SUB": _of_two(lambda x, y: layers.Subtract()([x, ops.relu(y - x)])),
    "ADD": _of_two(lambda x, y: layers.ReLU()(layers.Add()([x, y]))),
    "DEPTHWISE_CONV_2D and MUL (AveragePooling2D over a border)": lambda x: layers.AveragePooling2D(
        3, 1, "same"
    )(layers.AveragePooling2D(2, 2, "same")(x)),
    "CONV_2D of one row, dilated (Conv1D)": lambda x: layers.Conv2D(
        5, (1, 3), dilation_rate=(1, 2)
    )(layers.DepthwiseConv2D((1, 5), padding="same")(x)),
    "RESHAPE and CONV_2D (Conv1D, causal)": lambda x: layers.Reshape((*SHAPE[:2], 5))(
        layers.Conv1D(5, 3, padding="causal", dilation_rate=2, activation="relu")(_pixels(x))
    ),
    "TRANSPOSE (channel shuffle)": lambda x: layers.Reshape((*SHAPE[:2], 6))(
        layers.Permute((1, 2, 4, 3))(layers.Reshape((*SHAPE[:2], 2, 3))(x))
    ),
    "STRIDED_SLICE of channels, CONCATENATION": lambda x: ops.concatenate(
        [conv(3)(x[..., :3]), x[..., 3:]], -1
    ),
    "SUM, MEAN, REDUCE_MAX along channels": lambda x: layers.Add()(
        [x * f(x, -1, keepdims=True) for f in (ops.sum, ops.mean, ops.max)]
    ),
    "MEAN": lambda x: layers.Multiply()(
        [x, conv(6, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x))]
    ),
    "REDUCE_MAX": _of_two(lambda x, y: layers.Maximum()([x, y, ops.relu(x)])),
    "REDUCE_MIN": _of_two(ops.minimum),
    "SPACE_TO_DEPTH, DEPTH_TO_SPACE": lambda x: ops.depth_to_space(
        conv(8)(ops.space_to_depth(x, 2)), 2
    ),
    "STRIDED_SLICE, PAD, MAX_POOL_2D": lambda x: layers.MaxPooling2D(3, 2)(
        layers.ZeroPadding2D(1)(layers.Cropping2D(((1, 0), (0, 2)))(x))
    ),
    "LOGISTIC, MUL (silu)": lambda x: ops.silu(conv(activation="silu")(x)),
    "LOGISTIC, MUL (x * sigmoid(1.702 * x))": lambda x: x * ops.sigmoid(1.702 * x),
    "TANH": lambda x: ops.tanh(x),
    "MUL by 1 (another grid)": lambda x: layers.Concatenate()([x, ops.relu6(x), ops.relu(x)]),
    "BATCH_MATMUL": _attention,
    "GELU": lambda x: ops.gelu(conv(activation="gelu")(x)),
}


def convert(form: Form, seed: int) -> bytes:
    """A file of a form; the same seed gives the same network and bits."""
    keras.utils.set_random_seed(seed)
    image = keras.Input(SHAPE, name="image")
    x = form(layers.BatchNormalization()(conv(use_bias=False, name="stem")(image)))
    float_model = keras.Model(image, layers.Conv2D(3, 1, name="maps")(x), name="form")
    rng = np.random.default_rng(seed)
    for layer in float_model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.moving_variance.assign(rng.uniform(0.3, 2.0, layer.gamma.shape))
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(rng.normal(0, 0.2, layer.bias.shape))
    # Not the inputs that the file is replayed with: those have the first numbers.
    codes = [golden_codes(SHAPE, MOST_GOLDEN + number) for number in range(IMAGES)]
    model = kmm.MetaMixModel.from_float(float_model, kmm.SearchSpace(BITS, BITS))
    kmm.calibrate(model, (np.concatenate(codes) / 64).astype(np.float32))
    drawn = {
        kind: {
            layer.name: int(rng.choice(getattr(layer, f"{kind}_quantizer").candidates))
            for layer in model.mac_layers
        }
        for kind in ("input", "weight")
    }
    model.set_bits(kmm.BitAssignment(drawn["input"], drawn["weight"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LiteRT's own kernel")  # the table says it
        return mt.convert(model, golden=GOLDEN)


def table(forms: Mapping[str, Form], cpus: Sequence[str], count: int) -> str:
    """A Markdown table with a row for each form."""
    lines = [
        "| operator | values compared | that differ | largest, in steps | one XNNPACK partition |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, form in forms.items():
        files = {str(seed): convert(form, seed) for seed in range(count)}
        rows: list[Any] = measure("arm64", files, cpus=cpus).rows
        values, differing = (sum(row[key] for row in rows) for key in ("values", "differing"))
        wrong = f"{differing:,}"
        if differing:
            by_cpu = {c: sum(r["differing"] for r in rows if r["cpu"] == c) for c in cpus}
            wrong += f" ({', '.join(f'{cpu}: {n:,}' for cpu, n in by_cpu.items() if n)})"
        largest = max(row["max_steps"] for row in rows)
        whole = "yes" if all(row["delegated"] for row in rows) else "no"
        lines.append(f"| {name} | {values:,} | {wrong} | {largest} | {whole} |")
        print(lines[-1], flush=True)
        keras.utils.clear_session(free_memory=False)
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="parts of names of operators, by commas; default all")
    parser.add_argument("--cpus", default=",".join(CPUS), help="by commas; default all")
    parser.add_argument("--files", type=int, default=1, help="networks of each operator")
    arguments = parser.parse_args()
    only = arguments.only.split(",") if arguments.only else [""]
    forms = {n: form for n, form in FORMS.items() if any(part in n for part in only)}
    if not forms:
        parser.error(f"--only: expected parts of {', '.join(FORMS)}, found {arguments.only!r}.")
    print(f"\n{table(forms, arguments.cpus.split(','), arguments.files)}")


if __name__ == "__main__":
    main()
