import keras
import numpy as np
import pytest
import tensorflow as tf

from petseg.config import ComputeConfig, OptimizerConfig
from petseg.errors import ConfigError
from petseg.training import learning_rates, optimizers
from petseg.training.loss_scale import LossScale


def rates(steps, total_steps, name, **options):
    config = OptimizerConfig(learning_rate_schedule=name, learning_rate=0.5, **options)
    schedule = learning_rates.learning_rate_schedule(config, total_steps)
    return [float(schedule(tf.constant(step, tf.int64))) for step in steps]


def test_learning_rates_of_each_schedule():
    assert rates((0, 50, 1000), 100, "constant") == [0.5] * 3
    np.testing.assert_allclose(rates((0, 50, 100), 100, "cosine"), [0.5, 0.25, 0.0], atol=1e-6)
    np.testing.assert_allclose(
        rates((0, 50, 100), 100, "polynomial", polynomial_power=2.0), [0.5, 0.125, 0.0], atol=1e-6
    )
    np.testing.assert_allclose(
        rates((0, 49, 50, 74, 75, 99), 100, "step", drop_at="0.5,0.75", drop_factor=0.1),
        [0.5, 0.5, 0.05, 0.05, 0.005, 0.005],
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", ["constant", "cosine", "polynomial", "step"])
def test_a_warm_up_rises_in_a_line_and_the_schedule_fills_the_rest(name):
    warm = rates(range(110), 110, name, warmup_steps=10, drop_at="0.5")
    np.testing.assert_allclose(warm[:10], 0.5 * np.arange(1, 11) / 11, rtol=1e-6)
    np.testing.assert_allclose(warm[10:], rates(range(100), 100, name, drop_at="0.5"), atol=1e-7)


def test_a_warm_up_must_leave_something_of_the_run():
    with pytest.raises(ConfigError, match=r"--warmup_steps=10: must be less than the 10 steps of the run"):
        rates((0,), 10, "cosine", warmup_steps=10)


def constant(rate):
    return lambda step: tf.constant(rate)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_each_group_has_its_learning_rate_and_may_stand_still_at_first(name):
    variables = [keras.Variable([1.0, 2.0]) for _ in range(3)]
    rate = constant(0.1)
    groups = [
        optimizers.Group(variables[:1], rate),
        optimizers.Group(variables[1:2], learning_rates.scaled(rate, 0.5)),
        optimizers.Group(variables[2:], learning_rates.scaled(rate, 1.0, first_step=2)),
    ]
    optimizer = optimizers.Optimizer(
        OptimizerConfig(optimizer=name, weight_decay=1e-9 if name == "adamw" else 0.0), groups
    )
    moved = []
    for step in range(3):
        before = [variable.numpy() for variable in variables]
        optimizer.set_learning_rates(tf.constant(step, tf.int64))
        optimizer.apply(optimizer.join([tf.constant([0.5, -0.5])] * 3))
        moved.append([old - variable.numpy() for old, variable in zip(before, variables, strict=True)])
    assert int(optimizer.iterations) == 3
    for step, (first, second, third) in enumerate(moved):
        assert (first * [1, -1] > 0).all()
        np.testing.assert_allclose(second, first / 2, rtol=1e-3)
        np.testing.assert_allclose(third, first if step == 2 and name != "sgd" else (step == 2) * third, rtol=1e-3)
        assert third.any() == (step == 2)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_takes_its_share_of_kernels_and_leaves_biases_and_norms_alone(name):
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(3), keras.layers.BatchNormalization()])
    for variable in model.trainable_variables:
        variable.assign(tf.ones(variable.shape))
    group = optimizers.Group(model.trainable_variables, constant(0.1))
    optimizer = optimizers.Optimizer(OptimizerConfig(optimizer=name, weight_decay=0.2), [group])
    optimizer.set_learning_rates(tf.constant(0, tf.int64))
    optimizer.apply(optimizer.join([tf.zeros(variable.shape) for variable in model.trainable_variables]))
    kernel, *others = model.trainable_variables
    np.testing.assert_allclose(kernel, np.full([2, 3], 1 - 0.1 * 0.2), rtol=1e-6)
    assert len(others) == 3
    for variable in others:
        np.testing.assert_array_equal(variable, np.ones(variable.shape))


def test_a_keras_whose_optimizers_reduce_under_another_name_is_refused(monkeypatch):
    # It would sum the gradients of N replicas once more, which only the loss would show.
    (owner,) = [kind for kind in keras.optimizers.SGD.__mro__ if "_all_reduce_sum_gradients" in vars(kind)]
    monkeypatch.delattr(owner, "_all_reduce_sum_gradients")
    with pytest.raises(RuntimeError, match=rf"Keras {keras.__version__}: its optimizers have no `_all_reduce_sum_g"):
        optimizers.Optimizer(
            OptimizerConfig(optimizer="sgd"), [optimizers.Group([keras.Variable([0.0])], constant(1.0))]
        )


def test_sgd_accumulates_momentum():
    variable = keras.Variable([0.0])
    config = OptimizerConfig(optimizer="sgd", momentum=0.5)
    optimizer = optimizers.Optimizer(config, [optimizers.Group([variable], constant(1.0))])
    optimizer.set_learning_rates(tf.constant(0, tf.int64))
    for expected in (-1.0, -2.5, -4.25):
        optimizer.apply([tf.constant([1.0])])
        assert float(variable[0]) == expected


def scale_of(initial, growth_interval, precision="mixed_float16"):
    return LossScale(
        ComputeConfig(precision=precision, initial_loss_scale=initial, loss_scale_growth_interval=growth_interval)
    )


def scales(loss_scale, steps):
    """The scale after each step, and whether it accounts for the step."""
    accounted_for, values = [], []
    for finite in steps:
        accounted_for.append(bool(loss_scale.update(tf.constant(finite))))
        values.append(float(loss_scale.value()))
    return values, accounted_for


def test_the_loss_scale_halves_on_overflow_and_doubles_after_many_finite_steps():
    loss_scale = scale_of(8.0, 3)
    values, accounted_for = scales(loss_scale, [True, True, False, True, True, True, True, True, True])
    assert values == [8, 8, 4, 4, 4, 8, 8, 8, 16]
    assert all(accounted_for)
    assert int(loss_scale.skipped_steps) == 1


def test_the_loss_scale_stops_at_1_and_then_accounts_for_nothing():
    values, accounted_for = scales(scale_of(4.0, 3), [False] * 4)
    assert values == [2, 1, 1, 1]
    assert accounted_for == [True, True, False, False]


def test_a_loss_scale_that_is_not_in_use_is_1_and_keeps_what_a_checkpoint_holds():
    loss_scale = scale_of(8.0, 1, "float32")
    values, accounted_for = scales(loss_scale, [True, False, True])
    assert values == [1, 1, 1]
    assert accounted_for == [True, False, True]
    assert int(loss_scale.skipped_steps) == 1
    assert [float(v) for v in loss_scale.variables if v.dtype == tf.float32] == [8.0]
