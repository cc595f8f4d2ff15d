import keras
import numpy as np
import pytest
import tensorflow as tf

from petseg import losses, sample_weights


def test_weighted_losses_of_single_pixels():
    logits = tf.constant([[-3.0, 0.0], [-3.0, 0.0]])[None]
    per_pixel = losses.sparse_categorical_crossentropy(tf.constant([[0, 0]]), logits) * [[1.0, 10.0]]
    np.testing.assert_allclose(per_pixel, [[3.0486, 30.4859]], atol=1e-4)


@pytest.mark.parametrize("class_weights", [None, (2.0, 2.0, 1.0)])
def test_the_whole_loss_is_that_of_keras(class_weights):
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (4, 16, 16, 1), np.uint8)
    logits = rng.normal(size=(4, 16, 16, 3)).astype(np.float32) * 3
    weights = sample_weights.sample_weight_map(tf.constant(mask), class_weights)
    ours = losses.weighted_sum(losses.sparse_categorical_crossentropy(mask[..., 0], logits), weights) / mask.size
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    theirs = keras_loss(mask[..., 0], logits, sample_weight=weights)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_ignored_pixels_add_nothing_even_where_the_loss_is_infinite():
    mask = tf.constant([0, sample_weights.IGNORED], tf.uint8)[None, None, :, None]
    logits = tf.constant([[0.0, 0.0, 0.0], [np.inf, 0.0, 0.0]])[None, None]
    weights = sample_weights.sample_weight_map(mask, None)
    total = losses.weighted_sum(losses.sparse_categorical_crossentropy(mask[..., 0], logits), weights)
    np.testing.assert_allclose(total, np.log(3), rtol=1e-6)
