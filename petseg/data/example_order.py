"""Which examples make the batch of a step: a function of (seed, step) alone."""

import tensorflow as tf

from petseg.errors import DataError

ATTEMPTS = 8  # of a hundred examples one may be unusable; that eight in a row are, nobody will see
# Added to the seed, which is below, as `random_parts.PLACES` is: nobody else draws from these seeds.
SUBSTITUTES = 1 << 33


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Whole batches in an epoch. The ragged rest is left out, another one in each epoch, so no batch straddles two.

    Raises:
      DataError: if not even one batch can be filled.
    """
    if batch_size > num_examples:
        raise DataError(f"--batch_size={batch_size}: the training split holds only {num_examples} examples")
    return num_examples // batch_size


def example_ids(step: tf.Tensor, positions: tf.Tensor, *, num_examples: int, batch_size: int, seed: int) -> tf.Tensor:
    """The examples at some positions of the batch of a step.

    Each epoch walks through a permutation of its own, drawn from (seed, epoch) by
    `tf.random.experimental.index_shuffle`, which computes single entries without storing the permutation.

    Args:
      step: int64 scalar, counted from 0.
      positions: int64 [K], positions in the global batch, 0 to batch_size - 1.
      num_examples: size of the split.
      batch_size: global batch size.
      seed: seed of the run.

    Returns:
      int64 [K], indices into the split.
    """
    per_epoch = steps_per_epoch(num_examples, batch_size)
    epoch, step_of_epoch = step // per_epoch, step % per_epoch
    return tf.random.experimental.index_shuffle(
        step_of_epoch * batch_size + positions,
        seed=tf.stack([tf.constant(seed, tf.int64), epoch]),
        max_index=tf.constant(num_examples - 1, tf.int64),
    )


def substitute_ids(
    step: tf.Tensor, positions: tf.Tensor, attempt: tf.Tensor, *, num_examples: int, batch_size: int, seed: int
) -> tf.Tensor:
    """The examples that are tried, in an attempt counted from 1, where those of `example_ids` cannot be used.

    Drawn one by one from (seed, step, attempt), each example as likely as the others: an epoch may hold one twice. Not
    from another permutation, for `index_shuffle` knows few of them: it looks at the lowest eight bits of each part of
    its seed where there are up to thousands of examples, at ten where there are a million.

    Returns:
      int64 [K], indices into the split.
    """
    drawn = tf.random.stateless_uniform(
        [batch_size],
        seed=tf.stack([tf.constant(seed + SUBSTITUTES, tf.int64), step * ATTEMPTS + attempt - 1]),
        maxval=num_examples,
        dtype=tf.int64,
    )
    return tf.gather(drawn, positions)
