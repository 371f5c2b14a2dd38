"""Quantizes an activation at one of several candidate bit-widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_metamix.layers.bit_choice import BitChoice
from keras_metamix.layers.grid import Sign, activation_range
from keras_metamix.layers.mode import current_mode
from keras_metamix.ops import lsq, lsq_mixture, pick, shifted_range

Absorbed = Literal["linear", "relu", "relu6"]
# Fusing pays in training, on images of so many values; elsewhere the compilation of every new shape
# costs more than it saves.
_FUSED_FROM = 2**8


@keras.saving.register_keras_serializable("keras_metamix")
class ActivationQuantizer(keras.layers.Layer):
    r"""LSQ with a step size for each candidate bit-width (MetaMix Eq. 2) and a bit choice.

    With the step size $s_b$ of $b$ bits:

    $$Q_b(v) = s_b \cdot \mathrm{round} \left( \mathrm{clip} \left( \frac{v}{s_b}, q_{min}, q_{max}
    \right) \right)$$

    The levels are $0$ to $2^b - 1$ of an unsigned grid and $\pm(2^{b-1} - 1)$ of a signed one
    ($-128$ to $127$ where $b = 8$). An offset grid, of values from a minimum $m < 0$ on, has the
    levels $z$ to $2^b - 1 + z$:

    $$z = \max \left( \mathrm{round} \left( \frac{m}{s_b} - \frac{1}{4} \right), -2^{b-1} \right),
    \qquad z = 0 \; \text{where} \; \frac{m}{s_b} > -\frac{1}{2}$$

    The output is $Q_b(v)$ of the bits in use, or in bit-search, where steps are constants,

    $$Q(v) = \sum_b p_b \, Q_b(v), \qquad p = \mathrm{softmax}(\alpha)$$

    The gradient of $v$ is 1 inside the range and 0 outside; that of the step is, summed over the
    values,

    $$\frac{\partial Q_b}{\partial s_b} = g \cdot \begin{cases} \mathrm{round}(v / s_b) - v / s_b &
    q_{min} \le v / s_b \le q_{max} \\ q_{min} & v / s_b < q_{min} \\ q_{max} & v / s_b > q_{max}
    \end{cases}, \qquad g = \frac{1}{\sqrt{N h}}$$

    with $N$ the values of one image and $h$ the highest level ($2^b - 1$ of an offset grid). The
    variable is $\ln s_b$.

    Args:
      candidates: bit-widths, descending, or one bit-width.
      sign: "unsigned", "signed" or "offset" (behind swish and hard-swish: the grid is shifted so
        that it begins at the activation's minimum and has a level 0).
      activation: "relu" or "relu6" when the quantizer computes that activation too. An unsigned
        quantizer repeats a ReLU; absorbing it saves two passes over the tensor.
      role: "mac" (the input of a MAC layer) or "stream" (a tensor that no MAC layer reads
        directly, quantized only where the mode says so).
      minimum: of an "offset" grid, below 0.
      fixed_step: a step size that the device dictates; it is no variable then.
      sign_from_data: whether calibration finds the sign (of the model's own inputs): pixels from 0
        to 255 deserve all 256 levels.
      maximum: of the values, where the grid has to end, or below: the device clips at the end of
        INT8 alone. Steps stay so small, in calibration and after each update.

    Shapes: any in, the same out. Variables: `log_step` (candidates,), trained; those of its
    `choice`; `signed` () where data decide the sign.

    Attributes:
      choice: which candidate is in use.
    """

    def __init__(
        self,
        candidates: int | Sequence[int],
        sign: Sign = "signed",
        activation: Absorbed = "linear",
        role: Literal["mac", "stream"] = "mac",
        minimum: float | None = None,
        fixed_step: float | None = None,
        sign_from_data: bool = False,
        maximum: float | None = None,
        follows: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if maximum is not None and (sign != "unsigned" or maximum <= 0):
            raise ValueError(
                f"Quantizer {self.name!r}: a maximum is above 0, of sign='unsigned', found "
                f"{maximum} and sign={sign!r}."
            )
        if activation != "linear" and sign != "unsigned":
            raise ValueError(
                f"Quantizer {self.name!r}: activation={activation!r} needs sign='unsigned', "
                f"found {sign!r}."
            )
        if (sign == "offset") != (minimum is not None):
            raise ValueError(
                f"Quantizer {self.name!r}: sign='offset' and minimum go together, found sign="
                f"{sign!r} and minimum={minimum}."
            )
        self.choice = BitChoice(candidates, "activations")
        self.activation, self.role = activation, role
        self.sign_from_data = sign_from_data
        self._sign: Sign = sign
        self._signed: Any = None
        self._cap = 6.0 if activation == "relu6" else math.inf
        self.minimum, self.maximum, self.fixed_step = minimum, maximum, fixed_step
        self.follows = follows
        self._leader: Callable[[], ActivationQuantizer] | None = None  # no layer that it owns

    def follow(self, leader: ActivationQuantizer) -> None:
        """Takes the quantizer that `follows` names."""
        self._leader = lambda: leader

    def leader(self) -> ActivationQuantizer:
        """The quantizer whose grid this one has: the one that it follows, or itself.

        Keras saves what properties return.
        """
        return self if self._leader is None else self._leader()

    @property
    def candidates(self) -> tuple[int, ...]:
        """The candidate bit-widths."""
        return self.choice.candidates

    @property
    def sign(self) -> Sign:
        """That of the grid; where data decide it, a variable holds the one that they gave."""
        if self._leader is not None:
            return self.leader().sign
        if self._signed is None:
            return self._sign
        return "signed" if int(ops.convert_to_numpy(self._signed)) else "unsigned"

    def set_sign(self, sign: Literal["unsigned", "signed"]) -> None:
        """Changes the sign of a quantizer with `sign_from_data`; what was traced follows."""
        self._signed.assign(int(sign == "signed"))

    def _of_sign(self, rows: Callable[[Sign], np.ndarray]) -> Any:
        """What follows from the sign: an array, or a tensor where a variable holds the sign."""
        if self._leader is not None:
            return self.leader()._of_sign(rows)
        if self._signed is None:
            return rows(self._sign)
        return ops.where(ops.not_equal(self._signed, 0), rows("signed"), rows("unsigned"))

    def _ends(self) -> tuple[Any, Any]:
        """Lowest and highest integers of all candidates, each of shape (candidates,)."""
        rows = self._of_sign(self._ends_of)
        return rows[:, 0], rows[:, 1]

    def _ends_of(self, sign: Sign) -> np.ndarray:
        return np.array([activation_range(b, sign) for b in self.candidates], np.float32)

    def _table_of(self, sign: Sign) -> np.ndarray:
        """See `lsq`."""
        ends = self._ends_of(sign)
        gradient_scales = 1.0 / np.sqrt(self._elements * ends[:, 1:])
        return np.concatenate([ends, gradient_scales], axis=1).astype(np.float32)

    def build(self, input_shape: Sequence[int | None]) -> None:
        count = len(self.candidates)
        self._elements = math.prod(n for n in input_shape[1:] if n) or 1
        if self.fixed_step is None and self.follows is None:
            bound = None if self.maximum is None else self._bounded
            self.log_step = self.add_weight(
                (count,), initializer="zeros", name="log_step", constraint=bound
            )
        self.choice.build(self)
        if self.sign_from_data and self.follows is None:
            start = keras.initializers.Constant(int(self._sign == "signed"))
            self._signed = self.add_weight((), start, "int32", trainable=False, name="signed")

    def steps(self) -> Any:
        """Step sizes of all candidates, shape (candidates,)."""
        if self._leader is not None:
            return self.leader().steps()
        if self.fixed_step is not None:
            return ops.full((len(self.candidates),), self.fixed_step)
        return ops.exp(self.log_step)

    def _bounded(self, log_steps: Any) -> Any:
        """Steps at which the grid of each candidate ends at the maximum, or below."""
        if self.maximum is None:
            return log_steps
        return ops.minimum(log_steps, np.log(self.maximum / self._ends_of("unsigned")[:, 1]))

    def set_steps(self, steps: np.ndarray) -> None:
        """Sets the step of each candidate, or the largest one that the maximum leaves."""
        self.log_step.assign(self._bounded(np.log(steps).astype(np.float32)))

    def step(self, index: Any | None = None) -> Any:
        """Step size of a candidate, default the one assigned."""
        if self._leader is not None:
            return self.leader().step()
        if self.fixed_step is not None:
            return ops.convert_to_tensor(self.fixed_step, "float32")
        return ops.exp(pick(self.log_step, self.choice.index() if index is None else index))

    def grid(self, index: Any) -> tuple[Any, Any, Any]:
        """Step, lowest and highest integer of candidate number `index`."""
        step = self.step(index)
        low, high = (pick(ends, index) for ends in self._ends())
        return step, *shifted_range(step, low, high, self.minimum)

    def assigned_grid(self) -> tuple[Any, Any, Any]:
        """`grid` of the bit-width assigned."""
        return self.grid(self.choice.bit_index if self.choice.searched else 0)

    def acting_grid(self) -> tuple[Any, Any, Any] | None:
        """`assigned_grid` of a stream, None where it does not quantize in the present mode."""
        mode = current_mode()
        if mode.activations in ("off", "observe") or not mode.streams or mode.observer:
            return None
        return self.assigned_grid()

    def float_activation(self, x: Any) -> Any:
        """What the layer computes when it does not quantize."""
        if self.activation == "linear":
            return x
        return ops.relu(x) if self.activation == "relu" else ops.relu6(x)

    def call(self, x: Any, training: bool | None = None) -> Any:
        mode = current_mode()
        if mode.activations == "observe" or (self.role == "stream" and mode.observer):
            x = self.float_activation(x)
            mode.observer(self, x)
            return x
        if mode.activations == "off" or (self.role == "stream" and not mode.streams):
            return self.float_activation(x)
        if self.follows is not None and (
            self._leader is None or (mode.streams and not mode.observer)
        ):
            return x  # lies on the grid already, or is no more than a shape
        x = ops.cast(x, self.compute_dtype)  # the model's inputs may be integers
        if mode.activations == "mixture" and self.choice.searched:
            steps = ops.stop_gradient(self.steps())
            lows, highs = (_in_type(end, x) for end in self._ends())
            lows, highs = shifted_range(steps, lows, highs, self.minimum)
            probabilities = self.choice.probabilities()
            return lsq_mixture(x, probabilities, steps, lows, highs, self._cap, _is_large(x))
        index, fuse = self.choice.index(), bool(training) and _is_large(x)
        table = _in_type(self._of_sign(self._table_of), x)
        return lsq(x, self.steps(), index, table, self._cap, self.minimum, fuse)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "candidates": list(self.candidates),
            "sign": self.sign,
            "activation": self.activation,
            "role": self.role,
            "minimum": self.minimum,
            "fixed_step": self.fixed_step,
            "sign_from_data": self.sign_from_data,
            "maximum": self.maximum,
            "follows": self.follows,
        }


def _in_type(values: Any, x: Any) -> Any:
    """A tensor in the type of `x`; an array takes that by itself."""
    return values if isinstance(values, np.ndarray) else ops.cast(values, x.dtype)


def _is_large(x: Any) -> bool:
    """Whether an image has `_FUSED_FROM` values, or may have, a size being unknown."""
    sizes = x.shape[1:]
    return None in sizes or math.prod(sizes) >= _FUSED_FROM
