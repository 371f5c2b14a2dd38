"""The fields of an experiment's config: one class for each method, one for each section."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from keras_metamix.bitmixer.operating_points import Method
from keras_metamix.checks import naming, one_of, require_number, shown
from keras_metamix.cost import Size
from keras_metamix.graph.transitions import TransitionRule
from keras_metamix.metamix.loss import CostForm
from keras_metamix.metamix.model import Meta, MetaWeights
from keras_metamix.schema import REQUIRED, default_of, fields_of, read, setting, without_none
from metamix_tflite.devices.ethosu import ACCELERATORS
from metamix_tflite.targets import ContainerName, Target, TargetName, target_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The images."""

    name: str = setting(
        "fashion_mnist_extract, fashion_mnist, fashion_mnist_scenes, imagenet2012, "
        "imagenet2012_sample"
    )
    dir: str = setting("TFDS's data folder; empty: its default", "")
    augment: bool = setting(
        "mirror and shift, or of ImageNet crop, what is trained on; masks as their images"
    )
    validation: float = setting(
        "held out of the training images: a share below 1, or a number of images; 0: none", 0.1
    )
    index_dir: str = setting(
        "of ImageNet: where the positions of the records are kept; empty: beside them", ""
    )
    image_size: int | None = setting(
        "height and width, pixels; None: 224, of Fashion-MNIST its own 28", None, least=1
    )
    pixels: Literal["minus_one_to_one", "standardized"] = setting(
        "of ImageNet: what becomes of 0 to 255", "minus_one_to_one"
    )
    randaugment: int = setting("of ImageNet: operations of RandAugment on each image", 0)
    magnitude: float = setting("of RandAugment: its strength", 0.5, most=1)
    sample: tuple[int, int] = setting(
        "of imagenet2012_sample and scenes: training and test images", (16, 16), least=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """The candidates; `SearchSpace` checks them."""

    activation_bits: tuple[Any, ...] = setting("candidates of the layers' inputs, of 8 to 2")
    weight_bits: Any = setting("a bit-width, several to search, or 'same' as the activations'")
    edge_bits: Any = setting("of the first and the last layer")
    edge_weight_bits: Any = setting("of their weights, or several to search; None: edge_bits", None)
    stream_bits: int | None = setting(
        "8: of tensors that no layer reads directly; None: float, and no file"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Float:
    """Training of the float network."""

    epochs: int = setting("0: the weights as they are")
    learning_rate: float = setting("where its cosine begins", above=True)
    weights: str = setting("a .weights.h5 file of the network, loaded before its training", "")


KINDS = ("bops", "size", "latency")  # of budgets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budgeted:
    """What bit-widths may cost, in a section of either method."""

    budget: str = setting(
        "what it is of: bops, size, latency, or several, such as size,latency, all of which are "
        "met; empty: latency with a latency_table, size with a target_size, else bops",
        "",
    )
    latency_table: str = setting(
        "of a budget of latency: a file of metamix-profile, microseconds", ""
    )

    @property
    def kinds(self) -> list[str]:
        """The kinds of the budget, of KINDS."""
        if self.budget:
            return self.budget.split(",")
        priced = self.latency_table or getattr(self, "accelerator", "")
        given = {"size": getattr(self, "target_size", None), "latency": priced}
        return [kind for kind, found in given.items() if found] or ["bops"]

    def __post_init__(self) -> None:
        for number, kind in enumerate(self.kinds):
            if kind not in KINDS or kind in self.kinds[:number]:
                raise ValueError(
                    f"budget: expected some of {', '.join(KINDS)}, with a comma between, each "
                    f"once, found {shown(self.budget)}."
                )
        if self.latency_table and "latency" not in self.kinds:
            table = f"latency_table={self.latency_table!r}"
            raise ValueError(
                f"budget: expected latency in it beside {table}, found {shown(self.budget)}."
            )
        if "latency" in self.kinds and not (self.latency_table or getattr(self, "accelerator", "")):
            raise ValueError(
                "latency_table: expected the file of metamix-profile that budget=latency is of, "
                "found none."
            )


def _bytes(name: str, value: Any) -> None:
    if value is not None:
        with naming(name):
            Size(value)


def _accelerator(name: str, value: Any) -> None:
    one_of(name, value, ("", *ACCELERATORS))


def _multiples(name: str, value: Any) -> None:
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"{name}: expected several numbers, as in (0.9, 0.8), found {shown(value)}."
        )
    for number, multiple in enumerate(value):
        require_number(f"{name}[{number}]", multiple, 0, above=True)
        if multiple in value[:number]:
            raise ValueError(f"{name}: expected each once, found {shown(value)}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(Budgeted):
    """MetaMix's search for bit-widths under a budget."""

    accelerator: str = setting(
        "of a budget of latency, in the place of a latency_table: an Ethos-U NPU, such as "
        "ethos-u55-256, for which Vela prices the layers of the trained float network",
        "",
        check=_accelerator,
    )
    target_bops: float | None = setting("a budget of BOPs", above=True)
    target_size: Any = setting(
        "a budget of size: bytes of the file, or a text such as '64 kB'", None, check=_bytes
    )
    target_latency: float | None = setting("a budget of latency, microseconds", None, above=True)
    target_ratio: float | None = setting(
        "of a budget that has no target: the share of what A4W4 costs; where activations have one "
        "bit-width, of that and W4",
        above=True,
    )
    meta_epochs: int = setting("of bit-meta")
    search_epochs: int = setting("of bit-search")
    meta: Meta = setting("what a candidate sees: the whole batch, or split: a part", "whole")
    budgets: tuple[Any, ...] = setting(
        "further budgets of the same search, as multiples of the first, such as (0.9, 0.8): a file "
        "and a point of the Pareto picture each",
        (),
        check=_multiples,
    )
    point_epochs: int = setting(
        "of weight training of each of them, from the dearest to the cheapest, beginning with the "
        "weights of the one before; 0: none",
        0,
    )
    meta_weights: MetaWeights = setting(
        "searched weights in bit-meta: quantized at their candidates, or float, as in Table 1",
        "quantized",
    )
    cost: CostForm = setting(
        "form of Eq. 4; the paper's is of BOPs, in 1e9: other budgets have the relative form",
        "relative",
    )
    cost_strength: float | None = setting(
        "lambda of Eq. 3 in that form; None, and of other budgets than cost is of: 8"
    )
    learning_rate: float | None = setting(
        "of the architecture parameters; None: 1 / (steps of search)", None, above=True
    )

    def __post_init__(self) -> None:
        if self.latency_table and self.accelerator:
            raise ValueError(
                f"accelerator: expected no latency_table beside {self.accelerator!r}, found "
                f"{self.latency_table!r}."
            )
        if self.target_latency is not None and not (self.latency_table or self.accelerator):
            found = f"target_latency={self.target_latency!r}"
            raise ValueError(
                f"{found}: expected latency_table or accelerator beside it, found neither."
            )
        super().__post_init__()
        if self.accelerator and "latency" not in self.kinds:
            raise ValueError(
                f"budget: expected latency in it beside accelerator={self.accelerator!r}, found "
                f"{shown(self.budget)}."
            )
        if self.target_size is not None and "size" not in self.kinds:
            found = f"target_size={self.target_size!r}"
            raise ValueError(f"budget: expected size in it beside {found}, found {self.budget!r}.")
        for kind in self.kinds:
            if self.field_of(kind) == "target_ratio" and self.target_ratio is None:
                raise ValueError(f"target_{kind}: expected it, or target_ratio; found neither.")

    def field_of(self, kind: str) -> str:
        """The field that a kind of budget is given by."""
        target = f"target_{kind}"
        return "target_ratio" if getattr(self, target) is None else target

    @property
    def cost_form(self) -> CostForm:
        """Of the budget's kinds: the paper's is of BOPs alone."""
        return self.cost if self.kinds == ["bops"] else "relative"

    @property
    def strength(self) -> float | None:
        """The lambda of `cost_form`; None: its default."""
        return self.cost_strength if self.cost_form == self.cost else None


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
class Mixer(Budgeted):
    """Bit-Mixer's stages and operating points."""

    batch_norm: TransitionRule = setting("which transitions have parameters, see docs/bitmixer.md")
    stage_epochs: tuple[int, int, int] = setting("of the three stages")
    in_place_distillation: float = setting("weight of the highest bits' logits", most=1)
    operating_points: dict[str, float] = setting(
        "signatures of the file and their budgets, from 0, the fewest bits, to 1, the most",
        check=_points,
    )
    method: Method = setting("see `choose_bits`", "solver")
    images: int = setting("of the training data, that bit-widths are chosen on", 1000, least=1)
    front: int = setting("budgets of the Pareto front", 8)

    def __post_init__(self) -> None:
        if not sum(self.stage_epochs):
            raise ValueError("stage_epochs: expected at least one epoch, found none.")
        super().__post_init__()


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

    target: TargetName = setting("where the files run: see `convert`", "cpu")
    weight_container: ContainerName | None = setting("another than the target's", None)
    threads: int = setting("CPU threads of the latency", least=1)
    runs: int = setting("timed inferences of each file", least=1)
    test_images: int = setting("of ImageNet: how many the files are run on", 1000, least=1)
    stock: bool = setting(
        "beside ours, the 8-bit file that TensorFlow's converter makes of the float network", False
    )
    accelerator: str = setting(
        "an Ethos-U NPU, such as ethos-u55-256, whose cycles its compiler estimates where it is "
        "installed",
        "",
        check=_accelerator,
    )

    def __post_init__(self) -> None:
        _ = self.file_target  # says what is wrong with it

    @property
    def file_target(self) -> Target:
        """What the files are written for.

        Raises:
          ValueError: a container that the target does not take.
        """
        return target_of(self.target, self.weight_container)

    @property
    def convert_options(self) -> dict[str, Any]:
        """The arguments of `convert`."""
        return {"target": self.target, "weight_container": self.weight_container}


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
