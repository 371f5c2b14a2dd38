"""The schema of a config: each field is a flag, and its reference page is current."""

import os
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from keras_metamix.launch.config import SCHEMAS, complete, new_config
from keras_metamix.schema import reference

TOP = Path(__file__).parents[2]
PAGE = TOP / "docs" / "config.md"


@pytest.fixture
def parsed(monkeypatch):
    """parsed(name, *flags) -> the experiment of a config of the repository."""

    def parse(name, *arguments):
        command = ["train", f"--config={TOP / 'configs' / name}.py", *arguments]
        monkeypatch.setattr("sys.argv", command)
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        values(command)
        return complete(values.config)

    return parse


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [
        ("quickstart", "seed=7", 7),
        ("quickstart", "distribute=mirrored", "mirrored"),
        ("quickstart", "data.validation=500", 500.0),
        ("quickstart", "data.validation=0", 0.0),
        ("quickstart", "data.dir=/tmp", "/tmp"),
        ("quickstart", "data.image_size=96", 96),
        ("quickstart", "model.width=4", 4),
        ("quickstart", "space.activation_bits=8,4", (8, 4)),
        ("quickstart", "space.weight_bits=(8, 4)", (8, 4)),
        ("quickstart", "space.weight_bits=3", 3),
        ("quickstart", "space.weight_bits=same", "same"),
        ("bitmixer_quickstart", "space.weight_bits=4", 4),
        ("quickstart", "float.weights=a.weights.h5", "a.weights.h5"),
        ("quickstart", "search.target_bops=3.8e7", 3.8e7),
        ("quickstart", "search.learning_rate=1e-3", 1e-3),
        ("quickstart", "train.selection_learning_rate=1e-3", 1e-3),
        ("quickstart", "train.ema=0.9", 0.9),
        ("quickstart", "train.uniform=false", False),
        ("quickstart", "export.test_images=5", 5),
        ("bitmixer_quickstart", "mixer.budget=size", "size"),
        ("quickstart", "search.target_size=64 kB", "64 kB"),
        ("quickstart", "search.target_size=64000", 64000),
        ("quickstart", "search.budget=bops,size", "bops,size"),
        ("quickstart", "space.edge_weight_bits=(8,4)", (8, 4)),
        ("quickstart", "space.edge_weight_bits=4", 4),
        ("bitmixer_quickstart", "mixer.stage_epochs=1,2,3", (1, 2, 3)),
        ("bitmixer_quickstart", "mixer.operating_points.eco=0.1", 0.1),
        ("bitmixer_quickstart", "checkpoint.steps=5", 5),
    ],
)
def test_a_field_is_a_flag_whether_the_file_names_it_or_not(name, flag, value, parsed):
    found = parsed(name, f"--config.{flag}").to_dict()
    for part in flag.partition("=")[0].split("."):
        found = found[part]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("method", SCHEMAS)
def test_defaults_are_in_their_range(method):
    """What a new config lacks are the fields without a default, and no more."""
    config = new_config(method)
    config.model.name = "small_cnn"
    required = {name for name, default, *_ in reference(SCHEMAS[method], "config") if not default}
    with config.ignore_type():
        for name, value in _GIVEN.items():
            if f"config.{name}" in required:
                config.update_from_flattened_dict({name: value})
                required.remove(f"config.{name}")
    assert required <= {"config.model"}
    assert complete(config).method == method


_GIVEN = {
    "title": "t", "seed": 0, "data.name": "fashion_mnist_extract", "data.augment": True,
    "space.activation_bits": (8, 4), "space.weight_bits": 4, "space.edge_bits": 8,
    "space.stream_bits": 8, "float.epochs": 1, "float.learning_rate": 0.1,
    "search.target_bops": None, "search.target_ratio": 0.9, "search.meta_epochs": 1,
    "search.search_epochs": 1, "search.cost_strength": None, "train.batch_size": 1,
    "train.learning_rate": 0.1, "train.weight_decay": 0.0, "train.epochs": 3,
    "train.uniform": False, "mixer.batch_norm": "feeding", "mixer.stage_epochs": (1, 1, 1),
    "mixer.in_place_distillation": 0.0, "mixer.operating_points": {"full": 1.0},
    "export.threads": 1, "export.runs": 1,
}  # fmt: skip


def test_what_belongs_to_one_method_is_no_field_of_the_other(parsed):
    with pytest.raises(AttributeError, match="ema"):
        parsed("bitmixer_quickstart", "--config.train.ema=0.9")


def reference_page():
    """All fields, as docs/config.md has them."""
    text = [
        "# Fields of a config",
        "A config file changes what `keras_metamix.launch.config.new_config` gives. Each field is "
        "a flag of `metamix-train`,\nsuch as `--config.train.epochs=20`. One without a default has "
        "to be given; `config.model` takes any argument of\nthe network's function beside its "
        "`name`.",
    ]
    metamix, bitmixer = (reference(schema, "config") for schema in SCHEMAS.values())
    sections = {
        "Both methods": [row for row in metamix if row in bitmixer],
        "MetaMix": [row for row in metamix if row not in bitmixer],
        "Bit-Mixer": [row for row in bitmixer if row not in metamix],
    }
    for title, rows in sections.items():
        lines = ["| field | default | range | meaning |", "| --- | --- | --- | --- |"]
        for name, default, expected, meaning in rows:
            code = f"`{default}`" if default else ""
            lines.append(f"| `{name}` | {code} | {expected} | {meaning} |")
        text += [f"## {title}", "\n".join(lines)]
    return "\n\n".join(text) + "\n"


def test_the_reference_page_is_current():
    page = reference_page()
    if "UPDATE_GOLDEN" in os.environ:
        PAGE.write_text(page)
    assert PAGE.read_text() == page
