"""Operations of a step, counted from its graph; and what its times are of."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
import two_convolutions
from conftest import random_examples
from tensorflow.python.framework import config as tf_config
from trainers import make_trainer

from petseg.training import flops


def convolutions(frozen):
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.Conv2D(5, 3, padding="same", use_bias=False, trainable=not frozen)(inputs)
    return keras.Model(inputs, keras.layers.Conv2DTranspose(2, 3, strides=2, padding="same", use_bias=False)(x))


def step_of(model, *, jit_compile):
    @tf.function(jit_compile=jit_compile)
    def step(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(images, training=True))
        return [loss, *tape.gradient(loss, [weight.value for weight in model.trainable_variables])]

    return step


def counted(function, batch_size):
    outer = tf.function(lambda images: function(images))
    spec = tf.TensorSpec([batch_size, 8, 8, 3], tf.float32)
    return flops.flops(outer.get_concrete_function(spec).graph) / batch_size


@pytest.mark.parametrize("jit_compile", [False, True])  # the function that XLA compiles is called by the graph
def test_operations_include_only_the_gradients_of_trained_weights(jit_compile):
    first, second = 2 * 8 * 8 * 9 * 3 * 5, 2 * 8 * 8 * 9 * 5 * 2
    frozen = counted(step_of(convolutions(frozen=True), jit_compile=jit_compile), 4)
    trained = counted(step_of(convolutions(frozen=False), jit_compile=jit_compile), 4)
    assert frozen == (first + second) + second  # forward, and the second's kernel
    assert trained == frozen + second + first  # and the second's input, and the first's kernel


def test_products_of_matrices_count_and_unknown_shapes_are_not_guessed():
    product = tf.function(lambda a, b: tf.matmul(a, b, transpose_a=True))
    for sizes, expected in (([3, 5, 7], 2.0 * 3 * 5 * 7), ([None, 5, 7], np.nan)):
        inner, rows, columns = sizes
        specs = tf.TensorSpec([inner, rows]), tf.TensorSpec([inner, columns])
        np.testing.assert_equal(flops.flops(product.get_concrete_function(*specs).graph), expected)


@pytest.mark.slow
def test_the_operations_of_an_image_do_not_depend_on_replicas_and_micro_batches():
    """And counting them does not trace the loop again."""
    found = []
    for number, micro_batches in ((1, 1), (2, 2)):
        trainer, _, batches = make_trainer(
            number, examples=random_examples(8), batch_size=8, micro_batches=micro_batches
        )
        trainer.compile(batches)
        found.append(trainer.flops_per_image(batches))
        assert trainer.loop.traces == 1
    assert found[0] > 1e6
    assert found == pytest.approx([found[0]] * 2)


@pytest.fixture
def clocks():
    """Op determinism, under which a step has no clock, is off, whatever ran before in this process."""
    deterministic = tf_config.is_op_determinism_enabled()
    tf_config.disable_op_determinism()
    yield
    if deterministic:
        tf_config.enable_op_determinism()


@pytest.mark.slow
@pytest.mark.parametrize(("slow", "lower", "upper"), [("input", 0.4, 1.0), ("update", 0.0, 0.2)])
def test_the_host_waits_for_the_input_only_and_not_for_the_update_before(slow, lower, upper, clocks, monkeypatch):
    pause = 0.2
    trainer, _, batches = make_trainer(examples=random_examples(8), network=two_convolutions.synchronized)

    def sleep():
        time.sleep(pause)
        return np.float32(0)

    def sleep_in_graph():
        return tf.numpy_function(sleep, [], tf.float32)

    if slow == "input":
        batch = next(batches)

        def late_batch(number):
            with tf.control_dependencies([sleep_in_graph()]):
                return {key: tf.identity(value) for key, value in batch.items()}

        batches = iter(tf.data.Dataset.range(100).map(late_batch))
    else:
        apply = trainer.optimizer.apply

        def slow_apply(*gradients):
            with tf.control_dependencies([sleep_in_graph()]):
                return apply(*gradients)

        monkeypatch.setattr(trainer.optimizer, "apply", slow_apply)
    trainer.run(batches, 1)
    waited, took = trainer.run(batches, 4)[1:].sum(axis=0)
    assert took > 2.9 * pause
    assert lower <= waited / took <= upper
