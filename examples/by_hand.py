r"""A network of quantized layers built by hand, trained, and written as an exact file.

    .venv/bin/python examples/by_hand.py --workdir=runs/by_hand

There is no float model. A convolution or dense layer quantizes its kernel and what it reads, and
folds the batch norm that it owns. A stream quantizer follows every other tensor that an
operation computes, and the logits. It takes a minute on two CPU cores.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from absl import app, flags
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix import data
from keras_metamix.launch.messages import run_main


def network(bits: int = 4) -> keras.Model:
    """Four convolutions, two of them beside a shortcut, and logits; both ends at 8 bits."""

    def stream(x: Any) -> Any:
        return kmm.ActivationQuantizer(8, role="stream", sign_from_data=True)(x)

    def conv(filters: int, strides: int, bits: int, name: str, activation: Any = None) -> Any:
        norm = kmm.FoldableBatchNormalization(momentum=0.9)  # norm=True takes Keras' 0.99
        options = {"use_bias": False, "norm": norm, "activation": activation, "name": name}
        options |= {"activation_bits": bits, "weight_bits": bits}
        return kmm.QuantizedConv2D(filters, 3, strides, "same", **options)

    image = keras.Input((28, 28, 1), name="image")
    x = conv(16, 2, 8, "stem", "relu")(image)  # one MAC layer alone reads it, and quantizes it
    x = stream(conv(32, 2, bits, "reduce", "relu")(x))  # two layers read it
    y = conv(32, 1, bits, "expand", "relu")(x)
    y = stream(conv(32, 1, bits, "project")(y))
    x = stream(layers.Add(name="sum")([x, y]))
    x = layers.GlobalAveragePooling2D(name="features")(x)
    x = kmm.QuantizedDense(10, activation_bits=8, weight_bits=8, name="logits")(x)
    return keras.Model(image, stream(x), name="by_hand")


def run(workdir: Path, images: int = 10_000, epochs: int = 6) -> tuple[float, mt.ParityReport]:
    """Trains, writes `model.keras` and `model.tflite`; returns the test accuracy and the parity.

    Raises:
      VerificationError: the file is not what was trained.
    """
    keras.utils.set_random_seed(0)
    (x, y), (test_x, test_y) = data.load_extract()
    x, test_x = data.normalize(x[:images]), data.normalize(test_x)
    model = kmm.QuantizedModel(network())
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * -(-images // 64))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(x, y[:images], batch_size=64, epochs=epochs, verbose=2)
    accuracy = model.evaluate(test_x, test_y, verbose=0, return_dict=True)["accuracy"]
    workdir.mkdir(parents=True, exist_ok=True)
    model.save(workdir / "model.keras")
    flat = mt.convert(model)
    (workdir / "model.tflite").write_bytes(flat)
    mt.verify(flat, model.bit_assignment)
    report = mt.parity(flat, model, test_x)
    print(f"test accuracy {accuracy:.2%}, {len(flat):,} bytes; {report}")
    return accuracy, report


if __name__ == "__main__":
    workdir = flags.DEFINE_string("workdir", "runs/by_hand", "Folder that the files go to.")
    run_main(lambda _: run(Path(workdir.value)), app.parse_flags_with_usage)
