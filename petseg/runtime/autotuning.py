"""Switches tf.data's autotuning off.

Each iterator that is autotuned has a thread, which sleeps for 10 ms, then 20, 40, and so on up to a minute. The end
of an iterator wakes that thread and waits for it; but TensorFlow 2.21 marks the iterator as cancelled only after
waking it, so a thread that looks too soon sleeps on, and the program with it. It happens to about one iterator in
ten. Here parallelism and prefetching are fixed, and nothing is lost.
"""

import functools
from typing import Any

import tensorflow as tf
from tensorflow.python.data.ops import multi_device_iterator_ops


def off() -> tf.data.Options:
    """Options of a data set that is not autotuned."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def switch_off_on_devices() -> None:
    """Switches it off, in this process, for the data sets that strategies make for each device, without options."""
    make = multi_device_iterator_ops._create_device_dataset
    if not hasattr(make, "__wrapped__"):

        @functools.wraps(make)
        def untuned(*args: Any) -> tf.data.Dataset:
            return make(*args).with_options(off())

        multi_device_iterator_ops._create_device_dataset = untuned
