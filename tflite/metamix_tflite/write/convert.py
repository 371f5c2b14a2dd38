"""Writes a folded network, or one for each operating point, as one .tflite."""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras

from keras_metamix.assignment import BitAssignment
from keras_metamix.checks import found_model
from keras_metamix.cost import Budget, Size, as_budgets
from keras_metamix.graph.fold_bn import fold_batch_norm
from keras_metamix.graph.rounding import rounded_for
from keras_metamix.graph.topology import Node
from keras_metamix.layers import integer
from keras_metamix.network_model import require_quantized_model
from keras_metamix.quantized_model import QuantizedModel
from metamix_tflite.encoding import DEFAULT_SIGNATURE
from metamix_tflite.operators import writer_of
from metamix_tflite.operators.base import Outside
from metamix_tflite.read.attached import DESCRIPTION, attached
from metamix_tflite.read.file_hash import HASH_NAME, PLACEHOLDER
from metamix_tflite.read.files import hashed
from metamix_tflite.read.metadata import METADATA_NAME, MOST_GOLDEN, encode
from metamix_tflite.targets import ContainerName, IoName, TargetName, target_of
from metamix_tflite.write.app_metadata import (
    APP_METADATA,
    App,
    app_metadata,
    described,
    label_files,
    require_app,
    with_files,
)
from metamix_tflite.write.flatbuffer import ModelBuilder
from metamix_tflite.write.golden_outputs import golden_outputs, input_grid
from metamix_tflite.write.signature_writer import SignatureWriter

_VERSIONED = ("keras-metamix", "tensorflow", "keras", "ai-edge-litert", "numpy")


def convert(
    model: Any,
    target: TargetName = "cpu",
    weight_container: ContainerName | None = None,
    io: IoName | None = None,
    operating_points: Mapping[str, BitAssignment] | None = None,
    run: Mapping[str, Any] | None = None,
    golden: int = 4,
    budget: Any = None,
    labels: Sequence[str] | None = None,
    normalization: tuple[float, float] | None = None,
) -> bytes:
    """The .tflite of a trained model; its integers are the trained ones.

    Its inputs and outputs have the names of the float model's, and their order: an output is called
    as the layer that makes it, or by its key where the model gives a dictionary; a name that comes
    again is numbered. An output that ends in a softmax or an L2 normalization gives what is before
    it. An input of dtype uint8 takes bytes.

    The file declares its bits, BOPs, origin and the integers that it has to give for inputs which
    any machine makes anew (`replay`), and holds a SHA-256 of itself.

    Args:
      model: a MetaMixModel in weight training, a BitMixerModel with quantized weights, or what
        `fold_batch_norm` made of one of them.
      target: where the file runs: "cpu" (LiteRT on x86 and on ARM with dot product), "arm" (ARM
        without it), "web" (LiteRT.js), "gpu", "micro" (LiteRT for Microcontrollers), "ethosu" or
        "edgetpu". Weight container, inputs and outputs, and operators follow (docs/targets.md);
        the integers are the same, those of "micro" rounded between layers as its kernels do.
      weight_container: another than the target's. "fast" keeps one XNNPACK partition: INT2 and INT4
        for dense and pointwise layers, and for convolutions large enough to be written as products
        of patches (`patches.py`), the other low-bit integers in INT8; "int4" is the same without
        INT2, which LiteRT has from 2.1.2 on; "int8" holds all in INT8 and has no FULLY_CONNECTED;
        "int4_conv" is the same with INT4 for weights of at most 4 bits; "smallest" holds every
        weight in INT2 or INT4 that LiteRT can. It runs the latter two outside XNNPACK, slower and
        rounded otherwise.
      io: type of the inputs and outputs, another than the target's: "float32", where an input of
        bytes stays one, "int8" or "uint8".
      operating_points: bit assignments by name. The file holds the model at each of them, as a
        signature of that name; constants that are equal are stored once. The model's bits stay.
        None writes the model at its present bits, as signature "serving_default".
      run: what the file is to tell of its training: anything that JSON holds.
      golden: inputs of each signature whose outputs the file holds, 0 to 64. The folded network
        runs once for each.
      budget: as `MetaMixCallback` takes it. A warning tells if the file, of one signature, has more
        bytes than a `Size` in it allows: the search predicts them to within 1 %.
      labels: names of the classes. The file then has TFLite metadata, by which apps know these, and
        how to make the input of a picture: MediaPipe's ImageClassifier runs it, or ImageSegmenter
        where there are classes for each pixel. Takes the extra `keras-metamix[mediapipe]`.
      normalization: (mean, deviation) of the metadata: an app computes (byte - mean) / deviation of
        a picture's bytes. None where the model takes bytes, as uint8, or as floats of 0 to 255 with
        a Rescaling or Normalization behind. Metadata without labels is written where it is given.

    Raises:
      TypeError: another model, or no budget.
      ValueError: an argument, one that the target does not take, or a layer that has no exact
        operator; names it.
    """
    chosen = target_of(target, weight_container, io)
    _check_golden(golden)
    budgets = () if budget is None else as_budgets(budget)
    if not _is_folded(model):
        require_quantized_model("convert", model)
    for_apps = labels is not None or normalization is not None
    if for_apps:
        network = model if _is_folded(model) else model.network
        require_app(network, labels, normalization, chosen.io, len(operating_points or "1"))
    origin = {"versions": _versions(), "run": _checked_run(run or {})}
    file = ModelBuilder(DESCRIPTION)
    written: list[SignatureWriter] = []
    apps: list[App] = []

    def write(name: str, folded: keras.Model) -> dict[str, Any]:
        signature = SignatureWriter(file, name, folded, chosen)
        if for_apps:
            grid = input_grid(signature.topology, signature.topology.inputs[0])
            apps.append(described(folded, grid, labels, normalization, chosen.io))
        # XNNPACK leaves the QUANTIZE of bytes to LiteRT, and runs as one what is behind all of it.
        for node in sorted(signature.topology.nodes, key=signature.reads_bytes, reverse=True):
            _write(signature, node)
        signature.finish()
        written.append(signature)
        if golden:
            with rounded_for(chosen, folded):
                signature.declared["golden"] = golden_outputs(folded, golden)
        return signature.declared

    if operating_points is None:
        declared = write(DEFAULT_SIGNATURE, model if _is_folded(model) else fold_batch_norm(model))
    else:
        declared = {"signatures": _write_points(model, operating_points, write)}
    declared |= {"target": target, "weight_container": chosen.container, "io": chosen.io, **origin}
    if chosen.cpus and chosen.exact_kernels == "xnnpack":
        _tell_of_partitions(written[0])
    flat = _finished(file, declared, apps)
    if operating_points is None:
        _check_size(len(flat), model, budgets)
    return flat


def _finished(file: ModelBuilder, declared: dict[str, Any], apps: list[App]) -> bytes:
    """The bytes of a file, with its declaration, its hashes and what apps read, if any do."""
    entries = {APP_METADATA: app_metadata(apps[0])} if apps else {}
    files = label_files(apps[0]) if apps else {}
    for name, content in entries.items():
        file.metadata(name, content)
    parts = attached(with_files(b"", files), entries, DESCRIPTION)
    file.metadata(METADATA_NAME, encode(declared | {"attached": parts}))
    file.metadata(HASH_NAME, PLACEHOLDER)
    return hashed(with_files(file.finish(), files))


def _check_size(found: int, model: Any, budgets: Iterable[Budget]) -> None:
    """Warns if a file has more bytes than a budget of them."""
    for budget in budgets:
        if not isinstance(budget, Size):
            continue
        limit = budget.limit if budget.share is None else budget.priced(model).limit
        if found > limit:
            priced, lower = budget.priced(model), limit**2 / found
            remedy = f"search with a limit of {lower:,.0f} bytes instead, or convert"
            if lower < priced.least:
                remedy = f"its bits cannot go below {priced.least:,.0f} bytes; convert"
            warnings.warn(
                f"the file has {found:,} bytes, {found - limit:,.0f} more than {budget} "
                f"allows: {remedy} with fewer golden outputs (golden=0).",
                stacklevel=3,
            )


def _tell_of_partitions(signature: SignatureWriter) -> None:
    """Says once what XNNPACK does not run, the same in all signatures of a file."""
    layers: dict[Outside, list[str]] = {}
    for name, found in signature.outside.items():
        layers.setdefault(found, []).append(name)
    parts = signature.partitions
    where = (
        "before or behind its one partition" if parts == 1 else f"between its {parts} partitions"
    )
    for found, names in layers.items():
        first, runs = ("Layer", "runs it") if len(names) == 1 else ("Layers", "runs them")
        warnings.warn(
            f"{first} {', '.join(map(repr, names))}: {found.why}; LiteRT's own kernel {runs}, as "
            f"exactly, {where}. {found.remedy} would keep the whole file in XNNPACK.",
            stacklevel=3,
        )


def _check_golden(golden: int) -> None:
    if type(golden) is not int or not 0 <= golden <= MOST_GOLDEN:
        raise ValueError(f"golden: expected 0 to {MOST_GOLDEN} inputs, found {golden!r}.")


def _checked_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a file tells of its training, as JSON gives it back.

    Raises:
      ValueError: no mapping, or something that JSON does not hold; says what.
    """
    if not isinstance(run, Mapping):
        raise ValueError(f"run: expected a dictionary, found {type(run).__name__}.")
    try:
        return json.loads(json.dumps(dict(run), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"run: expected what JSON holds, found: {error}.") from error


def _versions() -> dict[str, str]:
    """Of the libraries that trained the model and wrote the file."""
    return {name: importlib.metadata.version(name) for name in _VERSIONED}


def _write_points(
    model: Any,
    points: Mapping[str, BitAssignment],
    write: Callable[[str, keras.Model], dict[str, Any]],
) -> dict[str, Any]:
    """Writes a signature for each operating point and returns what they declare, by name."""
    _check_points(model, points)
    before, declared = model.bit_assignment, {}
    try:
        for name, bits in points.items():
            try:
                model.set_bits(bits)
                declared[name] = write(name, fold_batch_norm(model))
            except ValueError as error:
                raise ValueError(f"Operating point {name!r}: {error}") from error
    finally:
        model.set_bits(before)
    return declared


def _check_points(model: Any, points: Any) -> None:
    if not isinstance(model, QuantizedModel):
        raise TypeError(
            "operating_points: expected a BitMixerModel or a MetaMixModel, which change their "
            f"bit-widths, found {found_model(model)}."
        )
    model.require_quantized()  # else set_bits would end a search
    if not isinstance(points, Mapping) or not points:
        raise ValueError(
            f"operating_points: expected {{name: bit assignment}}, at least one, found {points!r}."
        )
    for name, bits in points.items():
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ValueError(f"operating_points: expected printable names, found {name!r}.")
        if not isinstance(bits, BitAssignment):
            raise ValueError(
                f"Operating point {name!r}: expected a BitAssignment, found {type(bits).__name__}."
            )


def _is_folded(model: Any) -> bool:
    return isinstance(model, keras.Model) and any(
        isinstance(layer, integer.IntegerLayer) for layer in model.layers
    )


def _write(file: SignatureWriter, node: Node) -> None:
    family = writer_of(node.operation)
    if family is None:
        raise ValueError(
            f"Layer {node.name!r} ({type(node.operation).__name__}) has no exact LiteRT operator."
        )
    family.write(file, node)
