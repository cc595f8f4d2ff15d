"""From the values, or colours, in the masks of records to class ids, as TensorFlow functions."""

import numpy as np
import tensorflow as tf

from petseg.classes import UNKNOWN, Classes
from petseg.data.folders import mask_values

NONE = -1


def code(values: tf.Tensor, classes: Classes) -> tf.Tensor:
    """Class ids of the pixels of a mask, as a TensorFlow function.

    Args:
      values: uint8 or uint16 [H, W, 1], or uint8 [H, W, 3] where the classes have colours.
      classes: the classes.

    Returns:
      uint8 [H, W, 1]; IGNORED for a pixel in no class, UNKNOWN for one whose value means nothing.
    """
    numbers, ids = mask_values.value_table(classes)
    of_pixels = numbered(values)
    places = tf.minimum(tf.searchsorted(numbers, tf.reshape(of_pixels, [-1])), len(numbers) - 1)
    places = tf.reshape(places, tf.shape(of_pixels))
    return tf.where(tf.gather(numbers, places) == of_pixels, tf.gather(ids, places), np.uint8(UNKNOWN))[..., None]


def an_unknown_value(values: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """The number of a value in a mask that means nothing, int32, as `shown` takes it; NONE where all mean something."""
    return tf.reduce_max(tf.where(ids[..., 0] == UNKNOWN, numbered(values), NONE))


def numbered(values: tf.Tensor) -> tf.Tensor:
    """One number for each value, or colour, of a mask [H, W, 1 or 3]; int32 [H, W]."""
    values = tf.cast(values, tf.int32)
    if values.shape[-1] == 3:
        return values[..., 0] * 2**16 + values[..., 1] * 2**8 + values[..., 2]
    return values[..., 0]


def shown(number: int, classes: Classes) -> str:
    """The value, or colour, of a number, in words."""
    return mask_values.value_text(number, classes.colored)
