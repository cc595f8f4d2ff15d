import contextlib

import keras
import numpy as np
import tensorflow as tf
import two_convolutions
from conftest import random_examples
from trainers import make_trainer

from petseg.runs import checkpoints
from petseg.runs.checkpoints import Checkpoints
from petseg.training.weight_averaging import WeightAverage


def small_model():
    inputs = keras.Input([2])
    frozen = keras.layers.Dense(2, trainable=False)
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.BatchNormalization()(frozen(inputs))))


def everything(model):
    return np.concatenate([weight.reshape(-1) for weight in model.get_weights()])


def test_the_average_follows_the_weights_quickly_at_first_and_then_by_its_decay():
    model = small_model()
    average = WeightAverage(model, 0.75)
    kernel = model.layers[-1].kernel
    expected = kernel.numpy()
    for step in range(60):
        kernel.assign(tf.fill(kernel.shape, float(step)))
        average.update(tf.constant(step, tf.int64))
        decay = min(0.75, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.in_place():
        np.testing.assert_allclose(kernel, expected, rtol=1e-5)
    np.testing.assert_array_equal(kernel, np.full([2, 1], 59.0))


def test_all_that_training_changes_is_averaged_and_put_back_even_after_an_error():
    trainer, _, batches = make_trainer(examples=random_examples(8), ema_decay=0.9, learning_rate=0.1)
    before = everything(trainer.model)
    trainer.run(batches, 3)
    after = everything(trainer.model)
    averaged = []
    with contextlib.suppress(KeyError), trainer.average.in_place():
        averaged.append(everything(trainer.model))
        raise KeyError
    np.testing.assert_array_equal(everything(trainer.model), after)
    changed = before != after
    between = (averaged[0][changed] - before[changed]) / (after[changed] - before[changed])
    assert 0 < np.median(between) < 1
    statistics = trainer.model.get_layer("batch_norm_512").moving_mean
    now = statistics.numpy()
    with trainer.average.in_place():
        assert (statistics.numpy() != now).all()


def test_a_step_that_is_not_finite_leaves_the_average_alone():
    trainer, _, batches = make_trainer(
        examples=random_examples(8), ema_decay=0.9, learning_rate=1e30, network=two_convolutions.synchronized
    )
    trainer.run(batches, 10)
    kept = [variable.numpy() for variable in trainer.average.variables]
    trainer.clear_nonfinite_step()
    trainer.run(batches, 1)
    for old, new in zip(kept, trainer.average.variables, strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_checkpoint_holds_the_averages(tmp_path):
    model, step = small_model(), tf.Variable(7, dtype=tf.int64)
    average = WeightAverage(model, 0.5)
    model.layers[-1].kernel.assign([[1.0], [2.0]])
    average.update(tf.constant(100, tf.int64))
    Checkpoints(tmp_path, keep=1, model=model, average=average, step=step).save(7)
    with average.in_place():
        expected = everything(model)
    other = small_model()
    other_average = WeightAverage(other, 0.5)
    assert checkpoints.restore_model(str(tmp_path / "ckpt-7"), model=other, average=other_average) == 7
    other_average.swap()
    np.testing.assert_array_equal(everything(other), expected)
