"""Writes the .tflite of a trained model, checked against the model.

    metamix-export MODEL.keras [--output=model.tflite] [--weight_container=fast]
    metamix-export MIXER.keras --point eco=eco.bits.json --point full=full.bits.json

The file is read back and compared with the model's bit assignment, then run by LiteRT beside the
model. The bit-widths go beside it, as `bits.json`. With points it has a signature for each.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keras_metamix.assignment import BitAssignment
from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.checks import one_line, shown
from keras_metamix.files import written_whole
from keras_metamix.launch.commands import option, parse
from keras_metamix.launch.messages import check_output, command_line, run_main
from keras_metamix.launch.parity_images import RANDOM_IMAGES, parity_images
from keras_metamix.launch.results import layer_rows, today
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.quantized_model import QuantizedModel
from keras_metamix.report.results import Layer
from metamix_tflite import convert, parity, verify
from metamix_tflite.containers import CONTAINERS

# What Keras, h5py and zipfile raise for an archive that is not what it says.
_DAMAGE = (EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError)
_DAMAGE += (zipfile.BadZipFile, zlib.error)
_FLOAT_CLASSES = ("Functional", "Sequential", "Model")
_CLASSES = (QuantizedModel.__name__, MetaMixModel.__name__, BitMixerModel.__name__)


@dataclasses.dataclass(kw_only=True)
class Options:
    """The command line."""

    model: Path = option(
        "a .keras file of a trained QuantizedModel, MetaMixModel or BitMixerModel", positional=True
    )
    output: Path = option("the file", Path("model.tflite"))
    weight_container: Literal["fast", "smallest", "edgetpu"] = option(
        f"one of {', '.join(CONTAINERS)}", "fast"
    )
    io: Literal["float32", "int8"] = option(
        "inputs and outputs: float32, or int8 as the Edge TPU wants", "float32"
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
        repeated=True,
    )
    nobits_json: bool = option("write no bits.json beside the output", False)


def parse_flags(argv: Sequence[str]) -> Options:
    """Parses the command line; see `commands.parse`."""
    return parse(Options, argv, "Writes the .tflite of a trained model, checked.")


def main(options: Options) -> None:
    """Exports the model that the options name and prints its layers.

    Raises:
      ValueError, OSError: what is wrong with a file or flag, what was expected and found.
    """
    output: Path = options.output
    if output.suffix != ".tflite":
        raise ValueError(f"--output: expected a name that ends in .tflite, found {str(output)!r}.")
    bits_json = output.with_name("bits.json")
    for path in (output,) if options.nobits_json else (output, bits_json):
        check_output("--output", path)
    points = _read_points(options.point)
    model = load_model(options.model)
    if points:
        _export_points(model, points, options)
        return
    if options.bits is not None:
        _assign(model, options.bits)
    try:
        model.require_quantized()
    except ValueError as error:
        hint = "Or give bit-widths by --bits." if isinstance(model, MetaMixModel) else ""
        raise ValueError(f"{options.model}: {error} {hint}") from error
    images = parity_images(model.network, options.images)
    flat = convert(model, options.weight_container, options.io, run=_run(options))
    bits = model.bit_assignment
    rows = layer_rows(verify(flat, bits), model, bits)
    agreement = _parity(flat, model, options, images)

    with written_whole(output) as temporary:
        temporary.write_bytes(flat)
    if not options.nobits_json:
        bits.save(bits_json)
    Console().print(_table(rows))
    print(f"{output}: {len(flat):,} bytes, {sum(row.bops for row in rows):,} BOPs; {agreement}")


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


def _export_points(model: Any, points: dict[str, BitAssignment], options: Options) -> None:
    """Writes a file with a signature for each operating point."""
    if not isinstance(model, BitMixerModel):
        raise ValueError(
            f"--point: {options.model}: expected a BitMixerModel, found a {type(model).__name__}."
        )
    if options.bits is not None:
        raise ValueError("--point: expected no --bits beside it.")
    images = parity_images(model.network, options.images)
    flat = convert(model, options.weight_container, options.io, points, _run(options))
    graphs = verify(flat, points)
    agreements = {}
    if options.io == "float32":
        for name, bits in points.items():
            agreements[name] = _parity(flat, model, options, images, {name: bits})
    with written_whole(options.output) as temporary:
        temporary.write_bytes(flat)
    for name, bits in points.items():
        rows = layer_rows(graphs[name], model, bits)
        print(f"{name}: {sum(row.bops for row in rows):,} BOPs")
        Console().print(_table(rows))
        if name in agreements:
            print(f"{name}: {agreements[name]}")
    print(f"{options.output}: {len(flat):,} bytes, signatures {', '.join(points)}")


def _run(options: Options) -> dict[str, Any]:
    """What the file tells of its origin: the training is not known any more."""
    return {"model": options.model.name, "date": today(), "command": command_line()}


def load_model(path: Path) -> QuantizedModel:
    """Reads a `.keras` file of a QuantizedModel, MetaMixModel or BitMixerModel.

    Raises:
      OSError, ValueError: no such file, a damaged one, or one of another model.
    """
    hint = "quantize it with from_float, and train it or fix its bits by set_bits."
    return load_archive(path, _CLASSES, "a QuantizedModel, MetaMixModel or BitMixerModel", hint)


def load_float_model(path: Path, hint: str) -> keras.Model:
    """Reads a `.keras` file of a float model; see `load_model` and `load_archive`."""
    return load_archive(path, _FLOAT_CLASSES, "a float model, Functional or Sequential", hint)


def load_archive(path: Path, classes: Sequence[str], expected: str, hint: str) -> Any:
    """Reads a `.keras` file of one of some classes.

    Args:
      path: of the file.
      classes: names of the classes; nothing else is built, whatever the file says.
      expected, hint: what a message says of these, and of any other.

    Raises:
      OSError, ValueError: see `load_model`.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path}: expected a .keras archive, found none, or one cut short.")
    try:
        found = _class_of(path)
        if found in classes:
            return _load(path)
    except _DAMAGE as error:
        # Keras appends whole configurations to some of its messages.
        reason = one_line(str(error), 200)
        raise ValueError(f"{path}: Keras cannot load it: {reason}") from error
    raise ValueError(f"{path}: expected {expected}, found a {found} model: {hint}")


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that do not fit, before the error
        return keras.saving.load_model(path, compile=False)


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


def _assign(model: QuantizedModel, file: Path) -> None:
    """Gives a model the bit-widths of a `bits.json`."""
    bits = BitAssignment.load(file)
    trained = isinstance(model, MetaMixModel) and model.phase == "weight_training"
    if trained and bits == model.bit_assignment:
        return  # setting them again would replace the trained weight steps
    try:
        model.set_bits(bits)
    except ValueError as error:
        raise ValueError(f"--bits={file}: {error}") from error


def _parity(
    flat: bytes,
    model: QuantizedModel,
    options: Options,
    images: dict[str, np.ndarray],
    point: dict[str, BitAssignment] | None = None,
) -> str:
    """How the file, or one point of it, compares with the model, and on which images."""
    source = f"{RANDOM_IMAGES} random images (seed 0)"
    if options.images is not None:
        source = f"{len(next(iter(images.values())))} images of {options.images}"
    if options.io != "float32":
        flat = convert(model, options.weight_container)  # the same integers, float at its ends
        source += ", with float32 ends"
    if point is not None:
        (report,) = parity(flat, model, images, point).values()
    else:
        report = parity(flat, model, images)
    return f"on {source}: {report}"


def _table(rows: list[Layer]) -> Table:
    """The layers in network order; names verbatim, never as markup."""
    table = Table("layer", "bits A/W", "container")
    for row in rows:
        bits = f"{row.activation_bits}/{row.weight_bits}"
        table.add_row(Text(row.name), bits, row.container)
    return table


def run() -> None:
    """The entry point of the `metamix-export` command."""
    run_main(main, parse_flags)


if __name__ == "__main__":
    run()
