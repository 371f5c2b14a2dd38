"""The values that a config's fields may have, checked before hours of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_metamix.checks import one_of, require_number, require_whole, shown

Check = Callable[[str, Any], None]


def _whole(least: int) -> Check:
    return lambda name, value: require_whole(name, value, least)


def _number(low: float, high: float = float("inf"), above: bool = False) -> Check:
    return lambda name, value: require_number(name, value, low, high, above)


def _or_none(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, found {shown(value)}.")


def _switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected True or False, found {shown(value)}.")


def _stages(name: str, value: Any) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
        raise ValueError(f"{name}: expected three numbers of epochs, found {shown(value)}.")
    for epochs in value:
        require_whole(name, epochs)
    if not sum(value):
        raise ValueError(f"{name}: expected at least one epoch, found {shown(value)}.")


def _points(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{name}: expected at least one share by name, found {shown(value)}.")
    for point, share in value.items():
        # Files are named after it.
        if (
            not isinstance(point, str)
            or not point.isprintable()
            or not point.strip(".")
            or ("/" in point)
        ):
            raise ValueError(f"{name}: expected names of files, found {shown(point)}.")
        try:
            require_number(f"{name}.{point}", share, 0, 1)
        except ValueError as error:
            raise ValueError(
                f"{name}.{point}: expected a share from 0 (the fewest bits) to 1 (the most), found "
                f"{shown(share)}."
            ) from error


DISTRIBUTIONS = ("", "mirrored", "multi_worker", "tpu")
_RATE = _number(0, above=True)
_SHARE = _number(0, 1)
_VALUES: dict[str, dict[str, Check]] = {
    "data": {
        "name": _text,
        "dir": _text,
        "augment": _switch,
        "index_dir": _text,
        "validation": _number(0),
    },
    "float": {"epochs": _whole(0), "learning_rate": _RATE, "weights": _text},
    "search": {
        "target_bops": _or_none(_RATE),
        "target_ratio": _or_none(_RATE),
        "latency_table": _text,
        "target_latency": _or_none(_RATE),
        "meta_epochs": _whole(0),
        "search_epochs": _whole(0),
        "cost": lambda name, value: one_of(name, value, ("relative", "paper")),
        "cost_strength": _or_none(_number(0)),
        "learning_rate": _or_none(_RATE),
    },
    "mixer": {
        "stage_epochs": _stages,
        "in_place_distillation": _SHARE,
        "operating_points": _points,
        "latency_table": _text,
        "images": _whole(1),
        "front": _whole(0),
    },
    "train": {
        "batch_size": _whole(1),
        "epochs": _whole(1),
        "learning_rate": _RATE,
        "weight_decay": _number(0),
        "uniform": _switch,
        "optimizer": _text,
        "selection_learning_rate": _or_none(_RATE),
        "clip_norm": _number(0),
        "label_smoothing": _SHARE,
        "ema": _number(0, 0.999999),
        "teacher": _text,
        "distillation": _number(0, 1, above=True),
        "validate_every": _whole(1),
        "synchronize": _switch,
        "optimize_graphs": _switch,
    },
    "checkpoint": {"steps": _whole(0), "minutes": _number(0)},
    "export": {"threads": _whole(1), "runs": _whole(1), "test_images": _whole(1)},
}


def check_values(config: Mapping[str, Any]) -> None:
    """Checks the fields that a config gives.

    Raises:
      ValueError: a value of another type or outside its range; names the field.
    """
    _text("config.title", config["title"])
    require_number("config.seed", config["seed"], 0, 2**32 - 1)
    require_whole("config.seed", config["seed"])
    one_of("config.distribute", config["distribute"], DISTRIBUTIONS)
    for section, checks in _VALUES.items():
        for field, value in config.get(section, {}).items():
            if field in checks:
                checks[field](f"config.{section}.{field}", value)
    if "search" in config:
        _check_budget(config["search"])
    if "mixer" in config:
        _check_price(config["mixer"])


def _check_budget(search: Mapping[str, Any]) -> None:
    table, latency = search.get("latency_table"), search.get("target_latency")
    if latency is not None and not table:
        raise ValueError(
            f"config.search.target_latency={latency!r}: expected latency_table beside it, found "
            "none."
        )
    target = "target_latency" if table else "target_bops"
    if search.get(target) is None and search["target_ratio"] is None:
        raise ValueError(f"config.search: expected {target} or target_ratio, found neither.")


def _check_price(mixer: Mapping[str, Any]) -> None:
    table, cost = mixer.get("latency_table"), mixer.get("cost", "bops")
    if table and cost != "bops":
        raise ValueError(
            f"config.mixer.cost: expected no other cost beside latency_table={table!r}, found "
            f"{shown(cost)}."
        )
