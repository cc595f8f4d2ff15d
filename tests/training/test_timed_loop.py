"""Times of steps when the system's clock is set."""

import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from petseg.training import timed_loop
from petseg.training.timed_loop import TimedLoop


@pytest.mark.parametrize(("jump", "shift"), [(0, 0.0), (5, 3600.0), (5, -3600.0), (2, -0.002)])
def test_times_do_not_follow_a_clock_that_is_set(monkeypatch, jump, shift):
    readings = itertools.count()
    offset = [0.0]

    def reading():
        offset[0] = shift if next(readings) >= jump else 0.0
        return np.float64(time.time() + offset[0])

    # Another test of this process may have enabled it; there is no clock in the loop then.
    monkeypatch.setattr(timed_loop.tf_config, "is_op_determinism_enabled", lambda: False)
    monkeypatch.setattr(tf, "timestamp", lambda: tf.numpy_function(reading, [], tf.float64))
    clocks = SimpleNamespace(time=lambda: time.time() + offset[0], perf_counter=time.perf_counter)
    monkeypatch.setattr(timed_loop, "time", clocks)
    loop = TimedLoop(lambda batch, is_last: batch, lambda: tf.constant(value=True))
    began = time.perf_counter()
    times = loop.run(iter(tf.data.Dataset.range(4)), 4)
    seconds = time.perf_counter() - began
    assert times.shape == (4, 2)
    assert (times[:, 1] >= 0).all()
    assert times[:, 1].sum() <= seconds
    if abs(shift) != 0.002:  # whether a time was negative depends on the machine
        assert np.isnan(times[:, 0]).all() == bool(shift)
