"""Writes the .tflite of a trained model, checked against the model.

    metamix-export MODEL.keras [--output=model.tflite] [--weight_container=fast]

The file is read back and compared with the model's bit assignment, then run by LiteRT beside the
model. The bit-widths go beside it, as `bits.json`.
"""

from __future__ import annotations

import argparse
import textwrap
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl.flags import argparse_flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keras_metamix.assignment import BitAssignment
from keras_metamix.files import written_whole
from keras_metamix.launch.messages import check_output, run_main
from keras_metamix.launch.results import layer_rows
from keras_metamix.metamix.model import MetaMixModel
from metamix_tflite import convert, parity
from metamix_tflite.containers import CONTAINERS

_RANDOM_IMAGES = 50
# What Keras, h5py and zipfile raise for an archive that is not what it says.
_DAMAGE = (EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError)
_DAMAGE += (zipfile.BadZipFile, zlib.error)


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line, the program's name first.

    Raises:
      SystemExit: the arguments are wrong; the usage is on stderr.
    """
    parser = argparse_flags.ArgumentParser(
        prog="metamix-export", description="Writes the .tflite of a trained model, checked."
    )
    add = parser.add_argument
    add("model", type=Path, help="a .keras file of a MetaMixModel in weight training")
    add("--output", type=Path, default=Path("model.tflite"), help="default: model.tflite")
    add("--weight_container", default="fast", help=f"one of {', '.join(CONTAINERS)}; default: fast")
    add("--io", default="float32", help="inputs and outputs: float32 or int8; default: float32")
    add("--images", type=Path, help="a .npy of images to check parity on; default: random ones")
    add(
        "--bits",
        type=Path,
        help="a bits.json to assign first; its weight steps are set from the weights, untrained",
    )
    add("--nobits_json", action="store_true", help="write no bits.json beside the output")
    return parser.parse_args(argv[1:])


def main(arguments: argparse.Namespace) -> None:
    """Exports the model that the arguments name and prints its layers.

    Raises:
      ValueError, OSError: what is wrong with a file or flag, what was expected and found.
    """
    output: Path = arguments.output
    if output.suffix != ".tflite":
        raise ValueError(f"--output: expected a name that ends in .tflite, found {str(output)!r}.")
    bits_json = output.with_name("bits.json")
    for path in (output,) if arguments.nobits_json else (output, bits_json):
        check_output("--output", path)
    model = load_model(arguments.model)
    if arguments.bits is not None:
        _assign(model, arguments.bits)
    elif model.phase != "weight_training":
        raise ValueError(
            f"{arguments.model}: expected a model in phase 'weight_training', found "
            f"{model.phase!r}: let fit with MetaMixCallback finish, or give bit-widths by --bits."
        )
    flat = convert(model, arguments.weight_container, arguments.io)
    rows = layer_rows(flat, model)  # verifies the file against the assignment
    agreement = _parity(flat, model, arguments)

    if not arguments.nobits_json:
        model.bit_assignment.save(bits_json)
    with written_whole(output) as temporary:
        temporary.write_bytes(flat)
    Console().print(_table(rows))
    print(f"{output}: {len(flat):,} bytes, {sum(row['bops'] for row in rows):,} BOPs; {agreement}")


def load_model(path: Path) -> MetaMixModel:
    """Reads a `.keras` file of a MetaMixModel.

    Raises:
      OSError, ValueError: no such file, a damaged one, or one of another model.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path}: expected a .keras archive, found none, or one cut short.")
    try:
        model = keras.saving.load_model(path, compile=False)
    except _DAMAGE as error:
        # Keras appends whole configurations to some of its messages.
        reason = textwrap.shorten(str(error), 200)
        raise ValueError(f"{path}: Keras cannot load it: {reason}") from error
    if not isinstance(model, MetaMixModel):
        raise ValueError(
            f"{path}: expected a MetaMixModel, found a {type(model).__name__} model: quantize it "
            "with MetaMixModel.from_float, and train it or fix its bits by set_bits."
        )
    return model


def _assign(model: MetaMixModel, file: Path) -> None:
    """Gives a model the bit-widths of a `bits.json`."""
    bits = BitAssignment.load(file)
    if model.phase == "weight_training" and bits == model.bit_assignment:
        return  # setting them again would replace the trained weight steps
    try:
        model.set_bits(bits)
    except ValueError as error:
        raise ValueError(f"--bits={file}: {error}") from error


def _parity(flat: bytes, model: MetaMixModel, arguments: argparse.Namespace) -> str:
    """How the file compares with the model, and on which images."""
    network = model.network
    if len(network.inputs) > 1 or len(network.outputs) > 1:
        return "parity not checked: that takes a network of one input and one output"
    shape = tuple(network.inputs[0].shape[1:])
    if arguments.images is None:
        images = np.random.default_rng(0).normal(size=(_RANDOM_IMAGES, *shape))
        source = f"{_RANDOM_IMAGES} random images (normal, seed 0)"
    else:
        images = _read_images(arguments.images, shape)
        source = f"{len(images)} images of {arguments.images}"
    if arguments.io != "float32":
        flat = convert(model, arguments.weight_container)  # the same integers, float at its ends
        source += ", with float32 ends"
    return f"on {source}: {parity(flat, model, images)}"


def _read_images(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Images of the given shape from a .npy file."""
    expected = f"an array of shape (images, {', '.join(map(str, shape))})"
    try:
        with file.open("rb") as content:
            images = np.lib.format.read_array(content, allow_pickle=False)
    except ValueError as error:
        raise ValueError(
            f"--images={file}: expected {expected}, found no array: {error}"
        ) from error
    if images.shape[1:] != shape or not np.issubdtype(images.dtype, np.number):
        found = f"{images.dtype} of shape {images.shape}"
        raise ValueError(f"--images={file}: expected {expected}, found {found}.")
    return images


def _table(rows: list[dict[str, Any]]) -> Table:
    """The layers in network order; names verbatim, never as markup."""
    table = Table("layer", "bits A/W", "container")
    for row in rows:
        bits = f"{row['activation_bits']}/{row['weight_bits']}"
        table.add_row(Text(row["name"]), bits, row["container"])
    return table


def run() -> None:
    """The entry point of the `metamix-export` command."""
    run_main(main, parse_flags)


if __name__ == "__main__":
    run()
