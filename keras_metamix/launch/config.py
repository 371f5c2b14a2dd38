"""The fields of an experiment's config: those that it has to state, and defaults of the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from keras_metamix.checks import one_of, shown
from keras_metamix.launch.config_values import check_values

# A config has to state these; configs/quickstart.py and configs/bitmixer_quickstart.py say what
# they are. "model" also takes every other argument of the zoo's function.
_COMMON = {
    "data": ("name", "dir", "augment"),
    "model": ("name",),
    "space": ("activation_bits", "weight_bits", "edge_bits", "stream_bits"),
    "float": ("epochs", "learning_rate"),
    "export": ("weight_container", "threads", "runs"),
}
REQUIRED = {
    "metamix": _COMMON
    | {
        "search": ("target_bops", "target_ratio", "meta_epochs", "search_epochs", "cost_strength"),
        "train": ("batch_size", "epochs", "learning_rate", "weight_decay", "uniform"),
    },
    "bitmixer": _COMMON
    | {
        "mixer": ("batch_norm", "stage_epochs", "in_place_distillation", "operating_points"),
        "train": ("batch_size", "learning_rate", "weight_decay"),
    },
}
OPTIONAL = {
    "data": {
        # Held out of the training images: a share below 1, or a number of images; 0: none.
        "validation": 0.1,
        # Of ImageNet only.
        "index_dir": "",  # where the positions of the records are kept; "": beside the records
        "image_size": 224,  # height and width, pixels
        "pixels": "minus_one_to_one",  # or "standardized", see data.imagenet.Form
        "randaugment": 0,  # operations of RandAugment on each image
        "magnitude": 0.5,  # their strength, 0 to 1
        "sample": (16, 16),  # images that "imagenet2012_sample" is made of
    },
    "float": {
        "weights": "",  # a .weights.h5 file of the float network, loaded before its training
    },
    "search": {
        "cost": "relative",  # or "paper": Eq. 4 in 1e9 BOPs, as cost_strength then is
        # A file of metamix-profile; the budget is in microseconds then, and Eq. 4 "relative":
        # target_bops and cost are of searches without a table.
        "latency_table": "",
        "target_latency": None,  # None: target_ratio, of what A4W4 takes
        "learning_rate": None,  # of the architecture parameters; None: 1 / (steps of search)
    },
    "mixer": {
        "cost": "bops",  # or "size": what the operating points' budgets are of
        "latency_table": "",  # in its place, a file of metamix-profile: predicted microseconds
        "method": "solver",  # or "greedy", see `choose_bits`
        "images": 1000,  # of the training data, that bit-widths are chosen on
        "front": 8,  # budgets of the Pareto front; 0: none
    },
    "checkpoint": {
        "steps": 0,  # between two checkpoints; 0: by minutes alone
        "minutes": 5.0,  # after which the next one is written; 0: by steps alone
    },
    "train": {
        "validate_every": 1,  # epochs; the last one is always validated
        "optimize_graphs": True,  # by TensorFlow, before they run; pays from some ten steps on
        "synchronize": True,  # under config.distribute: batch norm of all replicas' images together
        "optimizer": "adamw",  # any Keras optimizer's name; float training has the same
        "selection_learning_rate": None,  # a constant until weight training, where the cosine
        # then begins; None: the cosine is over all epochs
        "clip_norm": 10.0,  # of all gradients together
        "label_smoothing": 0.0,
        "ema": 0.0,  # momentum of the average of weights that is exported; 0: none
        "teacher": "",  # a .keras file, "float" (the float network itself), or "": none
        "distillation": 0.5,  # the teacher's share of the loss
    },
    "export": {
        "test_images": 1000,  # of ImageNet: how many the files are run on
    },
}


def complete(config: ConfigDict) -> ConfigDict:
    """A copy of a config with the defaults filled in.

    Raises:
      TypeError: no config.
      ValueError: a field is missing, is none of an experiment's, or has a value out of its range;
        names it.
    """
    # Of a file that could not be loaded the first part raises why.
    if getattr(config, "to_dict", None) is None or not isinstance(config, ConfigDict):
        raise TypeError(f"config: expected the ConfigDict of get_config, found {shown(config)}.")
    given = {"method": "metamix", "distribute": "", "checkpoint": {}} | config.to_dict()
    one_of("config.method", given["method"], [*REQUIRED])
    sections = REQUIRED[given["method"]]
    top = ("title", "seed", "method", "distribute", "checkpoint", *sections)
    _check("config", given, top)
    for section, required in {**sections, "checkpoint": ()}.items():
        optional = None if section == "model" else OPTIONAL.get(section, ())
        _check(f"config.{section}", given[section], required, optional)
    check_values(given)
    return ConfigDict({name: _filled(name, value) for name, value in given.items()})


def _filled(name: str, value: Any) -> Any:
    return OPTIONAL[name] | value if name in OPTIONAL else value


def _check(
    where: str, fields: dict[str, Any], required: Iterable[str], optional: Iterable[str] | None = ()
) -> None:
    """Of `optional` None, any other field may be there."""
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected a section of fields, found {shown(fields)}.")
    for name in required:
        if name not in fields:
            raise ValueError(f"{where}.{name} is missing.")
    known = {*required, *(fields if optional is None else optional)}
    for name in fields:
        if name not in known:
            raise ValueError(f"{where}.{name}: no such field; expected some of {sorted(known)}.")
