import keras
import numpy as np
import pytest
import tensorflow as tf

from petseg import optimization
from petseg.optimization import LossScale


def test_the_learning_rate_follows_the_clock():
    schedule = optimization.learning_rate_schedule("cosine", 0.5, 100)
    values = [float(schedule(tf.constant(step, tf.int64))) for step in (0, 50, 100)]
    np.testing.assert_allclose(values, [0.5, 0.25, 0.0], atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_are_built(name):
    variable = keras.Variable([1.0, 2.0])
    optimizer = optimization.make_optimizer(name, [variable])
    assert optimizer.built
    before = variable.numpy().copy()
    optimizer.apply_gradients([(tf.constant([1.0, -1.0]), variable)])
    assert ((variable.numpy() - before) * [1, -1] < 0).all()


def scales(loss_scale, steps):
    """The scale after each step, and whether the scale explained the step."""
    explained, values = [], []
    for finite in steps:
        explained.append(bool(loss_scale.update(tf.constant(finite))))
        values.append(float(loss_scale.value()))
    return values, explained


def test_the_loss_scale_halves_on_overflow_and_doubles_after_many_finite_steps():
    loss_scale = LossScale(initial=8.0, growth_interval=3, dynamic=True)
    values, explained = scales(loss_scale, [True, True, False, True, True, True, True, True, True])
    assert values == [8, 8, 4, 4, 4, 8, 8, 8, 16]
    assert all(explained)
    assert int(loss_scale.skipped_steps) == 1


def test_the_loss_scale_stops_at_1_and_then_explains_nothing():
    values, explained = scales(LossScale(initial=4.0, growth_interval=3, dynamic=True), [False] * 4)
    assert values == [2, 1, 1, 1]
    assert explained == [True, True, False, False]


def test_a_loss_scale_that_is_not_in_use_is_1_and_keeps_what_a_checkpoint_holds():
    loss_scale = LossScale(initial=8.0, growth_interval=1, dynamic=False)
    values, explained = scales(loss_scale, [True, False, True])
    assert values == [1, 1, 1]
    assert explained == [True, False, True]
    assert int(loss_scale.skipped_steps) == 1
    assert [float(v) for v in loss_scale.variables if v.dtype == tf.float32] == [8.0]
