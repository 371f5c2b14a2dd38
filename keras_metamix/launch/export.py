"""Writes the .tflite of a trained model, checked against the model.

    metamix-export MODEL.keras [--output=model.tflite] [--target=cpu]
    metamix-export MIXER.keras --point eco=eco.bits.json --point full=full.bits.json
    metamix-export MODEL.keras --labels=labels.txt --normalization=127.5,127.5

The file is read back and compared with the model's bit assignment, then run by LiteRT beside the
model. The bit-widths go beside it, as `bits.json`. With points it has a signature for each.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from keras_metamix.assignment import BitAssignment
from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.checks import naming, one_line, shown
from keras_metamix.files import written_whole
from keras_metamix.launch.commands import option, parse
from keras_metamix.launch.messages import check_output, command_line, run_main
from keras_metamix.launch.parity_images import RANDOM_IMAGES, parity_images
from keras_metamix.launch.results import layer_rows, today
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.quantized_model import QuantizedModel
from keras_metamix.report.table import terminal
from metamix_tflite import convert, parity, verify
from metamix_tflite.containers import CONTAINERS
from metamix_tflite.targets import (
    IO_TYPES,
    TARGETS,
    ContainerName,
    IoName,
    TargetName,
    target_of,
)

# What Keras, h5py and zipfile raise for an archive that is not what it says.
_DAMAGE = (EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError)
_DAMAGE += (zipfile.BadZipFile, zlib.error)
_FLOAT_CLASSES = ("Functional", "Sequential", "Model")
_CLASSES = (QuantizedModel.__name__, MetaMixModel.__name__, BitMixerModel.__name__)


@dataclasses.dataclass(kw_only=True)
class Options:
    """Writes the .tflite of a trained model, checked."""

    model: Path = option(
        "a .keras file of a trained QuantizedModel, MetaMixModel or BitMixerModel", positional=True
    )
    output: Path = option("the file", Path("model.tflite"))
    target: TargetName = option(
        f"where the file runs, see docs/targets.md: one of {', '.join(TARGETS)}", "cpu"
    )
    weight_container: ContainerName | None = option(
        f"another than the target's: one of {', '.join(CONTAINERS)}", None
    )
    io: IoName | None = option(
        f"inputs and outputs of another type than the target's: one of {', '.join(IO_TYPES)}", None
    )
    images: Path | None = option("images for parity: a .npy, or a .npz by input; random ones", None)
    bits: Path | None = option(
        "a bits.json to assign first; of a MetaMixModel, weight steps are then set from the "
        "weights, untrained",
        None,
    )
    point: list[str] = option(
        "an operating point of a BitMixerModel: a signature of that name; once for each",
        [],
        "NAME=BITS.json",
    )
    labels: Path | None = option(
        "names of the classes, one a line: the file gets TFLite metadata, as MediaPipe reads it",
        None,
    )
    normalization: tuple[float, ...] | None = option(
        "how an app makes the floats of an input that takes no bytes: (byte - MEAN) / DEVIATION",
        None,
        "MEAN,DEVIATION",
    )
    nobits_json: bool = option("write no bits.json beside the output", False)


def main(options: Options) -> None:
    """Exports the model that the options name and prints its layers.

    Raises:
      ValueError, OSError: what is wrong with a file or flag, what was expected and found.
    """
    output: Path = options.output
    target = target_of(options.target, options.weight_container, options.io)
    check_output("--output", output, ".tflite")
    points = _read_points(options.point)
    bits_json = None if points or options.nobits_json else output.with_name("bits.json")
    if bits_json:
        check_output("--output", bits_json)
    model = load_model(options.model)
    _fix_bits(model, options)
    images = parity_images(model.network, options.images)
    named = points or None
    file: dict[str, Any] = {"operating_points": named, "weight_container": target.container}
    run = {"model": options.model.name, "date": today(), "command": command_line()}
    file |= {"labels": _labels(options.labels), "normalization": options.normalization}
    flat = convert(model, options.target, io=options.io, run=run, **file)
    source = f"{RANDOM_IMAGES} random images (seed 0)"
    if options.images is not None:
        source = f"{len(next(iter(images.values())))} images of {options.images}"
    compared = flat
    if target.io != "float32":
        compared = convert(model, options.target, io="float32", **file)  # the same integers
        source += ", with float32 inputs and outputs"
    bits = points or {"": model.bit_assignment}
    if points:
        graphs, reports = verify(flat, points), parity(compared, model, images, points)
    else:
        graphs = {"": verify(flat, bits[""])}
        reports = {"": parity(compared, model, images)}
    with written_whole(output) as temporary:
        temporary.write_bytes(flat)
    if bits_json:
        bits[""].save(bits_json)
    for name, chosen in bits.items():
        rows = layer_rows(graphs[name], model, chosen)
        cells = [
            [row.name, f"{row.activation_bits}/{row.weight_bits}", row.container] for row in rows
        ]
        Console().print(terminal("", ("layer", "bits A/W", "container"), cells))
        words = f"{len(flat):,} bytes, {sum(row.bops for row in rows):,} BOPs"
        print(f"{f'{output}:{name}' if name else output}: {words}; on {source}: {reports[name]}")


def _labels(path: Path | None) -> list[str] | None:
    """The lines of --labels; blank ones at the end are none."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--labels={path}: expected a text in UTF-8, found {error}.") from error


def _read_points(texts: list[str]) -> dict[str, BitAssignment]:
    """The operating points that --point names."""
    points = {}
    for text in texts:
        name, separator, file = text.partition("=")
        if not (name and separator and file):
            raise ValueError(f"--point: expected NAME=BITS.json, found {text!r}.")
        if name in points:
            raise ValueError(f"--point: expected each name once, found {name!r} again.")
        points[name] = BitAssignment.load(file)
    return points


def _fix_bits(model: QuantizedModel, options: Options) -> None:
    """Gives a model the bit-widths of --bits, and finds out whether it can be written.

    Raises:
      ValueError: it has no fixed bits, or is not of the kind that the flags are for.
    """
    if options.point and not isinstance(model, BitMixerModel):
        found = type(model).__name__
        raise ValueError(f"--point: {options.model}: expected a BitMixerModel, found a {found}.")
    if options.point and options.bits is not None:
        raise ValueError("--point: expected no --bits beside it.")
    if options.bits is not None:
        bits = BitAssignment.load(options.bits)
        trained = isinstance(model, MetaMixModel) and model.phase == "weight_training"
        # Setting a trained model's own bits again would replace its weight steps.
        if not (trained and bits == model.bit_assignment):
            with naming(f"--bits={options.bits}"):
                model.set_bits(bits)
    try:
        model.require_quantized()
    except ValueError as error:
        hint = "Or give bit-widths by --bits." if isinstance(model, MetaMixModel) else ""
        raise ValueError(f"{options.model}: {error} {hint}") from error


def load_model(path: Path) -> QuantizedModel:
    """Reads a `.keras` file of a QuantizedModel, MetaMixModel or BitMixerModel.

    Raises:
      OSError, ValueError: no such file, a damaged one, or one of another model.
    """
    hint = "quantize it with from_float, and train it or fix its bits by set_bits."
    return _load(path, _CLASSES, "a QuantizedModel, MetaMixModel or BitMixerModel", hint)


def load_float_model(path: Path, hint: str) -> keras.Model:
    """Reads a `.keras` file of a float model; of another, `hint` says what to do."""
    return _load(path, _FLOAT_CLASSES, "a float model, Functional or Sequential", hint)


def load_any_model(path: Path) -> keras.Model:
    """Reads a `.keras` file of a float model, or of a quantized one."""
    expected = "a float or a quantized model"
    return _load(path, (*_FLOAT_CLASSES, *_CLASSES), expected, "give one of these.")


def _load(path: Path, classes: Sequence[str], expected: str, hint: str) -> Any:
    """The model of a `.keras` file, of one of some classes: nothing else is built."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path}: expected a .keras archive, found none, or one cut short.")
    try:
        found = _class_of(path)
        if found in classes:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of weights that do not fit, before the error
                return keras.saving.load_model(path, compile=False)
    except _DAMAGE as error:
        # Keras appends whole configurations to some of its messages.
        reason = one_line(str(error), 200)
        raise ValueError(f"{path}: Keras cannot load it: {reason}") from error
    raise ValueError(f"{path}: expected {expected}, found a {found} model: {hint}")


def _class_of(path: Path) -> str:
    """The class of the model in a `.keras` archive."""
    with zipfile.ZipFile(path) as archive:
        names = {"config.json", "model.weights.h5"} - set(archive.namelist())
        if names:
            raise ValueError(f"expected {' and '.join(sorted(names))} in the archive, found none")
        config = json.loads(archive.read("config.json"))
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise ValueError(f"config.json: expected the config of a model, found {shown(config)}")
    return config["class_name"]


parse_flags = functools.partial(parse, Options)
run = functools.partial(run_main, main, parse_flags)  # the entry point of the command

if __name__ == "__main__":
    run()
