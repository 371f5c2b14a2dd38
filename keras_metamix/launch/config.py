"""The fields of an experiment's config: one class for each method, one for each section."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from keras_metamix.checks import one_of, require_number, require_whole, shown
from keras_metamix.launch.settings import (
    choice,
    config_dict,
    number,
    read,
    setting,
    switch,
    text,
    whole,
)

DISTRIBUTIONS = ("", "mirrored", "multi_worker", "tpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The images."""

    name: str = text("fashion_mnist_extract, fashion_mnist, imagenet2012 or imagenet2012_sample")
    dir: str = text("TFDS's data folder; empty: its default", "")
    augment: bool = switch("mirror and shift, or of ImageNet crop, what is trained on")
    validation: float = number(
        "held out of the training images: a share below 1, or a number of images; 0: none",
        default=0.1,
    )
    index_dir: str = text(
        "of ImageNet: where the positions of the records are kept; empty: beside them", ""
    )
    image_size: int = setting("of ImageNet: height and width", None, 224, "pixels")
    pixels: str = setting(
        "of ImageNet: what becomes of 0 to 255", None, "minus_one_to_one", "or 'standardized'"
    )
    randaugment: int = setting("of ImageNet: operations of RandAugment on each image", None, 0)
    magnitude: float = setting("of RandAugment: its strength", None, 0.5, "0 to 1")
    sample: tuple = setting(
        "training and test images that imagenet2012_sample is made of", None, (16, 16)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """The candidates; `SearchSpace` checks them."""

    activation_bits: tuple = setting("candidates of the layers' inputs", None, expected="2 to 8")
    weight_bits: Any = setting(
        "a bit-width, several to search, or 'same' as the activations'", None, expected="2 to 8"
    )
    edge_bits: int = setting("of the first and the last layer", None, expected="2 to 8")
    stream_bits: int | None = setting(
        "of tensors that no layer reads directly; None: float, and no file", None, expected="8"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Float:
    """Training of the float network."""

    epochs: int = whole("none: the weights as they are")
    learning_rate: float = number("where its cosine begins", above=True)
    weights: str = text("a .weights.h5 file of the network, loaded before its training", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """MetaMix's search for bit-widths under a budget."""

    target_bops: float | None = number("the budget in BOPs", above=True, optional=True)
    target_ratio: float | None = number(
        "without one: the budget as a share of what A4W4 costs", above=True, optional=True
    )
    latency_table: str = text(
        "a file of metamix-profile: the budget is in microseconds then; target_bops and cost are "
        "of searches without a table",
        "",
    )
    target_latency: float | None = number(
        "that budget; None: target_ratio decides", above=True, default=None, optional=True
    )
    meta_epochs: int = whole("of bit-meta")
    search_epochs: int = whole("of bit-search")
    cost: str = choice(
        "form of Eq. 4; the paper's is in 1e9 BOPs", ("relative", "paper"), "relative"
    )
    cost_strength: float | None = number("lambda of Eq. 3", optional=True)
    learning_rate: float | None = number(
        "of the architecture parameters; None: 1 / (steps of search)",
        above=True,
        default=None,
        optional=True,
    )

    def __post_init__(self) -> None:
        if self.target_latency is not None and not self.latency_table:
            raise ValueError(
                f"config.search.target_latency={self.target_latency!r}: expected latency_table "
                "beside it, found none."
            )
        target = "target_latency" if self.latency_table else "target_bops"
        if getattr(self, target) is None and self.target_ratio is None:
            raise ValueError(f"config.search: expected {target} or target_ratio, found neither.")


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
        named = isinstance(point, str) and point.isprintable() and bool(point.strip("."))
        if not named or "/" in point:  # files are named after it
            raise ValueError(f"{name}: expected names of files, found {shown(point)}.")
        try:
            require_number(f"{name}.{point}", share, 0, 1)
        except ValueError as error:
            raise ValueError(
                f"{name}.{point}: expected a share from 0 (the fewest bits) to 1 (the most), found "
                f"{shown(share)}."
            ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixer:
    """Bit-Mixer's stages and operating points."""

    batch_norm: str = setting(
        "which transitions have parameters", None, expected="feeding, following, switchable, shared"
    )
    stage_epochs: tuple = setting("of the three stages", _stages)
    in_place_distillation: float = number("weight of the highest bits' logits", 0, 1)
    operating_points: dict[str, float] = setting(
        "signatures of the file and their budgets, from 0, the fewest bits, to 1, the most", _points
    )
    cost: Any = setting("what the budgets are of", None, "bops", "'bops' or 'size'")
    latency_table: str = text("in its place, a file of metamix-profile: predicted microseconds", "")
    method: str = setting("see `choose_bits`", None, "solver", "'solver' or 'greedy'")
    images: int = whole("of the training data, that bit-widths are chosen on", 1, 1000)
    front: int = whole("budgets of the Pareto front", default=8)

    def __post_init__(self) -> None:
        if self.latency_table and self.cost != "bops":
            raise ValueError(
                "config.mixer.cost: expected no other cost beside "
                f"latency_table={self.latency_table!r}, found {shown(self.cost)}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Training of a quantized network; the optimizer is the float network's too."""

    batch_size: int = whole("images of a step, on all devices together", 1)
    learning_rate: float = number("where the cosine begins", above=True)
    weight_decay: float = number("of kernels alone")
    optimizer: str = text("any Keras optimizer's name", "adamw")
    clip_norm: float = number("of all gradients together; 0: none", default=10.0)
    label_smoothing: float = number("of the labels", 0, 1, default=0.0)
    validate_every: int = whole("epochs; the last one is always validated", 1, 1)
    synchronize: bool = switch(
        "under distribute: batch norm of all replicas' images together", True
    )
    optimize_graphs: bool = switch(
        "by TensorFlow, before they run; pays from some ten steps on", True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaMixTrain(Train):
    """Training by MetaMix."""

    epochs: int = whole("search included", 1)
    uniform: bool = switch("train a uniform A4W4 network beside, for as many epochs")
    selection_learning_rate: float | None = number(
        "a constant until weight training, where the cosine then begins; None: the cosine is over "
        "all epochs",
        above=True,
        default=None,
        optional=True,
    )
    ema: float = number(
        "momentum of the average of weights that is exported; 0: none", 0, 0.999999, default=0.0
    )
    teacher: str = text("a .keras file, 'float' (the float network itself), or empty: none", "")
    distillation: float = number("the teacher's share of the loss", 0, 1, above=True, default=0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When a training is written down, so that it can go on."""

    steps: int = whole("between two checkpoints; 0: by minutes alone", default=0)
    minutes: float = number("after which the next one is written; 0: by steps", default=5.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """The files, and how they are measured."""

    weight_container: str = setting("see `convert`", None, expected="fast, smallest, edgetpu")
    threads: int = whole("CPU threads of the latency", 1)
    runs: int = whole("timed inferences of each file", 1)
    test_images: int = whole("of ImageNet: how many the files are run on", 1, 1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What the experiments of both methods have."""

    title: str = text("of the report")
    seed: int = whole("of weights, order and augmentation", most=2**32 - 1)
    method: str = text("metamix or bitmixer")
    distribute: str = choice("over devices, see docs/long_runs.md", DISTRIBUTIONS, "")
    data: Data
    model: dict[str, Any] = setting(
        "name: of keras_metamix.zoo; besides, any argument of that function", None
    )
    space: Space
    float: Float
    train: Train
    export: Export
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)

    def to_dict(self) -> dict[str, Any]:
        """All values by name."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaMix(Experiment):
    """One assignment, searched under a budget."""

    method: str = text("metamix or bitmixer", "metamix")
    search: Search
    train: MetaMixTrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitMixer(Experiment):
    """One network whose bit-widths change at run time."""

    method: str = text("metamix or bitmixer", "bitmixer")
    mixer: Mixer
    train: Train


SCHEMAS: dict[str, type[MetaMix] | type[BitMixer]] = {"metamix": MetaMix, "bitmixer": BitMixer}


def new_config(method: str) -> ConfigDict:
    """The config of an experiment, each field at its default: what a config file changes.

    Raises:
      ValueError: there is no such method.
    """
    return config_dict(SCHEMAS[one_of("method", method, [*SCHEMAS])])


def complete(config: ConfigDict) -> MetaMix | BitMixer:
    """The experiment that a config describes.

    Raises:
      TypeError: no config.
      ValueError: a field is missing, is none of an experiment's, or has a value out of its range;
        names it.
    """
    # Of a file that could not be loaded the first part raises why.
    if getattr(config, "to_dict", None) is None or not isinstance(config, ConfigDict):
        raise TypeError(f"config: expected the ConfigDict of get_config, found {shown(config)}.")
    given = config.to_dict()
    method = one_of("config.method", given.get("method", "metamix"), [*SCHEMAS])
    experiment = read(SCHEMAS[method], given, "config")
    if not isinstance(experiment.model, Mapping):
        raise ValueError(
            f"config.model: expected a section of fields, found {shown(experiment.model)}."
        )
    if "name" not in experiment.model:
        raise ValueError("config.model.name is missing.")
    return experiment
