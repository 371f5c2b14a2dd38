"""Which of several candidate bit-widths is in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_metamix.layers.mode import current_mode
from keras_metamix.ops import hard_selection

ALPHA_STDDEV = 1e-3


class BitChoice:
    """A choice among candidate bit-widths: fixed, forced, weighted by probabilities, or assigned.

    It is not a layer, so that several layers can share one: weights that take the bits of their
    activation, the batch norms of Bit-Mixer. The layer that makes it owns its variables.

    Args:
      candidates: bit-widths, descending, or one bit-width, which is fixed.
      of: whether the mode's choice for "activations" or the one for "weights" applies.

    Variables: `bit_index` (), the candidate assigned; `alpha` (candidates,), where there are
    several: its softmax gives their probabilities.
    """

    def __init__(self, candidates: int | Sequence[int], of: Literal["activations", "weights"]):
        bits = (candidates,) if isinstance(candidates, int) else candidates
        self.candidates: tuple[int, ...] = tuple(int(b) for b in bits)
        self.of: Literal["activations", "weights"] = of
        self.bit_index: Any = None
        self.alpha: Any = None
        self._path = ""

    def build(self, owner: Any) -> None:
        """Makes the variables in `owner`, unless they exist already."""
        if self.bit_index is not None:
            return
        self._path = owner.path
        # An attribute of the owner too: tf.train.Checkpoint finds variables by attributes alone.
        self.bit_index = owner.bit_index = owner.add_weight(
            (), initializer="zeros", dtype="int32", trainable=False, name="bit_index"
        )
        if self.searched:
            self.alpha = owner.alpha = owner.add_weight(
                (len(self.candidates),),
                initializer=keras.initializers.RandomNormal(stddev=ALPHA_STDDEV),
                trainable=False,
                aggregation="mean",
                name="alpha",
            )

    @property
    def searched(self) -> bool:
        """Whether there is more than one candidate."""
        return len(self.candidates) > 1

    @property
    def bits(self) -> int:
        """The bit-width assigned.

        Raises:
          ValueError: `bit_index` is not the number of a candidate, as in a damaged file.
        """
        number = int(self.bit_index.numpy())
        if not 0 <= number < len(self.candidates):
            raise ValueError(
                f"{self._path}: expected a bit_index from 0 to {len(self.candidates) - 1}, found "
                f"{number}."
            )
        return self.candidates[number]

    def assign(self, bits: int) -> None:
        """Assigns a candidate; no retrace follows.

        Raises:
          ValueError: `bits` is not a candidate.
        """
        if bits not in self.candidates:
            raise ValueError(
                f"Quantizer {self._path!r}: {bits} bits are no candidate, expected one of "
                f"{list(self.candidates)}."
            )
        self.bit_index.assign(self.candidates.index(bits))

    def index(self) -> Any:
        """Number of the candidate in use: the one assigned, or the one that the mode forces."""
        if not self.searched:
            return 0
        mode = current_mode()
        if getattr(mode, self.of) != "forced":
            return self.bit_index
        forced = mode.forced if self.of == "activations" else mode.forced_weights
        return forced[self] if isinstance(forced, Mapping) else forced

    def probabilities(self) -> Any:
        """Softmax of alpha, shape (candidates,)."""
        return ops.softmax(self.alpha) if self.searched else ops.ones(1)

    def log_probabilities(self) -> np.ndarray:
        """Logarithms of the probabilities, in float64."""
        if not self.searched:
            return np.zeros(1)
        alpha = np.asarray(self.alpha, np.float64)
        return alpha - np.logaddexp.reduce(alpha)

    def selection(self) -> Any:
        """The one-hot of the most probable candidate, see `hard_selection` (MetaMix Eq. 5)."""
        return hard_selection(ops.convert_to_tensor(self.alpha)) if self.searched else ops.ones(1)
