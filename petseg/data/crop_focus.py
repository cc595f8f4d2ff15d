"""Crops centred on pixels of rare classes (--crop_focus)."""

import dataclasses
import logging
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from petseg.classes import IGNORED
from petseg.data.examples import BatchPosition, Examples

FOCUS_DRAWS = 5 << 32  # added to seeds, which are smaller: a random stream apart from those of crops and augmentation
logger = logging.getLogger(__name__)


class FocusPixels(NamedTuple):
    """A pixel of each mask to centre a crop on."""

    found: tf.Tensor  # bool [K]; False where the crop is an ordinary one
    row: tf.Tensor  # int32 [K], row in the mask
    column: tf.Tensor  # int32 [K], column in the mask


@dataclasses.dataclass(frozen=True)
class CropFocus:
    """Chooses the pixels on which crops are centred."""

    share: float  # fraction of the crops that are centred, in [0, 1]
    rare: tuple[int, ...]  # ids of the classes that are rare in the training split

    @classmethod
    def of_split(cls, share: float, examples: Examples, rare: tuple[int, ...] | None = None) -> "CropFocus":
        """The focus on the rare classes of a training split, whose masks are counted unless the classes are given."""
        rare = rare_classes(examples.masks_to_count(), len(examples.classes)) if rare is None else rare
        names = ", ".join(examples.classes.names[label] for label in rare)
        logger.info("crops: %.0f%% are centred on the rare classes: %s", 100 * share, names)
        return cls(share, rare)

    def pixels(self, masks: tf.Tensor, at: BatchPosition) -> FocusPixels:
        """Draws a class, uniformly from the rare ones in a mask, and one of its pixels, uniformly.

        A function of (seed, step, position), so that the same examples are focused on the host and on the device.

        Args:
          masks: uint8 [K, H, W, 1], class ids or IGNORED.
        """
        drawn = tf.random.stateless_uniform(
            [4, at.batch_size], seed=tf.stack([tf.constant(at.seed + FOCUS_DRAWS, tf.int64), at.step])
        )
        focused, class_drawn, row_drawn, column_drawn = tf.unstack(tf.gather(drawn, at.positions, axis=1))
        masks = masks[..., 0]
        # A pass for each class: a table of counts, or ranks looked up by class, took four times as long on a CPU.
        present = [tf.reduce_any(masks == label, axis=[1, 2]) for label in self.rare]
        chosen = _drawn_index(tf.cast(tf.stack(present, axis=1), tf.float32), class_drawn)
        label = tf.cast(tf.gather(tf.constant(self.rare, tf.float32), chosen), tf.uint8)  # GPUs gather no uint8
        of_class = masks == label[:, None, None]
        row = _drawn_index(tf.reduce_sum(tf.cast(of_class, tf.float32), axis=2), row_drawn)
        column = _drawn_index(tf.cast(tf.gather(of_class, row, batch_dims=1), tf.float32), column_drawn)
        return FocusPixels((focused < self.share) & tf.reduce_any(present, axis=0), row, column)


def _drawn_index(weights: tf.Tensor, drawn: tf.Tensor) -> tf.Tensor:
    """Indices, int32 [K], with probabilities in proportion to weights, [K, N], from uniform numbers in [0, 1), [K]."""
    sums = tf.cumsum(weights, axis=1)
    beyond = tf.math.divide_no_nan(sums, sums[:, -1:]) > drawn[:, None]
    return tf.argmax(tf.cast(beyond, tf.float32), axis=1, output_type=tf.int32)


def rare_classes(masks: Iterable[np.ndarray], num_classes: int) -> tuple[int, ...]:
    """The classes with fewer pixels than the mean of those that occur; all classes if each that occurs has as many.

    A class without a pixel is rare too, since the masks may be a sample.
    """
    counts = np.zeros(IGNORED + 1, np.int64)
    for batch in masks:  # in batches, because the split may be larger than memory
        counts += np.bincount(batch.ravel(), minlength=len(counts))
    counts = counts[:num_classes]
    rare = counts * np.count_nonzero(counts) < counts.sum()
    return tuple(np.flatnonzero(rare if counts[rare].any() else np.ones_like(rare)).tolist())
