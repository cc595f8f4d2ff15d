"""Updates of flat vectors against Keras's own updates of each weight, and the checkpoints of both."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import replicas

from petseg.config import OptimizerConfig
from petseg.runs.checkpoints import Checkpoints
from petseg.training import optimizers
from petseg.training.weight_averaging import WeightAverage

SHAPES = (3, 3, 2, 5), (5,), (7,), (5, 4), (1, 129)


def make_weights():
    rng = np.random.default_rng(0)
    weights = [keras.Variable(rng.normal(size=shape).astype(np.float32)) for shape in SHAPES]
    weights[3].constraint = keras.constraints.NonNeg()
    return weights


def make_gradients(step):
    rng = np.random.default_rng(step)
    return [tf.constant(rng.normal(size=shape).astype(np.float32)) for shape in SHAPES]


def train(update, weights, steps):
    @tf.function(autograph=False)
    def step(gradients):
        update.load()
        update.optimizer.apply_gradients(zip(update.join(gradients), update.variables, strict=True))
        update.store()

    for number in steps:
        step(make_gradients(number))
    return [weight.numpy() for weight in weights]


def assert_equal(arrays, others):
    for array, other in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("kind", sorted(optimizers.ELEMENTWISE, key=lambda kind: kind.__name__))
def test_flat_vectors_have_the_bits_of_updates_by_weight(kind):
    found = []
    for build in (optimizers.update_of, optimizers.PerWeight):
        weights = make_weights()
        update = build(kind(0.1, weight_decay=0.2), weights)
        found.append(train(update, weights, range(3)))
        assert (len(update.variables) == 2) == (build is optimizers.update_of)  # decayed and exempt weights
    if kind in (
        keras.optimizers.Adagrad,
        keras.optimizers.RMSprop,
    ):  # TensorFlow takes an approximate 1 / sqrt for them
        for flat, separate in zip(*found, strict=True):
            np.testing.assert_allclose(flat, separate, rtol=1e-5)
    else:
        assert_equal(*found)


@pytest.mark.parametrize(
    "optimizer", [keras.optimizers.Adam(clipnorm=1.0), keras.optimizers.Lamb(), keras.optimizers.Adafactor()]
)
def test_optimizers_that_look_at_whole_weights_get_them(optimizer):
    weights = make_weights()
    update = optimizers.update_of(optimizer, weights)
    assert update.variables == weights
    assert all(np.isfinite(weight).all() for weight in train(update, weights, range(2)))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_checkpoints_of_updates_by_weight_go_on_in_flat_vectors_and_the_other_way_round(tmp_path, monkeypatch, name):
    config = OptimizerConfig(optimizer=name, weight_decay=0.2 if name == "adamw" else 0.0)

    def build(elementwise, devices=1):
        monkeypatch.setattr(optimizers, "ELEMENTWISE", elementwise)
        strategy = replicas(devices)
        with strategy.scope():
            weights = make_weights()
            groups = [optimizers.Group(weights[:2], lambda _: 0.1), optimizers.Group(weights[2:], lambda _: 0.05)]
            optimizer = optimizers.Optimizer(config, groups)

        @tf.function(autograph=False)
        def step(gradients):
            optimizer.set_learning_rates(optimizer.iterations.value)
            strategy.run(lambda: optimizer.apply(optimizer.join(gradients)))

        return optimizer, Checkpoints(tmp_path, keep=2, optimizer=optimizer), step

    flat, separate = optimizers.ELEMENTWISE, frozenset()
    whole, checkpoints, step = build(separate)
    expected = []
    for number in range(6):
        step(make_gradients(number))
        expected.append([weight.numpy() for weight in whole.weights])
        if number == 1:
            checkpoints.save(2)
    joined, checkpoints, step = build(flat, devices=2)
    checkpoints.restore(str(tmp_path / "ckpt-2"))
    for number in range(2, 5):
        step(make_gradients(number))
        checkpoints.save(number + 1)  # each time the values of that step
    for weight, value in zip(joined.weights, expected[4], strict=True):
        for copy in weight.value.values:
            np.testing.assert_array_equal(copy.numpy(), value)
    again, checkpoints, step = build(separate)
    checkpoints.restore(str(tmp_path / "ckpt-5"))
    step(make_gradients(5))
    assert int(again.iterations.numpy()) == 6
    assert_equal([weight.numpy() for weight in again.weights], expected[5])


def test_averages_are_stored_one_by_one_as_ever(tmp_path):
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(3), keras.layers.BatchNormalization()])
    former = tf.Module()
    former._averages = [tf.Variable(tf.fill(v.shape, float(i))) for i, v in enumerate(model.weights)]
    Checkpoints(tmp_path, keep=1, model=model, average=former).save(1)
    average = WeightAverage(model, 0.9)
    Checkpoints(tmp_path, keep=1, model=model, average=average).restore(str(tmp_path / "ckpt-1"))
    with average.in_place():
        for i, weight in enumerate(model.weights):
            np.testing.assert_array_equal(weight.numpy(), np.full(weight.shape, i))
