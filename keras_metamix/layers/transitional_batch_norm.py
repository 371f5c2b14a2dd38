"""Bit-Mixer's batch normalization: a set of parameters for each change of bit-width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_metamix.layers.batch_norm import FoldableBatchNormalization
from keras_metamix.layers.bit_choice import BitChoice
from keras_metamix.ops import pick


@keras.saving.register_keras_serializable("keras_metamix")
class TransitionalBatchNormalization(FoldableBatchNormalization):
    r"""Batch norm whose parameters and statistics depend on two adjacent layers' bit-widths.

    With candidate $i$ of the transition's first layer and candidate $j$ of its second, of $J$:

    $$y = \gamma_k \, \frac{x - \mu_k}{\sqrt{\sigma_k^2 + \epsilon}} + \beta_k, \qquad k = i J + j$$

    In training $\mu_k$ and $\sigma_k^2$ are the batch's, and the moving statistics of set $k$ alone
    follow them. A layer of the transition with one bit-width, or none, counts as one candidate.

    Args:
      sets: rows and columns: candidates of the first and of the second layer.
      own: which of the two, 0 or 1, is the layer whose result is normalized.
      transition: names of the two layers; None: no choice.

    Raises:
      ValueError: batch renormalization, which keeps further statistics.

    Variables: gamma, beta, moving_mean, moving_variance, shape (rows * columns, channels). A
    regularizer counts as the mean over the sets, a constraint holds for each.

    Attributes:
      choices: of the two layers, see `follow`; None: no choice.
    """

    def __init__(
        self,
        sets: Sequence[int] = (1, 1),
        own: Literal[0, 1] = 1,
        transition: Sequence[str | None] = (None, None),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if self.renorm:
            raise ValueError(f"Batch norm {self.name!r}: expected renorm=False, found True.")
        self.sets, self.own = (int(sets[0]), int(sets[1])), own
        self.transition = tuple(transition)
        self.choices: tuple[BitChoice | None, ...] = (None, None)

    def follow(self, choices: Mapping[str, BitChoice]) -> None:
        """Takes the bit choices of the two layers, by the layers' names."""
        first, second = self.transition
        self.choices = (_chosen(first, choices), _chosen(second, choices))

    def build(self, input_shape: Sequence[int | None]) -> None:
        axis = self.axis % len(input_shape)
        shape = (self.sets[0] * self.sets[1], input_shape[axis])
        if self.scale:
            self.gamma = self.add_weight(
                shape,
                self.gamma_initializer,
                regularizer=_mean_of_sets(self.gamma_regularizer),
                constraint=_of_each_set(self.gamma_constraint),
                name="gamma",
            )
        if self.center:
            self.beta = self.add_weight(
                shape,
                self.beta_initializer,
                regularizer=_mean_of_sets(self.beta_regularizer),
                constraint=_of_each_set(self.beta_constraint),
                name="beta",
            )
        for name in ("moving_mean", "moving_variance"):
            initializer = getattr(self, f"{name}_initializer")
            setattr(self, name, self.add_weight(shape, initializer, trainable=False, name=name))
        self._reduction_axes = [i for i in range(len(input_shape)) if i != axis]

    def set_index(self) -> Any:
        """Number of the set in use: of the bit-widths assigned, or drawn for this step."""
        first, second = (0 if choice is None else choice.index() for choice in self.choices)
        return first * self.sets[1] + second

    def _parameters(self) -> tuple[Any, Any, Any, Any]:
        index, size = self.set_index(), self.moving_mean.shape[1:]
        return (
            pick(self.gamma, index) if self.scale else ops.ones(size),
            pick(self.beta, index) if self.center else ops.zeros(size),
            pick(self.moving_mean, index),
            pick(self.moving_variance, index),
        )

    def _update_statistics(self, mean: Any, variance: Any) -> None:
        row = ops.expand_dims(ops.one_hot(self.set_index(), self.moving_mean.shape[0]), -1)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving + row * (1.0 - self.momentum) * (batch - moving))

    def _normalize(self, inputs: Any, training: bool, mask: Any) -> Any:
        gamma, beta, mean, variance = self._parameters()
        if training:
            mean, variance = self._moments(inputs, mask)
            self._update_statistics(mean, variance)
        return ops.batch_normalization(inputs, mean, variance, self.axis, beta, gamma, self.epsilon)

    def spread_diagonal(self) -> None:
        """Copies the set of equal bit-widths to those of the transitions that end in it."""
        rows, columns = self.sets
        if min(rows, columns) == 1:
            return
        first, second = np.divmod(np.arange(rows * columns), columns)
        source = (first, second)[self.own] * (columns + 1)
        for variable in self.weights:
            variable.assign(ops.take(variable, source, axis=0))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "sets": list(self.sets),
            "own": self.own,
            "transition": list(self.transition),
        }


def _mean_of_sets(regularizer: Any) -> Any:
    """A regularizer of one set's parameters for those of all."""
    if regularizer is None:
        return None

    def mean(parameters: Any) -> Any:
        rows = [parameters[i] for i in range(parameters.shape[0])]
        return sum(regularizer(row) for row in rows) / len(rows)

    return mean


def _of_each_set(constraint: Any) -> Any:
    """A constraint of one set's parameters for those of all."""
    if constraint is None:
        return None
    return lambda parameters: ops.stack(
        [constraint(parameters[i]) for i in range(parameters.shape[0])]
    )


def _chosen(name: str | None, choices: Mapping[str, BitChoice]) -> BitChoice | None:
    return None if name is None else choices[name]
