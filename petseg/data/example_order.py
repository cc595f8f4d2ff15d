"""Which examples make the batch of a step: a function of (seed, step) alone."""

import tensorflow as tf

from petseg.errors import DataError

# Added to the seed, which is below, as `random_crops.STREAM` is, for keys of permutations. Three are applied in turn:
# of each key, `index_shuffle` uses two words of 8 bits (up to 65,536 examples) or little more, so one soon repeats.
PERMUTATIONS, KEYS = 1 << 34, 3
VERSIONS = (1, 2)  # of `example_ids`; a run keeps the one that it began with


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Whole batches in an epoch. The ragged rest is left out, another one in each epoch, so no batch straddles two.

    Raises:
      DataError: if not even one batch can be filled.
    """
    if batch_size > num_examples:
        raise DataError(f"--batch_size={batch_size}: the training split holds only {num_examples} examples")
    return num_examples // batch_size


def example_ids(
    step: tf.Tensor,
    positions: tf.Tensor,
    *,
    num_examples: int,
    batch_size: int,
    seed: int,
    version: int | None = None,
) -> tf.Tensor:
    """The examples at some positions of the batch of a step.

    Each epoch walks through a permutation of its own, drawn from (seed, epoch) by
    `tf.random.experimental.index_shuffle`, which computes single entries without storing the permutation.

    Args:
      step: int64 scalar, counted from 0.
      positions: int64 [K], positions in the global batch, 0 to batch_size - 1.
      num_examples: size of the split.
      batch_size: global batch size.
      seed: seed of the run.
      version: one of `VERSIONS`, or None for the latest. Version 1 gives epochs whose numbers are equal modulo 256 the
        same permutation (modulo 1,024 where there are a million examples), and so it does with seeds.

    Returns:
      int64 [K], indices into the split.
    """
    per_epoch = steps_per_epoch(num_examples, batch_size)
    epoch, step_of_epoch = step // per_epoch, step % per_epoch
    ids = step_of_epoch * batch_size + positions
    keys = [tf.stack([tf.constant(seed, tf.int64), epoch])] if version == 1 else _permutation_keys(seed, epoch)
    for key in keys:
        ids = tf.random.experimental.index_shuffle(ids, key, max_index=tf.constant(num_examples - 1, tf.int64))
    return ids


def _permutation_keys(seed: int, epoch: tf.Tensor) -> list[tf.Tensor]:
    """Keys for `index_shuffle`, int64 [2] each, whose low bits depend on all bits of seed and epoch."""
    keys = tf.random.stateless_uniform(
        [KEYS, 2],
        seed=tf.stack([tf.constant(seed + PERMUTATIONS, tf.int64), epoch]),
        minval=None,
        maxval=None,
        dtype=tf.int64,
        alg="philox",
    )
    return tf.unstack(keys)
