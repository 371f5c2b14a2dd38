"""TFLite metadata: how an app makes a file's input of a picture, and what its classes are called.

It is what MediaPipe's tasks, Android Studio and other apps read: a flatbuffer of the public schema
in the metadata entry TFLITE_METADATA, and the labels as a text in a ZIP archive at the file's end.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import flatbuffers
import keras
import numpy as np

from keras_metamix.checks import shown
from keras_metamix.graph.io_names import named_inputs, named_outputs
from keras_metamix.graph.topology import Topology
from keras_metamix.layers.grid import Grid
from keras_metamix.layers.integer import Dequantize

APP_METADATA = "TFLITE_METADATA"  # the entry that holds it
_LABELS = "labels.txt"
_IDENTIFIER, _SEGMENTER_IDENTIFIER = b"M001", b"V001"  # of the two schemas
_SEGMENTER = "SEGMENTER_METADATA"
# The schema's versions that have the fields of each.
_PARSER = {"classifier": "1.0.0", "segmenter": "1.5.0"}
_MOST = 4.0  # times that bytes may reach beyond the input's grid, or stay within it
_HIGHEST = 255


@dataclasses.dataclass(frozen=True)
class App:
    """What an app learns of a model of one picture and one output.

    Attributes:
      task: "classifier", or "segmenter", whose output has classes for each pixel.
      input, output: names.
      classes: how many.
      labels: of the classes, maybe none.
      normalization: mean and deviation that turn bytes into the input's floats; None where it takes
        bytes.
    """

    task: str
    input: str
    output: str
    classes: int
    labels: tuple[str, ...]
    normalization: tuple[float, float] | None


def require_app(
    network: keras.Model, labels: Any, normalization: Any, io: str, signatures: int
) -> None:
    """Finds out before the work whether a network can have this metadata.

    Args:
      network: quantized, or folded.
      labels, normalization, io: of `convert`.
      signatures: how many the file will have.

    Raises:
      TypeError, ValueError: names the argument, what was expected and what was found.
    """
    (name, image), *more = named_inputs(network)
    shape = tuple(image.shape[1:])
    if more or len(shape) != 3 or shape[-1] != 3:
        found = [f"{n!r} of shape {tuple(t.shape)}" for n, t in ((name, image), *more)]
        raise ValueError(
            "labels and normalization: MediaPipe takes a model of one input of shape (height, "
            f"width, 3), found {', '.join(found)}. Gray pictures: begin the model with "
            "keras.Input((height, width, 3)) and a 1x1 convolution to one channel."
        )
    outputs = _outputs(network)
    ranks = [len(tensor.shape) for _, tensor in outputs]
    if ranks not in ([2], [4]):
        found = [f"{n!r} of shape {tuple(t.shape)}" for n, t in outputs]
        raise ValueError(
            "labels and normalization: expected a model of one output, of shape (classes,) or "
            f"(height, width, classes), found {', '.join(found)}."
        )
    if signatures != 1:
        raise ValueError(
            "labels and normalization: MediaPipe takes files of one signature, found "
            f"{signatures} operating points: convert each alone, after model.set_bits(bits)."
        )
    if io == "int8":
        raise ValueError(
            "labels and normalization: no app reads io='int8' by metadata, as MediaPipe takes "
            "pictures of float32 or uint8 alone: expected another io."
        )
    if labels is not None:
        _check_labels(labels, outputs[0][0], int(outputs[0][1].shape[-1]))
    if normalization is not None:
        _check_normalization(normalization)
        if image.dtype == "uint8":
            raise ValueError(
                f"normalization: input {name!r} takes bytes as they are, so that there is none: "
                "leave it out."
            )
    _schema("metadata_schema")


def _outputs(network: keras.Model) -> list[tuple[str, Any]]:
    """Names, as the file has them, and tensors of the outputs of a network, folded or not."""
    topology = Topology(network)
    nodes = [(name, tensor, topology.producer(tensor)) for name, tensor in named_outputs(network)]
    return [
        (n.operation.output_name if n and isinstance(n.operation, Dequantize) else name, tensor)
        for name, tensor, n in nodes
    ]


def _check_labels(labels: Any, output: str, classes: int) -> None:
    if isinstance(labels, str | bytes) or not isinstance(labels, Sequence):
        raise TypeError(f"labels: expected a list of names, found {type(labels).__name__}.")
    for label in labels:
        if not isinstance(label, str) or not label.strip() or not label.isprintable():
            raise ValueError(f"labels: expected printable names, found {label!r}.")
        if label != label.strip():
            raise ValueError(f"labels: expected names without blanks around, found {label!r}.")
    if len(labels) != classes:
        raise ValueError(
            f"labels: expected {classes}, one for each class of output {output!r}, found "
            f"{len(labels)}."
        )
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise ValueError(f"labels: expected different ones, found {shown(repeated)} repeated.")


def _check_normalization(normalization: Any) -> None:
    expected = "normalization: expected (mean, deviation), such as (127.5, 127.5)"
    try:
        mean, deviation = normalization
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}, found {normalization!r}.") from error
    if np.ndim(mean) or np.ndim(deviation):
        raise ValueError(
            f"{expected}, found one for each channel, which MediaPipe refuses: begin the model "
            "with keras.layers.Normalization(mean=..., variance=...) instead."
        )
    numbers = [isinstance(v, int | float | np.number) for v in (mean, deviation)]
    if not all(numbers) or not all(map(math.isfinite, (mean, deviation))) or deviation <= 0:
        raise ValueError(f"{expected}, the deviation above 0, found {normalization!r}.")


def described(
    network: keras.Model, grid: Grid, labels: Sequence[str] | None, normalization: Any, io: str
) -> App:
    """What an app learns of a network that `require_app` let through.

    Args:
      network: it.
      grid: the levels that its input holds.
      labels, normalization, io: of `convert`.

    Raises:
      ValueError: the normalization gives floats that the input does not hold, or is missing.
    """
    ((name, image),) = named_inputs(network)
    ((output, tensor),) = _outputs(network)
    found = None
    if image.dtype != "uint8":
        given = (0.0, 1.0) if normalization is None else normalization
        found = float(given[0]), float(given[1])
        _check_range(name, grid, found, normalization is None)
        if io == "uint8":
            _check_bytes(name, grid, found)
    task = "classifier" if len(tensor.shape) == 2 else "segmenter"
    return App(task, name, output, int(tensor.shape[-1]), tuple(labels or ()), found)


def _check_range(name: str, grid: Grid, normalization: tuple[float, float], implied: bool) -> None:
    """Raises ValueError unless bytes, normalized, fill about the grid that was trained.

    A model that begins with Rescaling or Normalization of bytes has a grid of 0 to about 255, and
    is the only one that needs no normalization.
    """
    mean, deviation = normalization
    least, most = (0 - mean) / deviation, (_HIGHEST - mean) / deviation
    low, high = grid.low * grid.step, grid.high * grid.step
    reach = (most - least) / (high - low if grid.low else high)
    negative = least < -0.05 * (most - least)
    if 1 / _MOST <= reach <= _MOST and negative == (grid.low < 0):
        return
    range_of = f"input {name!r} was trained on values of about {low:.3g} to {high:.3g}"
    suggested = _suggested(high, grid.low < 0)
    if implied:
        raise ValueError(
            f"normalization: {range_of}, and an app has bytes of 0 to 255: expected (mean, "
            f"deviation), by which the app computes (byte - mean) / deviation{suggested}. Or begin "
            "the model with keras.layers.Rescaling or Normalization, and none is needed."
        )
    raise ValueError(
        f"normalization: {range_of}, and by (mean, deviation) = {normalization} bytes become "
        f"{least:.3g} to {most:.3g}: expected what the training images had{suggested}. A model "
        "that begins with Rescaling or Normalization of bytes needs none."
    )


def _check_bytes(name: str, grid: Grid, normalization: tuple[float, float]) -> None:
    """Raises ValueError unless an app's bytes are the codes of an input of floats, with io="uint8".

    Apps do not normalize for an input of uint8. A grid's ends are then what bytes 0 and 255 become,
    within two steps: (byte - 127.5) / 127.5 is the grid of 1 / 127 but for one.
    """
    mean, deviation = normalization
    wanted = [(byte - mean) / deviation for byte in (0, _HIGHEST)]
    found = [level * grid.step for level in (grid.low, grid.high)]
    off = max(abs(w - f) for w, f in zip(wanted, found, strict=True)) / grid.step
    if grid.high - grid.low != _HIGHEST or off > 2:
        raise ValueError(
            f"labels and normalization: with io='uint8' an app gives input {name!r} bytes as they "
            f"are, which it takes for {found[0]:.3g} to {found[1]:.3g}, and the normalization for "
            f"{wanted[0]:.3g} to {wanted[1]:.3g}: expected io='float32', or a model of "
            "keras.Input(dtype='uint8') that begins with Rescaling or Normalization."
        )


def _suggested(high: float, signed: bool) -> str:
    """The usual normalization for a range, where there is one."""
    if not 0.8 < high < 1.25:
        return ""
    return ", such as (127.5, 127.5)" if signed else ", such as (0, 255)"


def app_metadata(app: App) -> bytes:
    """The flatbuffer of the schema."""
    schema = _schema("metadata_schema")
    model = schema.ModelMetadataT()
    model.subgraphMetadata, model.minParserVersion = [_graph(schema, app)], _PARSER[app.task]
    return _packed(model, _IDENTIFIER)


def _graph(schema: ModuleType, app: App) -> Any:
    image = _tensor(schema, app.input, "Image")
    image.content.contentProperties.colorSpace = schema.ColorSpaceType.RGB
    if app.normalization is not None:
        options, unit = schema.NormalizationOptionsT(), schema.ProcessUnitT()
        options.mean, options.std = (np.array([v], np.float32) for v in app.normalization)
        unit.options, unit.optionsType = options, schema.ProcessUnitOptions.NormalizationOptions
        image.processUnits = [unit]
    result = _tensor(schema, app.output, "Feature" if app.task == "classifier" else "Image")
    if app.labels:
        file = schema.AssociatedFileT()
        file.name, file.type = _LABELS, schema.AssociatedFileType.TENSOR_AXIS_LABELS
        result.associatedFiles = [file]
    graph = schema.SubGraphMetadataT()
    graph.inputTensorMetadata, graph.outputTensorMetadata = [image], [result]
    if app.task == "segmenter":
        graph.customMetadata = [_segmenter(schema, app.classes)]
    return graph


def _tensor(schema: ModuleType, name: str, kind: str) -> Any:
    """Metadata of a tensor whose content is an "Image" or a "Feature"."""
    tensor, content = schema.TensorMetadataT(), schema.ContentT()
    content.contentProperties = getattr(schema, f"{kind}PropertiesT")()
    content.contentPropertiesType = getattr(schema.ContentProperties, f"{kind}Properties")
    tensor.name, tensor.content = name, content
    return tensor


def _segmenter(schema: ModuleType, classes: int) -> Any:
    """Tells MediaPipe to compute what the file leaves out: probabilities of the logits."""
    segmenter = _schema("image_segmenter_metadata_schema")
    options, custom = segmenter.ImageSegmenterOptionsT(), schema.CustomMetadataT()
    kinds = segmenter.Activation
    options.activation = kinds.SIGMOID if classes == 1 else kinds.SOFTMAX
    options.minParserVersion = "1.0.0"
    custom.name = _SEGMENTER
    custom.data = np.frombuffer(_packed(options, _SEGMENTER_IDENTIFIER), np.uint8)
    return custom


def _packed(table: Any, identifier: bytes) -> bytes:
    builder = flatbuffers.Builder(0)
    builder.Finish(table.Pack(builder), identifier)
    return bytes(builder.Output())


def label_files(app: App) -> dict[str, bytes]:
    """The associated files that the metadata names."""
    return {_LABELS: "\n".join(app.labels).encode()} if app.labels else {}


def with_files(flat: bytes, files: Mapping[str, bytes]) -> bytes:
    """A .tflite with files in a ZIP archive at its end: uncompressed, as apps map them."""
    if not files:
        return flat
    content = io.BytesIO(flat)
    with zipfile.ZipFile(content, "a") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # of no date: equal files are equal
    return content.getvalue()


def _schema(name: str) -> ModuleType:
    """A module that flatc made of a public schema of metadata, as MediaPipe ships it.

    Its file is loaded by itself: importing the package would load all of MediaPipe, and its
    libraries, into the process that has TensorFlow.

    Raises:
      ValueError: MediaPipe is not installed.
    """
    package = importlib.util.find_spec("mediapipe")
    folders = package.submodule_search_locations if package is not None else None
    files = [Path(f, "tasks", "metadata", f"{name}_py_generated.py") for f in folders or ()]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise ValueError(
            "labels and normalization: the schema of TFLite metadata comes with MediaPipe, which "
            "is not installed: pip install 'keras-metamix[mediapipe]', or pip install mediapipe."
        )
    spec = importlib.util.spec_from_file_location(f"metamix_tflite.{name}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"labels: expected a Python module, found {path}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
