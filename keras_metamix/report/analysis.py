"""What the figures of the MetaMix paper show, measured on a run's network."""

from __future__ import annotations

import dataclasses
import math

from keras_metamix.schema import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """A network before or after a training, at each candidate bit-width in all searched layers.

    Attributes:
      name: of the state, such as "bit-meta".
      weights: "float" or "quantized".
      change: by layer with a batch norm, `mean_channel |ln(var_b / var_most)|` of each bit-width b
        but the most.
      histogram: what the quantizer of `Instability.layer` reads: for each bit-width the share of
        its values in each bin.
    """

    name: str
    weights: str
    change: dict[str, list[float]]
    histogram: list[list[float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instability:
    """What changes of bit-widths do to a network's activations (Fig. 1, 2 and 6).

    Attributes:
      bits: the candidates, most first.
      weight_bits: of quantized weights, in words.
      states: the float network, and what trainings of as many `steps` made of it.
      layer: whose quantizer's input changes most in the float network; `edges` of its bins.
      traced: the layer of `traces`: by training, the running variance after each step over that
        before the first, the geometric mean of its channels.
    """

    bits: list[int]
    weight_bits: str
    states: list[State]
    steps: int
    layer: str
    edges: list[float] = setting(least=-math.inf)
    traced: str
    traces: dict[str, list[float]]

    def __post_init__(self) -> None:
        for number, state in enumerate(self.states):
            for name, change in state.change.items():
                if len(change) != len(self.bits) - 1:
                    raise ValueError(
                        f"states[{number}].change['{name}']: expected {len(self.bits) - 1} values, "
                        f"found {len(change)}"
                    )
            shape = [len(shares) for shares in state.histogram]
            if shape != [len(self.edges) - 1] * len(self.bits):
                raise ValueError(
                    f"states[{number}].histogram: expected {len(self.bits)} of "
                    f"{len(self.edges) - 1} bins, found {shape}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Variance of a quantized Gaussian over that of what is quantized (Fig. 8).

    Attributes:
      grid: "signed", or "unsigned": behind a ReLU.
      rule: of the step: "lsq" or "mse".
      variance: at each of `bits`.
    """

    grid: str
    rule: str
    bits: list[int]
    variance: list[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """The trace of the loss's Hessian by a layer's weights, and its standard error (Fig. 9)."""

    trace: float = setting(least=-math.inf)
    error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis:
    """What `metamix-report --analyse` adds to a run's results.

    Attributes:
      instability: None where no bits of activations were searched.
      traces: by MAC layer, of the float network's loss; empty where there are none.
      note: what a reader has to know of these numbers.
    """

    instability: Instability | None
    gaussian: list[Gaussian]
    traces: dict[str, Trace]
    note: str
