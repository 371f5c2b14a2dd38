"""The fields of an experiment's config: one class for each method, one for each section."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from keras_metamix.bitmixer.operating_points import Method
from keras_metamix.checks import one_of, require_number, shown
from keras_metamix.graph.transitions import Reading
from keras_metamix.metamix.loss import CostForm
from keras_metamix.schema import REQUIRED, default_of, fields_of, read, setting, without_none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The images."""

    name: str = setting("fashion_mnist_extract, fashion_mnist, imagenet2012, imagenet2012_sample")
    dir: str = setting("TFDS's data folder; empty: its default", "")
    augment: bool = setting("mirror and shift, or of ImageNet crop, what is trained on")
    validation: float = setting(
        "held out of the training images: a share below 1, or a number of images; 0: none", 0.1
    )
    index_dir: str = setting(
        "of ImageNet: where the positions of the records are kept; empty: beside them", ""
    )
    image_size: int = setting("of ImageNet: height and width, pixels", 224, least=1)
    pixels: Literal["minus_one_to_one", "standardized"] = setting(
        "of ImageNet: what becomes of 0 to 255", "minus_one_to_one"
    )
    randaugment: int = setting("of ImageNet: operations of RandAugment on each image", 0)
    magnitude: float = setting("of RandAugment: its strength", 0.5, most=1)
    sample: tuple[int, int] = setting("of imagenet2012_sample: training and test images", (16, 16))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """The candidates; `SearchSpace` checks them."""

    activation_bits: tuple = setting("candidates of the layers' inputs, of 8 to 2")
    weight_bits: Any = setting("a bit-width, several to search, or 'same' as the activations'")
    edge_bits: Any = setting("of the first and the last layer")
    stream_bits: int | None = setting(
        "8: of tensors that no layer reads directly; None: float, and no file"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Float:
    """Training of the float network."""

    epochs: int = setting("0: the weights as they are")
    learning_rate: float = setting("where its cosine begins", above=True)
    weights: str = setting("a .weights.h5 file of the network, loaded before its training", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """MetaMix's search for bit-widths under a budget."""

    target_bops: float | None = setting("the budget in BOPs", above=True)
    target_ratio: float | None = setting(
        "without one: the budget as a share of what A4W4 costs", above=True
    )
    latency_table: str = setting(
        "a file of metamix-profile: the budget is in microseconds then; target_bops and cost are "
        "of searches without a table",
        "",
    )
    target_latency: float | None = setting("that budget; None: target_ratio", None, above=True)
    meta_epochs: int = setting("of bit-meta")
    search_epochs: int = setting("of bit-search")
    cost: CostForm = setting("form of Eq. 4; the paper's is in 1e9 BOPs", "relative")
    cost_strength: float | None = setting("lambda of Eq. 3")
    learning_rate: float | None = setting(
        "of the architecture parameters; None: 1 / (steps of search)", None, above=True
    )

    def __post_init__(self) -> None:
        if self.target_latency is not None and not self.latency_table:
            found = f"target_latency={self.target_latency!r}"
            raise ValueError(f"{found}: expected latency_table beside it, found none.")
        target = "target_latency" if self.latency_table else "target_bops"
        if getattr(self, target) is None and self.target_ratio is None:
            raise ValueError(f"{target}: expected it, or target_ratio; found neither.")


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

    batch_norm: Reading = setting("which transitions have parameters, see docs/bitmixer.md")
    stage_epochs: tuple[int, int, int] = setting("of the three stages")
    in_place_distillation: float = setting("weight of the highest bits' logits", most=1)
    operating_points: dict[str, float] = setting(
        "signatures of the file and their budgets, from 0, the fewest bits, to 1, the most",
        check=_points,
    )
    cost: Literal["bops", "size"] = setting("what the budgets are of", "bops")
    latency_table: str = setting(
        "in its place, a file of metamix-profile: predicted microseconds", ""
    )
    method: Method = setting("see `choose_bits`", "solver")
    images: int = setting("of the training data, that bit-widths are chosen on", 1000, least=1)
    front: int = setting("budgets of the Pareto front", 8)

    def __post_init__(self) -> None:
        if not sum(self.stage_epochs):
            raise ValueError("stage_epochs: expected at least one epoch, found none.")
        if self.latency_table and self.cost != "bops":
            table = f"latency_table={self.latency_table!r}"
            raise ValueError(f"cost: expected no other beside {table}, found {shown(self.cost)}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Training of a quantized network; the optimizer is the float network's too."""

    batch_size: int = setting("images of a step, on all devices together", least=1)
    learning_rate: float = setting("where the cosine begins", above=True)
    weight_decay: float = setting("of kernels alone")
    optimizer: str = setting("any Keras optimizer's name", "adamw")
    clip_norm: float = setting("of all gradients together; 0: none", 10.0)
    label_smoothing: float = setting("of the labels", 0.0, most=1)
    validate_every: int = setting("epochs; the last one is always validated", 1, least=1)
    synchronize: bool = setting("batch norm over all replicas' images, under distribute", True)
    optimize_graphs: bool = setting(
        "by TensorFlow, before they run; pays from some ten steps on", True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaMixTrain(Train):
    """Training by MetaMix."""

    epochs: int = setting("search included", least=1)
    uniform: bool = setting("train a uniform A4W4 network beside, for as many epochs")
    selection_learning_rate: float | None = setting(
        "a constant until weight training, where the cosine then begins; None: the cosine is over "
        "all epochs",
        None,
        above=True,
    )
    ema: float = setting(
        "momentum of the average of weights that is exported; 0: none", 0.0, most=0.999999
    )
    teacher: str = setting("a .keras file, 'float' (the float network itself), or empty: none", "")
    distillation: float = setting("the teacher's share of the loss", 0.5, most=1, above=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When a training is written down, so that it can go on."""

    steps: int = setting("between two checkpoints; 0: by minutes alone", 0)
    minutes: float = setting("after which the next one is written; 0: by steps", 5.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """The files, and how they are measured."""

    weight_container: Literal["fast", "smallest", "int8"] = setting("see `convert`")
    threads: int = setting("CPU threads of the latency", least=1)
    runs: int = setting("timed inferences of each file", least=1)
    test_images: int = setting("of ImageNet: how many the files are run on", 1000, least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What the experiments of both methods have."""

    title: str = setting("of the report")
    seed: int = setting("of weights, order and augmentation", most=2**32 - 1)
    method: str = setting("metamix or bitmixer")
    distribute: Literal["", "mirrored", "multi_worker", "tpu"] = setting(
        "over devices, see docs/long_runs.md", ""
    )
    data: Data
    model: dict[str, Any] = setting("its name in keras_metamix.zoo, and arguments of it")
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

    method: str = setting("metamix or bitmixer", "metamix")
    search: Search
    train: MetaMixTrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitMixer(Experiment):
    """One network whose bit-widths change at run time."""

    method: str = setting("metamix or bitmixer", "bitmixer")
    mixer: Mixer


SCHEMAS: dict[str, type[MetaMix] | type[BitMixer]] = {"metamix": MetaMix, "bitmixer": BitMixer}


def new_config(method: str) -> ConfigDict:
    """The config of an experiment, each field at its default: what a config file changes.

    Raises:
      ValueError: there is no such method.
    """
    return _config_dict(SCHEMAS[one_of("method", method, [*SCHEMAS])])


def _config_dict(schema: type) -> ConfigDict:
    """Every field at its default, None where it has none."""
    config = ConfigDict()
    for field, kind in fields_of(schema):
        if dataclasses.is_dataclass(kind):
            config[field.name] = _config_dict(typing.cast(type, kind))
            continue
        default = default_of(field)
        value = None if default is REQUIRED else default
        if typing.get_origin(kind) is dict:
            value = ConfigDict(value or {})
        elif value is None or kind is Any or without_none(kind) is not kind:
            config[field.name] = placeholder(_flag_type(kind))
        config[field.name] = value
    return config


def _flag_type(kind: Any) -> type:
    """The type that a flag's text becomes: `object` where there are several."""
    bare = object if kind is Any else without_none(kind)
    return str if typing.get_origin(bare) is typing.Literal else typing.get_origin(bare) or bare


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
    if "name" not in experiment.model:
        raise ValueError("config.model.name is missing.")
    return experiment
