"""Fixed random samples of a split (--eval_examples), a function of a seed."""

import numpy as np
import tensorflow as tf

from petseg.data.examples import Examples

STREAM = 2**32  # second key word; `example_order` has the epoch there


def positions(num_examples: int, count: int, seed: int) -> np.ndarray:
    """Draws `count` of `num_examples` positions without replacement: ascending, int64 [count]."""
    # Mixed, because `index_shuffle` uses only the low eight bits of each word.
    words = np.random.SeedSequence([seed, STREAM]).generate_state(2).astype(np.int64)
    with tf.device("cpu:0"):
        drawn = tf.random.experimental.index_shuffle(
            tf.range(count, dtype=tf.int64), seed=tf.constant(words), max_index=tf.constant(num_examples - 1, tf.int64)
        )
    return np.sort(drawn.numpy())


def subsample(examples: Examples, count: int, seed: int) -> Examples:
    """A sample of `count` examples, in the order of the split; all if `count` is 0 or at least their number."""
    if not 0 < count < len(examples):
        return examples
    sampled = examples.subset(positions(len(examples), count, seed))
    sampled.origin = f"{examples.origin}, {count} of {len(examples)} by seed {seed}"
    sampled.sampling = {"seed": seed, "of": len(examples)}
    return sampled


def elements_at(dataset: tf.data.Dataset, ids: np.ndarray) -> tf.data.Dataset:
    """The elements at ascending positions, int64 [K]; reads nothing after the last one."""
    wanted = tf.constant(ids, tf.int64)

    @tf.autograph.experimental.do_not_convert
    def is_wanted(position: tf.Tensor, _: object) -> tf.Tensor:
        return tf.gather(wanted, tf.searchsorted(wanted, position[None])[0]) == position

    numbered = dataset.take(int(ids[-1]) + 1).enumerate().filter(is_wanted)
    return numbered.map(tf.autograph.experimental.do_not_convert(lambda _, element: element))
