"""Disables tf.data's autotuning, which can delay the end of an iterator by up to a minute.

The autotuning thread of an iterator sleeps for 10 ms, 20 ms, 40 ms, up to a minute. Deleting the iterator wakes that
thread and waits for it, but TensorFlow 2.21 sets the cancelled flag only after waking it: a thread that checks too
early sleeps again, for about one iterator in ten. petseg sets parallelism and prefetching itself, so it loses nothing.
"""

import functools
from typing import Any

import tensorflow as tf
from tensorflow.python.data.ops import multi_device_iterator_ops


def off() -> tf.data.Options:
    """Returns data set options without autotuning."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def switch_off_on_devices() -> None:
    """Disables it in this process for the per-device data sets of strategies, which ignore the input's options."""
    make = multi_device_iterator_ops._create_device_dataset
    if not hasattr(make, "__wrapped__"):

        @functools.wraps(make)
        def untuned(*args: Any) -> tf.data.Dataset:
            return make(*args).with_options(off())

        multi_device_iterator_ops._create_device_dataset = untuned
