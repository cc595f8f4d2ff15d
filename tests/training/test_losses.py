import keras
import numpy as np
import pytest
import tensorflow as tf

from petseg.classes import IGNORED
from petseg.config import LossConfig
from petseg.training import losses, sample_weights
from petseg.training.losses import Loss

LOSSES = {
    name: losses.Loss(
        LossConfig(
            loss=name.split("+")[0],
            label_smoothing=0.1 if "smoothing" in name else 0.0,
            loss_normalization=normalization,
        )
    )
    for name in ("cross_entropy", "cross_entropy+smoothing", "focal", "focal+smoothing", "dice", "cross_entropy_dice")
    for normalization in ("pixels", "weights")
}


def batch(seed=0, size=6):
    """Masks with pixels in no class, logits, weights, and which pixels are valid."""
    rng = np.random.default_rng(seed)
    masks = rng.choice(np.array([0, 1, 2, 255], np.uint8), (4, size, size, 1), p=[0.3, 0.4, 0.2, 0.1])
    logits = tf.constant(rng.normal(size=(4, size, size, 3)) * 2, tf.float32)
    weights = sample_weights.weight_map(LossConfig(boundary_weight=0.5), (0.5, 0.3, 0.2))(tf.constant(masks))
    return masks[..., 0], logits, weights, masks[..., 0] != IGNORED


def test_cross_entropy_of_single_pixels():
    logits = tf.constant([[-3.0, 0.0], [-3.0, 0.0]])[None]
    per_pixel = losses.pixel_losses(tf.constant([[0, 0]]), logits) * [[1.0, 10.0]]
    np.testing.assert_allclose(per_pixel, [[3.0486, 30.4859]], atol=1e-4)


@pytest.mark.parametrize("class_weights", [None, (2.0, 2.0, 1.0)])
def test_weighted_cross_entropy_equals_keras(class_weights):
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (4, 16, 16, 1), np.uint8)
    logits = rng.normal(size=(4, 16, 16, 3)).astype(np.float32) * 3
    weights = sample_weights.weight_map(LossConfig(), class_weights)(tf.constant(mask))
    total, count = Loss(LossConfig()).sums(mask[..., 0], logits, weights, sample_weights.valid_pixels(mask))
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(total / count, keras_loss(mask[..., 0], logits, sample_weight=weights), rtol=1e-6)


@pytest.mark.parametrize(("gamma", "smoothing"), [(0.0, 0.1), (2.0, 0.0), (0.5, 0.0), (2.0, 0.1)])
def test_focal_loss_and_label_smoothing_equal_keras(gamma, smoothing):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 8, 8))
    logits = rng.normal(size=(4, 8, 8, 3)).astype(np.float32) * 2
    keras_loss = keras.losses.CategoricalFocalCrossentropy(
        alpha=1.0, gamma=gamma, from_logits=True, label_smoothing=smoothing, reduction=None
    )
    ours = losses.pixel_losses(labels, logits, focal_gamma=gamma, label_smoothing=smoothing)
    np.testing.assert_allclose(ours, keras_loss(np.eye(3)[labels], logits), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_equal_numerical_gradients(loss):
    labels, logits, weights, valid = batch(size=4)

    def value(logits):
        total, divisor = loss.sums(labels, tf.reshape(logits, [4, 4, 4, 3]), weights, valid)
        return total / divisor

    (analytic,), (numeric,) = tf.test.compute_gradient(value, [tf.reshape(logits, [-1])], delta=1e-2)
    assert np.abs(analytic).max() > 1e-3
    np.testing.assert_allclose(analytic, numeric, atol=2e-4)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_sums_of_a_batch_are_the_sums_over_its_examples(loss):
    arguments = batch()
    whole = loss.sums(*arguments)
    parts = [loss.sums(*(argument[i : i + 1] for argument in arguments)) for i in range(4)]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_ignored_pixels_add_nothing_even_where_the_loss_is_infinite(loss):
    labels, logits, weights, valid = batch()
    wild = tf.where(valid[..., None], logits, [np.inf, 0.0, 0.0])
    np.testing.assert_allclose(loss.sums(labels, wild, weights, valid), loss.sums(labels, logits, weights, valid))


def test_focal_gradients_are_finite_for_certain_predictions():
    with tf.GradientTape() as tape:
        logits = tf.constant([[[[100.0, 0.0, 0.0]]]])
        tape.watch(logits)
        total = tf.reduce_sum(losses.pixel_losses([[[0]]], logits, focal_gamma=0.5))
    assert np.isfinite(tape.gradient(total, logits)).all()


def test_dice_is_0_where_all_is_right_and_near_1_where_nothing_is():
    labels = np.array([[[0, 0], [1, 2]], [[1, 1], [2, 0]]]).repeat(8, 1).repeat(8, 2)
    ones = tf.ones(labels.shape)
    right, wrong = tf.one_hot(labels, 3) * 50, tf.one_hot((labels + 1) % 3, 3) * 50
    np.testing.assert_allclose(losses.soft_dice(labels, right, ones), [0, 0], atol=1e-4)
    assert (losses.soft_dice(labels, wrong, ones).numpy() > 0.95).all()


def test_soft_dice_equals_the_formula():
    labels = np.array([[[0, 1]]])
    logits = tf.math.log([[[[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]]])
    weights = tf.constant([[[2.0, 1.0]]])
    scores = [(2 * 1.0 + 1) / (1.25 + 2 + 1), (2 * 0.25 + 1) / (0.75 + 1 + 1), 1 / (1.0 + 0 + 1)]
    np.testing.assert_allclose(losses.soft_dice(labels, logits, weights), [1 - np.mean(scores)], rtol=1e-5)
