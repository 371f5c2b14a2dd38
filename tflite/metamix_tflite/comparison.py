"""Whether a file computes what the trained model computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, overload

import numpy as np

from keras_metamix.assignment import BitAssignment
from keras_metamix.calibration import check_finite
from keras_metamix.checks import shown
from keras_metamix.graph.fold_bn import fold_batch_norm
from metamix_tflite.file_graph import FileGraph
from metamix_tflite.read import read_file, read_signatures
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


@overload
def parity(flat: bytes, model: Any, images: np.ndarray) -> ParityReport: ...
@overload
def parity(
    flat: bytes, model: Any, images: np.ndarray, operating_points: Mapping[str, BitAssignment]
) -> dict[str, ParityReport]: ...


def parity(
    flat: bytes,
    model: Any,
    images: np.ndarray,
    operating_points: Mapping[str, BitAssignment] | None = None,
) -> ParityReport | dict[str, ParityReport]:
    """Runs a float32 file on `images` and compares all of its output values.

    Args:
      flat: bytes of `convert(model)`.
      model: the MetaMixModel or BitMixerModel it was made of.
      images: shape (images, ...) as the model takes them.
      operating_points: bit assignments by the signature to compare with the model at these bits,
        all or some of those the file was made of. The model's bits stay. None compares a file of
        one signature with the model at its present bits.

    Returns:
      The report; with operating points one for each, by name.

    Raises:
      ValueError: no images, NaN in them, a signature that the file lacks, or several inputs or
        outputs.
    """
    images = _readable_images(images)
    if not hasattr(type(model), "bit_assignment"):
        raise TypeError(
            f"parity: expected a MetaMixModel or a BitMixerModel, found {type(model).__name__}."
        )
    if operating_points is None:
        return _compare(flat, read_file(flat, declared=True), model, images)
    graphs, before = read_signatures(flat, declared=True), model.bit_assignment
    if not isinstance(operating_points, Mapping):
        raise TypeError(
            "parity: operating_points: expected {name: bit assignment}, found "
            f"{type(operating_points).__name__}."
        )
    if not operating_points or not set(operating_points) <= set(graphs):
        raise ValueError(f"parity: expected some of {[*graphs]}, found {[*operating_points]}.")
    reports = {}
    try:
        for name, bits in operating_points.items():
            model.set_bits(bits)
            reports[name] = _compare(flat, graphs[name], model, images, name)
    finally:
        model.set_bits(before)
    return reports


def _readable_images(images: Any) -> np.ndarray:
    """float32 images, at least one and finite."""
    images = np.asarray(images)
    if images.dtype.kind not in "biuf" or not images.ndim:
        raise TypeError(f"parity: expected an array of images, found {shown(images)}.")
    if not len(images):
        raise ValueError("parity: expected at least one image, found none.")
    check_finite(images, "images")
    return images.astype(np.float32)


def _compare(
    flat: bytes, graph: FileGraph, model: Any, images: np.ndarray, signature: str | None = None
) -> ParityReport:
    runner = Runner(flat, batch_size=min(_BATCH, len(images)), signature=signature)
    if runner.input_details[0]["dtype"] != np.float32:
        raise ValueError("parity compares files of io='float32'; this one takes integers.")
    ends = len(graph.inputs), len(graph.outputs)
    if ends != (1, 1):
        raise ValueError(f"parity compares files of one input and output, found {ends}.")
    expected, found = tuple(runner.input_details[0]["shape"][1:].tolist()), images.shape[1:]
    network = model.network
    wanted = tuple(network.inputs[0].shape[1:])
    if not expected == found == wanted:
        raise ValueError(
            f"parity: expected images that file and model take, of shapes {expected} and {wanted}, "
            f"found {found}."
        )
    device = runner.predict(images)
    folded, trained = _outputs(fold_batch_norm(model), images), _outputs(model, images)
    if device.shape != folded.shape:
        raise ValueError(
            f"parity: expected the file of this model, whose outputs are {folded.shape[1:]}, found "
            f"one of {device.shape[1:]}."
        )
    steps = np.abs(device - folded) / _output_scale(graph)
    agreement = np.mean(device.argmax(-1) == trained.argmax(-1))
    return ParityReport(
        outputs=device.size,
        differing=int(np.sum(device != folded)),
        max_lsb=int(np.rint(steps.max())),
        top1_agreement=float(agreement),
        delegated=runner.delegated,
    )


def _outputs(model: Any, images: np.ndarray) -> np.ndarray:
    if len(images) <= _BATCH:  # building a graph takes longer than one run without
        return np.asarray(model(images, training=False))
    return model.predict(images, batch_size=_BATCH, verbose=0)


def _output_scale(graph: FileGraph) -> float:
    producer = graph.producer(graph.outputs[0])
    if producer is None:
        raise ValueError("The file's output is no operator's result.")
    return float(graph.tensors[producer.inputs[0]].scales[0])
