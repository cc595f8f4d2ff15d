"""Maps the values or colours of stored masks to class ids, as TensorFlow functions."""

import numpy as np
import tensorflow as tf

from petseg.classes import UNKNOWN, Classes
from petseg.data.folders import mask_values

NONE = -1


def class_ids(values: tf.Tensor, classes: Classes) -> tf.Tensor:
    """Class ids, uint8 [H, W, 1]: IGNORED for a pixel in no class, UNKNOWN for an invalid value.

    Args:
      values: uint8 or uint16 [H, W, 1], or uint8 [H, W, 3] if the classes have colours.
      classes: the classes.
    """
    numbers, ids = mask_values.value_table(classes)
    pixels = value_numbers(values)
    places = tf.minimum(tf.searchsorted(numbers, tf.reshape(pixels, [-1])), len(numbers) - 1)
    places = tf.reshape(places, tf.shape(pixels))
    return tf.where(tf.gather(numbers, places) == pixels, tf.gather(ids, places), np.uint8(UNKNOWN))[..., None]


def invalid_value(values: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """The number of an invalid value in a mask, int32 scalar; NONE if there is none."""
    return tf.reduce_max(tf.where(ids[..., 0] == UNKNOWN, value_numbers(values), NONE))


def value_numbers(values: tf.Tensor) -> tf.Tensor:
    """One number for each value or colour of a mask [H, W, 1 or 3]; int32 [H, W]."""
    values = tf.cast(values, tf.int32)
    if values.shape[-1] == 3:
        return values[..., 0] * 2**16 + values[..., 1] * 2**8 + values[..., 2]
    return values[..., 0]
