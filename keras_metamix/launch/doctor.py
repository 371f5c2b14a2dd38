"""Says what keeps a model from being quantized, or what it lost by that, and what to do.

    metamix-doctor MODEL.keras [--html=page.html] [--float_layers=NAME,NAME]
    metamix-doctor MODEL.keras --data=images.npz [--float_model=float.keras] [--html=page.html]
    metamix-doctor runs/quickstart [--html=page.html]

A float model is examined before any training: the exit code is 0 where it can be quantized whole,
else 1. Of a quantized one, or of a run, it is measured on data where the accuracy went.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_metamix import data as data_sets
from keras_metamix.doctor.checkup import checkup
from keras_metamix.doctor.diagnose import diagnose
from keras_metamix.graph.io_names import named_inputs
from keras_metamix.launch.commands import option, parse
from keras_metamix.launch.datasets import load_data
from keras_metamix.launch.export import load_any_model, load_float_model
from keras_metamix.launch.finished_run import read_config
from keras_metamix.launch.messages import check_output, run_main
from keras_metamix.quantized_model import QuantizedModel

_NAMES = ("fashion_mnist_extract", "fashion_mnist")
_LABELS = "labels"  # the array of a .npz


@dataclasses.dataclass(kw_only=True)
class Options:
    """Says what keeps a model from being quantized, or what it lost by that, and what to do."""

    model: Path = option(
        "a .keras file of a float or a quantized model, or the folder of a run", positional=True
    )
    data: str | None = option(
        "of a quantized model: a .npz with an array for each input, by its name, and 'labels', the "
        f"folder of a run, or one of {', '.join(_NAMES)}; default: a run's own",
        None,
    )
    float_model: Path | None = option(
        "the .keras file of the float model, to compare accuracies; default: a run's own", None
    )
    images: int = option("at most so many are read", 128)
    float_layers: tuple[str, ...] = option("of a float model: layers to leave in float", ())
    html: Path | None = option("a page of all of it", None)


def main(options: Options) -> None:
    """Prints what is found, and writes the page; exits with 1 where something is refused.

    Raises:
      ValueError, OSError: what is wrong with a file or flag, what was expected and found.
    """
    if options.html:
        check_output("--html", options.html, ".html")
    folder = options.model if options.model.is_dir() else None
    model = load_any_model(folder / "model.keras" if folder else options.model)
    if isinstance(model, QuantizedModel):
        _refuse(options, "quantized", "float_layers")
        found = diagnose(
            model, _data(options, folder, model), _float_model(options, folder), options.images
        )
    else:
        _refuse(options, "float", "data", "float_model")
        found = checkup(model, options.float_layers)
    print(found)
    if options.html:
        print(found.write_html(options.html))
    if not getattr(found, "whole", True):
        sys.exit(1)


def _refuse(options: Options, kind: str, *names: str) -> None:
    """Raises ValueError for a flag that says nothing of a model of this kind."""
    for name in names:
        if getattr(options, name):
            raise ValueError(f"--{name}: {options.model} is a {kind} model: leave the flag out.")


def _float_model(options: Options, folder: Path | None) -> keras.Model | None:
    path = options.float_model
    if path is None and folder and (folder / "float.keras").is_file():
        path = folder / "float.keras"
    return None if path is None else load_float_model(path, "give the float one.")


def _data(options: Options, folder: Path | None, model: QuantizedModel) -> Any:
    """What --data names, as `diagnose` takes it.

    Raises:
      ValueError, OSError: nothing of that name; says what was expected.
    """
    if options.data is None and folder is None:
        raise ValueError(
            f"--data: {options.model} is a quantized model, whose layers are measured on images: "
            f"expected a .npz of them, the folder of a run, or one of {', '.join(_NAMES)}."
        )
    name = options.data or str(folder)
    if name in _NAMES:
        (images, labels), _ = data_sets.load(name)
        return np.asarray(data_sets.normalize(images[: options.images])), labels[: options.images]
    path = Path(name)
    if path.is_dir():
        found = load_data(read_config(path, "--data"))
        return found.train if found.validation is None else found.validation
    return _arrays(path, model.network)


def _arrays(path: Path, network: keras.Model) -> Any:
    """Images, and labels where there are any, of a .npz."""
    names = [name for name, _ in named_inputs(network)]
    expected = f"a .npz with {' and '.join(map(repr, names))} and, if there are any, {_LABELS!r}"
    try:
        loaded: Any = np.load(path)
        arrays = dict(loaded) if hasattr(loaded, "files") else {names[0]: loaded}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"--data={path}: expected {expected}, found no arrays.") from error
    labels = arrays.pop(_LABELS, None)
    if len(names) == 1 and len(arrays) == 1:
        arrays = dict(zip(names, arrays.values(), strict=True))
    if set(arrays) != set(names):
        raise ValueError(f"--data={path}: expected {expected}, found {sorted(arrays)}.")
    images = [arrays[name] for name in names]
    by_name = isinstance(network.input, dict)
    counts = {len(array) for array in images} | ({len(labels)} if labels is not None else set())
    if len(counts) != 1:
        raise ValueError(f"--data={path}: expected as many of each, found {sorted(counts)}.")
    inputs = arrays if by_name else images[0] if len(images) == 1 else images
    return inputs, labels


parse_flags = functools.partial(parse, Options)
run: Callable[[], None] = functools.partial(run_main, main, parse_flags)  # of the command

if __name__ == "__main__":
    run()
