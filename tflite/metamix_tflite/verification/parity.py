"""Whether a file computes what the trained model computes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, overload

import keras
import numpy as np

from keras_metamix.assignment import BitAssignment
from keras_metamix.batches import image_batches, is_data_set, merged, readable
from keras_metamix.calibration import check_finite, check_shapes
from keras_metamix.checks import shown
from keras_metamix.graph.fold_bn import fold_batch_norm
from keras_metamix.graph.io_names import named_inputs, named_outputs
from keras_metamix.graph.rounding import rounded_for
from keras_metamix.network_model import require_quantized_model
from metamix_tflite.file_graph import FileGraph
from metamix_tflite.read.files import read_file, read_interface, read_signatures
from metamix_tflite.run.runner import Runner
from metamix_tflite.targets import declared_target

_BATCH = 50
_BATCHES = 16  # of a data set


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """The file under LiteRT beside the folded and the training network.

    Attributes:
      outputs: output values compared, of all outputs.
      differing: how many differ from the folded Keras model at all.
      max_lsb: the largest difference, in steps of the output's scale.
      top1_agreement: share of images with the training network's top-1 class; of several outputs
        the least.
      delegated: whether one XNNPACK partition ran the whole file; exactness is a property of
        XNNPACK, other kernels differ by a step now and then. A file for "micro" is run by LiteRT's
        reference kernels instead, beside the model folded as they round.
      by_output: how many values of each output differ, by its name.
    """

    outputs: int
    differing: int
    max_lsb: int
    top1_agreement: float
    delegated: bool
    by_output: Mapping[str, int]

    def __str__(self) -> str:
        where = "run by XNNPACK alone" if self.delegated else "not run by XNNPACK alone"
        each = ""
        if self.differing and len(self.by_output) > 1:
            each = "".join(f", {count} of {name!r}" for name, count in self.by_output.items())
        return (
            f"{self.differing} of {self.outputs} outputs differ{each} (largest {self.max_lsb} "
            f"steps), {where}; top-1 agreement with training {self.top1_agreement:.2%}"
        )


@overload
def parity(flat: bytes, model: Any, images: Any) -> ParityReport: ...
@overload
def parity(
    flat: bytes, model: Any, images: Any, operating_points: Mapping[str, BitAssignment]
) -> dict[str, ParityReport]: ...


def parity(
    flat: bytes,
    model: Any,
    images: Any,
    operating_points: Mapping[str, BitAssignment] | None = None,
) -> ParityReport | dict[str, ParityReport]:
    """Runs a float32 file on `images` and compares all of its output values.

    Args:
      flat: bytes of `convert(model)`.
      model: the MetaMixModel or BitMixerModel it was made of.
      images: shape (images, ...) as the model takes them; for several inputs a list or tuple of
        arrays, or a dictionary by the names of the inputs. Of a data set such as `evaluate` takes
        (a tf.data.Dataset, a keras.utils.PyDataset, a generator) the first 16 batches are compared,
        without their labels.
      operating_points: bit assignments by the signature to compare with the model at these bits,
        all or some of those the file was made of. The model's bits stay. None compares a file of
        one signature with the model at its present bits.

    Returns:
      The report; with operating points one for each, by name.

    Raises:
      TypeError: images that are no arrays, or not of bytes where the model takes these.
      ValueError: no images, or one without its batch axis; images of another shape, not an array
        for each input, NaN in them, or a signature that the file lacks.
    """
    require_quantized_model("parity", model)
    images = _readable_images(_of_data_set(images, model.network))
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


def _of_data_set(images: Any, network: keras.Model) -> Any:
    """The images of a data set's first batches in one; all else as it is."""
    source = readable(images)
    if isinstance(images, Mapping) or not is_data_set(source):
        return images
    batches = [*image_batches(source, _BATCHES)]
    for batch in batches:  # joined they would show another shape
        check_shapes(batch, network)
    return next(merged(batches, sys.maxsize), np.zeros(0))


def _readable_images(images: Any) -> Any:
    """Arrays of finite numbers, in the structure that they were given in."""
    nested = isinstance(images, Mapping) or (
        isinstance(images, list | tuple) and any(hasattr(part, "shape") for part in images)
    )
    if nested:
        parts = images if isinstance(images, Mapping) else dict(enumerate(images))
        found = {key: _readable_images(part) for key, part in parts.items()}
        return found if isinstance(images, Mapping) else [*found.values()]
    array = np.asarray(images)
    if array.dtype.kind not in "biuf" or not array.ndim:
        raise TypeError(f"parity: expected an array of images, found {shown(images)}.")
    if not len(array):
        raise ValueError("parity: expected at least one image, found none.")
    check_finite(array, "images")
    return array


def _compare(
    flat: bytes, graph: FileGraph, model: Any, images: Any, signature: str | None = None
) -> ParityReport:
    network = model.network
    interface, wanted = read_interface(flat, signature), dict(named_inputs(network))
    if graph.metadata["io"] != "float32":
        raise ValueError("parity compares files of io='float32'; this one takes integers.")
    names = [name for name, _ in named_outputs(network)]
    _require_same("inputs", [*interface.inputs], [*wanted])
    _require_same("outputs", [*interface.outputs], names)
    shapes = [tuple(graph.tensors[index].shape[1:]) for index in graph.inputs]
    _require_same("shapes of the inputs", shapes, [tuple(t.shape[1:]) for t in wanted.values()])
    arrays = [
        _typed(name, array, wanted[name].dtype)
        for name, array in zip(interface.inputs, interface.arrays(images, shapes), strict=True)
    ]
    target = declared_target(graph.metadata)
    runner = Runner(
        flat,
        batch_size=min(_BATCH, len(arrays[0])),
        signature=signature,
        kernels=target.exact_kernels or "xnnpack",
    )
    given = keras.tree.pack_sequence_as(network.input, arrays)
    folded_network = fold_batch_norm(model)
    with rounded_for(target, folded_network):
        folded = _outputs(folded_network, given, len(arrays[0]))
    trained = _outputs(model, given, len(arrays[0]))
    device = runner.flat_outputs(arrays)
    shapes = [[a.shape[1:] for a in outputs] for outputs in (device, folded)]
    _require_same("shapes of the outputs", *shapes)
    steps = [np.abs(d - f) / s for d, f, s in zip(device, folded, _scales(graph), strict=True)]
    differing = [int(np.sum(array != 0)) for array in steps]
    pairs = zip(device, trained, strict=True)
    agreements = (np.mean(d.argmax(-1) == t.argmax(-1)) for d, t in pairs)
    return ParityReport(
        outputs=sum(array.size for array in device),
        differing=sum(differing),
        max_lsb=max(int(np.rint(array.max())) for array in steps),
        top1_agreement=float(min(agreements)),
        delegated=runner.delegated,
        by_output=dict(zip(interface.outputs, differing, strict=True)),
    )


def _require_same(what: str, file: list[Any], model: list[Any]) -> None:
    """Raises ValueError unless the file and the model have the same inputs and outputs."""
    if file != model:
        raise ValueError(
            f"parity: expected the file of this model, whose {what} are {model}, found one whose "
            f"{what} are {file}."
        )


def _typed(name: str, images: np.ndarray, dtype: str) -> np.ndarray:
    """Images in the type that an input takes.

    Raises:
      TypeError: an input of bytes is given other values.
    """
    found = images.astype(dtype)
    if dtype == "uint8" and not np.array_equal(found, images):
        raise TypeError(f"parity: input {name!r} takes integers of 0 to 255, found other values.")
    return found


def _outputs(model: Any, images: Any, count: int) -> list[np.ndarray]:
    if count <= _BATCH:  # building a graph takes longer than one run without
        outputs = model(images, training=False)
    else:
        outputs = model.predict(images, batch_size=_BATCH, verbose=0)
    return [np.asarray(array) for array in keras.tree.flatten(outputs)]


def _scales(graph: FileGraph) -> list[float]:
    """Of the outputs."""
    producers = [graph.producer(index) for index in graph.outputs]
    if None in producers:
        raise ValueError("An output of the file is no operator's result.")
    return [float(graph.tensors[p.inputs[0]].scales[0]) for p in producers if p is not None]
