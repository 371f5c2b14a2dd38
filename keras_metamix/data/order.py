"""Which image comes where: a function of seed and position alone, for any step and any worker."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from keras_metamix.checks import require_whole


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of each global batch that one worker reads.

    Attributes:
      parts: into how many equal pieces a global batch falls, one for each replica.
      first, count: the pieces of this worker: `count` of them, from number `first` on.
    """

    parts: int = 1
    first: int = 0
    count: int = 1

    def batch_size(self, whole: int) -> int:
        """Images of a piece.

        Raises:
          ValueError: a batch of `whole` images does not fall into `parts` pieces.
        """
        if whole % self.parts:
            raise ValueError(
                f"batch_size: expected a multiple of {self.parts} (replicas), found {whole}."
            )
        return whole // self.parts


ALL = Share()


def ordered(
    count: int, batch_size: int, seed: int, start_step: int, share: Share
) -> tf.data.Dataset:
    """Pairs `(image number, seed of that image)`, epoch after epoch without an end.

    An epoch has `count // batch_size` batches; the images that are over differ from epoch to
    epoch. No shuffle buffer and no generator with a state: what starts at step k is the rest of
    what starts at 0, and gets there at once.

    Args:
      count: images there are.
      batch_size: of a global batch.
      seed: of the order and of the images' own seeds.
      start_step: number of the first global batch, counted from the first epoch's begin.
      share: whose images.

    Returns:
      int64 () and int64 (2,).

    Raises:
      ValueError: `batch_size` or `start_step` out of range.
    """
    require_whole("seed", seed, -(2**63))
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch_size: expected 1 to {count} images, found {batch_size}.")
    if start_step < 0:
        raise ValueError(f"start_step: expected 0 or more, found {start_step}.")
    used, size = count // batch_size * batch_size, share.batch_size(batch_size)

    def is_mine(piece: tf.Tensor) -> tf.Tensor:
        return (piece % share.parts - share.first) // share.count == 0

    def place(position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        epoch_seed = tf.stack([tf.constant(seed, tf.int64), position // used])
        number = tf.random.experimental.index_shuffle(
            position % used, epoch_seed, tf.constant(count - 1, tf.int64)
        )
        # Another key than the order's, or a seed would give related crops to related places.
        return number, tf.random.experimental.stateless_fold_in(epoch_seed, position % used)

    if share.parts == 1:
        positions = tf.data.Dataset.range(start_step * batch_size, np.iinfo(np.int64).max)
    else:
        pieces = tf.data.Dataset.range(start_step * share.parts, np.iinfo(np.int64).max)
        positions = pieces.filter(is_mine).flat_map(
            lambda piece: tf.data.Dataset.range(piece * size, (piece + 1) * size)
        )
    return positions.map(place, num_parallel_calls=tf.data.AUTOTUNE)


def in_order(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Batches in their order, prepared ahead; several workers divide each of them."""
    options = tf.data.Options()
    options.deterministic = True
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)
