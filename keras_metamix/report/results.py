"""What a run found, as its `metrics.json` holds it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, Self

from keras_metamix.report.analysis import Analysis
from keras_metamix.report.pictures import decoded
from keras_metamix.schema import read, setting

METAMIX = "MetaMix"  # the row of its network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """A file's outputs against those of the model that it was made of."""

    differing: int
    outputs: int
    max_lsb: float
    top1_agreement: float
    delegated: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A file, or an operating point of one, measured by running it.

    Attributes:
      name, file: in the table, and in the run's folder.
      scores: over the test images, which nothing else was measured on, by metric.
      bops: of one image, Eq. 6; None where it is not known.
      average_bits: of activations and weights of the layers that may be searched, by the number
        of values, as in the paper's tables.
      latency_us, latency_spread_us: median, 10th and 90th percentile, microseconds.
      parity: None of a float file, and of another converter's.
      npu_cycles: of an inference on the run's NPU, as its compiler estimates; None where it was
        not asked, or does not take the file.
    """

    name: str
    file: str
    scores: dict[str, float]
    bops: float | None
    average_bits: tuple[float, float]
    file_bytes: int = setting(least=1)
    latency_us: float = setting(above=True)
    latency_spread_us: tuple[float, float]
    threads: int
    parity: Parity | None
    npu_cycles: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A MAC layer, its bits read back from the file."""

    name: str
    kind: str
    macs: int
    bops: int
    activation_bits: int
    weight_bits: int
    weights: int
    container: str
    searched: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epoch:
    """An epoch of training.

    Attributes:
      epoch: from 0 on.
      phase: of the method.
      loss, score: of the training images, while the weights moved; the run's first metric.
      validation_loss, validation_score: of the images held out, at its end; None where none
        are, or it was not validated.
      seconds: that it took.
      costs: of the bits that it was validated at: "bops", and what else the budget counts.
    """

    epoch: int
    phase: str
    loss: float = setting(least=-math.inf)
    score: float
    validation_loss: float | None = setting(least=-math.inf)
    validation_score: float | None
    seconds: float
    costs: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a reader needs to repeat the run."""

    config: dict[str, Any]
    date: str
    versions: dict[str, str]
    machine: str
    command: str
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What the chosen bits may cost, and what they do.

    Attributes:
      cost: what it is of, a name in each epoch's `costs`: "bops", "latency_us", "size_bytes".
      limit, found: in its unit; `found` of the chosen bits.
      source, origin: a latency table's file, and what it was measured on.
      written: what `found` predicts: of a budget of bytes those of the file, of an accelerator's
        latency what its compiler estimates of the file; None of others.
    """

    cost: str
    limit: float = setting(above=True)
    found: float
    source: str = ""
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)
    written: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alphas:
    """Probabilities of the candidates during the search.

    Attributes:
      candidates: bit-widths by layer; of its weights by NAME/weights.
      history: by layer, a record for each of `steps`: a probability for each candidate.
      steps: of bit-search.
    """

    candidates: dict[str, list[int]]
    history: dict[str, list[list[float]]]
    steps: list[int]

    def __post_init__(self) -> None:
        records = len(self.steps)
        for name, history in self.history.items():
            if name not in self.candidates:
                raise ValueError(f"candidates: missing key '{name}', expected its bit-widths")
            width = len(self.candidates[name])
            if len(history) != records or any(len(record) != width for record in history):
                shape = f"{len(history)} records of {sorted({len(record) for record in history})}"
                raise ValueError(
                    f"history['{name}']: expected {records} records (one per step) of {width} "
                    f"probabilities, found {shape}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """An assignment under a budget.

    Attributes:
      name: of a Bit-Mixer's signature, or of a MetaMix file's row; or "".
      cost, budget: in the unit of the budget, of several that of the first.
      images, epochs: of MetaMix: training images read to ready the network for these bits, as a
        share of all of them, and epochs of training besides.
    """

    name: str
    cost: float
    budget: float
    score: float
    images: float = 0.0
    epochs: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """MetaMix: what was searched under which budgets.

    Attributes:
      argmax_bits, argmax_weight_bits: each layer's most probable bits, whatever they cost.
      points: the chosen bits, and those of further budgets of the same search.
      unit: of the points' costs, for an axis.
    """

    budgets: list[Budget]
    argmax_bits: dict[str, int]
    alphas: Alphas
    argmax_weight_bits: dict[str, int] = dataclasses.field(default_factory=dict)
    points: list[Point] = dataclasses.field(default_factory=list)
    unit: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformPoint:
    """One bit-width in all layers but the edges."""

    bits: int
    cost: float
    score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixer:
    """Bit-Mixer: one network at several assignments, the training graph's score of each.

    Attributes:
      unit: of the costs, for an axis.
      points: the operating points of the file, and those of the Pareto front.
      uniform: what they compare with.
      separate_bytes: of the operating points as files of their own, together.
    """

    unit: str
    points: list[Point]
    uniform: list[UniformPoint]
    separate_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masks:
    """The classes of the pixels of a few test images.

    Attributes:
      name: of the row whose file gave them.
      classes: their names.
      images, truth, found: as `pictures.encoded` writes them; the latter two of class numbers.
    """

    name: str
    classes: list[str]
    images: str
    truth: str
    found: str

    def __post_init__(self) -> None:
        shapes = []
        for name in ("images", "truth", "found"):
            try:
                pixels = decoded(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            shapes.append(pixels.shape[:2])
            if name != "images" and pixels.max() >= len(self.classes):
                expected = f"expected numbers below {len(self.classes)}, one for each class"
                raise ValueError(f"{name}: {expected}, found {pixels.max()}.")
        if len({*shapes}) > 1:
            raise ValueError(f"truth: expected pictures of one size, found {shapes}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """All that a page shows.

    Attributes:
      metrics: names of the scores; curves and head figures show the first.
      search, mixer: of the run's method.
      masks: of a segmentation.
      analysis: what `metamix-report --analyse` added.
    """

    title: str
    metrics: list[str]
    run: RunFacts
    rows: list[Row]
    layers: list[Layer]
    epochs: list[Epoch]
    notes: list[str]
    search: Search | None = None
    mixer: Mixer | None = None
    masks: Masks | None = None
    analysis: Analysis | None = None

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ValueError("metrics: expected at least one, found none")
        for number, row in enumerate(self.rows):
            for metric in self.metrics:
                if metric not in row.scores:
                    raise ValueError(f"rows[{number}].scores: missing key '{metric}'")
        for budget in self.budgets:
            for number, epoch in enumerate(self.epochs):
                if budget.cost not in epoch.costs:
                    raise ValueError(f"epochs[{number}].costs: missing key '{budget.cost}'")

    @property
    def metric(self) -> str:
        """The one that curves and head figures show."""
        return self.metrics[0]

    @property
    def budgets(self) -> list[Budget]:
        """Those of the search, if there was one."""
        return self.search.budgets if self.search else []

    @property
    def layers_row(self) -> Row | None:
        """That of the network whose layers these are; None where nothing was measured."""
        names = [point.name for point in self.mixer.points if point.name] if self.mixer else []
        name = names[-1] if names else METAMIX
        return next((row for row in self.rows if row.name == name), None)

    @property
    def chosen_bits(self) -> dict[str, int]:
        """Bits of each layer's activations, and of its weights by NAME/weights."""
        activations = {layer.name: layer.activation_bits for layer in self.layers}
        weights = {f"{layer.name}/weights": layer.weight_bits for layer in self.layers}
        return activations | weights

    def to_json(self) -> str:
        """The text of `metrics.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "metrics") -> Self:
        """Reads what `to_json` wrote.

        Raises:
          ValueError: it is not JSON, or lacks a key, or a value has another type or range; names
            `source`, the key, what was expected and what was found.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:  # of text that is not UTF-8, too
            raise ValueError(
                f"{source}: expected a JSON object, found invalid JSON: {error}"
            ) from error
        return read(cls, value, source, joint=": ", others=True)


def read_results(path: str | os.PathLike[str]) -> Results:
    """The results of a run: its folder, or the `metrics.json` in it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: see `Results.from_json`; names the file.
    """
    file: Any = Path(path)
    if file.is_dir():
        file = file / "metrics.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, expected the metrics.json of a run")
    return Results.from_json(file.read_bytes(), str(file))
