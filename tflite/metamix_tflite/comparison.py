"""Whether a file computes what the trained model computes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_metamix.calibration import check_finite
from keras_metamix.graph.fold_bn import fold_batch_norm
from metamix_tflite.read import read_file
from metamix_tflite.run import Runner

_BATCH = 50


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """The file under LiteRT beside the folded and the training network.

    Attributes:
      outputs: output values compared.
      differing: how many differ from the folded Keras model at all.
      max_lsb: the largest difference, in steps of the output's scale.
      top1_agreement: share of images with the training network's top-1 class.
      delegated: whether one XNNPACK partition ran the whole file; exactness is a property of
        XNNPACK, other kernels differ by a step now and then.
    """

    outputs: int
    differing: int
    max_lsb: int
    top1_agreement: float
    delegated: bool

    def __str__(self) -> str:
        where = "XNNPACK alone" if self.delegated else "not by XNNPACK alone"
        return (
            f"{self.differing} of {self.outputs} outputs differ (largest {self.max_lsb} steps), "
            f"run by {where}; top-1 agreement with training {self.top1_agreement:.2%}"
        )


def parity(flat: bytes, model: Any, images: np.ndarray) -> ParityReport:
    """Runs a float32 file on `images` and compares all of its output values.

    Args:
      flat: bytes of `convert(model)`.
      model: the MetaMixModel it was made of.
      images: shape (images, ...) as the model takes them.

    Raises:
      ValueError: no images, NaN in them, or a file of several inputs or outputs.
    """
    images = np.asarray(images, np.float32)
    if not len(images):
        raise ValueError("parity: expected at least one image, found none.")
    check_finite(images, "images")
    runner = Runner(flat, batch_size=min(_BATCH, len(images)))
    if runner.input_details[0]["dtype"] != np.float32:
        raise ValueError("parity compares files of io='float32'; this one takes integers.")
    ends = len(runner.input_details), len(read_file(flat).outputs)
    if ends != (1, 1):
        raise ValueError(f"parity compares files of one input and output, found {ends}.")
    device = runner.predict(images)
    folded = fold_batch_norm(model).predict(images, batch_size=_BATCH, verbose=0)
    trained = model.predict(images, batch_size=_BATCH, verbose=0)
    steps = np.abs(device - folded) / _output_scale(flat)
    agreement = np.mean(device.argmax(-1) == trained.argmax(-1))
    return ParityReport(
        outputs=device.size,
        differing=int(np.sum(device != folded)),
        max_lsb=int(np.rint(steps.max())),
        top1_agreement=float(agreement),
        delegated=runner.delegated,
    )


def _output_scale(flat: bytes) -> float:
    graph = read_file(flat)
    producer = graph.producer(graph.outputs[0])
    if producer is None:
        raise ValueError("The file's output is no operator's result.")
    return float(graph.tensors[producer.inputs[0]].scales[0])
