"""Example order: the example ids of a training batch as a function of (seed, step)."""

import tensorflow as tf

from petseg.errors import DataError

# PERMUTATIONS is added to seeds, which are smaller, so that keys are independent of crops and augmentation. Three keys
# are applied in turn, because `index_shuffle` uses only two words of 8 bits of each (up to 65,536 examples), or little
# more: a single one would soon repeat.
PERMUTATIONS, KEYS = 1 << 34, 3
VERSIONS = (1, 2)  # of `example_ids`; a run keeps its version when it is resumed


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Full batches in an epoch; the remainder, other examples in each epoch, is dropped.

    Raises DataError if the split is smaller than a batch.
    """
    if batch_size > num_examples:
        raise DataError(f"--batch_size={batch_size}: must be at most {num_examples}, the number of training examples")
    return num_examples // batch_size


def example_ids(
    step: tf.Tensor, positions: tf.Tensor, *, num_examples: int, batch_size: int, seed: int, version: int | None = None
) -> tf.Tensor:
    """Example ids at some positions of the batch of a step.

    Each epoch is a permutation of the split by (seed, epoch). `tf.random.experimental.index_shuffle` computes single
    entries of it without storing it.

    Args:
      step: int64 scalar, counted from 0.
      positions: int64 [K], positions in the global batch, 0 to batch_size - 1.
      version: one of `VERSIONS`, or None for the latest. Version 1 repeats permutations after 256 epochs or seeds
        (1,024 with a million examples).

    Returns:
      int64 [K], ids in the split.
    """
    per_epoch = steps_per_epoch(num_examples, batch_size)
    epoch, step_of_epoch = step // per_epoch, step % per_epoch
    ids = step_of_epoch * batch_size + positions
    keys = [tf.stack([tf.constant(seed, tf.int64), epoch])] if version == 1 else _permutation_keys(seed, epoch)
    for key in keys:
        ids = tf.random.experimental.index_shuffle(ids, key, max_index=tf.constant(num_examples - 1, tf.int64))
    return ids


def _permutation_keys(seed: int, epoch: tf.Tensor) -> list[tf.Tensor]:
    """Keys for `index_shuffle`, int64 [2] each; their low bits depend on all bits of seed and epoch."""
    word = tf.stack([tf.constant(seed + PERMUTATIONS, tf.int64), epoch])
    return tf.unstack(tf.random.stateless_uniform([KEYS, 2], word, None, None, tf.int64, alg="philox"))
