"""A compiled loop over training steps that times each of them."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import config as tf_config  # the public API can only switch determinism on

# Difference of the clocks, in seconds and as a fraction of the time: less is slewing, or a process that had to wait.
CLOCK_TOLERANCE, CLOCK_DRIFT = 0.1, 0.01
Step = Callable[[Any, tf.Tensor], tf.Tensor]


class TimedLoop:
    """A `tf.function` that takes batches and makes steps.

    Args:
      step: makes a step; batch and whether it is the last of the call -> a tensor that is known when the step is done.
      goes_on: whether to make another step, a bool scalar; called in the compiled loop.

    Attributes:
      traces: number of times the loop was traced; more than 1 is a bug.
    """

    def __init__(self, step: Step, goes_on: Callable[[], tf.Tensor]):
        self.traces = 0
        self._make_step = step
        self._goes_on = goes_on
        # A tf.function per instance: one on the class keeps the graphs and models of all instances. AutoGraph off: it
        # doubles the time of tracing.
        self._loop = tf.function(self._trace, autograph=False)

    def run(self, iterator: Any, num_steps: int) -> np.ndarray:
        """Makes `num_steps` steps, or fewer if it is asked to stop.

        Returns float64 [steps made, 2]: seconds that the host waited for each batch, and the total time of each step.
        Under op determinism, which forbids clocks in compiled code, and where the system's clock, the only one there,
        was set meanwhile: NaN, and the mean over the steps.
        """
        clock, began = time.time(), time.perf_counter()
        times = self._loop(iterator, tf.constant(num_steps, tf.int64)).numpy()
        seconds = time.perf_counter() - began
        was_set = abs(time.time() - clock - seconds) > max(CLOCK_TOLERANCE, CLOCK_DRIFT * seconds)
        if len(times) and (tf_config.is_op_determinism_enabled() or was_set or times.min() < 0):
            times[:] = np.nan, seconds / len(times)
        return times

    def graph(self, iterator: Any) -> tf.Graph:
        """The graph of the loop for the batches of an iterator, without taking one."""
        return self._loop.get_concrete_function(iterator, tf.constant(1, tf.int64)).graph

    def _trace(self, iterator: Any, num_steps: tf.Tensor) -> tf.Tensor:
        self.traces += 1

        def is_running(done: tf.Tensor, *_: Any) -> tf.Tensor:
            return (done < num_steps) & self._goes_on()

        def step(
            done: tf.Tensor, began: tf.Tensor, times: tf.TensorArray
        ) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
            asked = _timestamp_after([])
            with tf.control_dependencies([asked]):
                batch = next(iterator)
            waited = _timestamp_after(batch, on_host=True) - asked
            ended = _timestamp_after(self._make_step(batch, done + 1 == num_steps))
            times = times.write(tf.cast(done, tf.int32), tf.stack([waited, ended - began]))
            return done + 1, ended, times

        times = tf.TensorArray(tf.float64, size=0, dynamic_size=True, element_shape=[2])
        *_, times = tf.while_loop(is_running, step, (tf.constant(0, tf.int64), _timestamp_after([]), times))
        return times.stack()


def _timestamp_after(value: Any, *, on_host: bool = False) -> tf.Tensor:
    """Seconds since 1970, float64, read on the host once some tensors are computed; 0 under op determinism.

    One number of each tensor is copied to the host, which waits for all that the device was doing before. With
    `on_host` none is: the time is that at which the host had the tensors.
    """
    if tf_config.is_op_determinism_enabled():
        return tf.constant(0.0, tf.float64)
    tensors = tf.nest.flatten(value, expand_composites=True)
    if not on_host:
        first = [tf.reshape(part, [-1])[0] for part in tensors]
        with tf.device("cpu:0"):
            tensors = [tf.identity(part) for part in first]
    with tf.device("cpu:0"), tf.control_dependencies(tensors):
        return tf.timestamp()
