"""Weight maps of the data in the training step: moved, multiplied, normalised, on any number of replicas."""

import numpy as np
import pytest
import tensorflow as tf
import two_convolutions
from conftest import random_examples
from trainers import make_trainer

from petseg.classes import IGNORED
from petseg.config import AugmentationConfig, LossConfig
from petseg.errors import ConfigError
from petseg.training import augmentation, sample_weights
from petseg.training.losses import Loss

EVERYTHING = AugmentationConfig(augment="strong", vertical_flip=0.5, quarter_turns=1, crop_area_max=2, rotation=30)


def with_maps(count, maps):
    examples = random_examples(count)
    examples.weights = maps
    return examples


def random_maps(count, dtype=np.float32):
    numbers = np.random.default_rng(5).uniform(0, 3, (count, 32, 32, 1))
    return (numbers * 80).astype(dtype) if dtype == np.uint8 else numbers.astype(dtype)


def own(images, masks, seeds, weights):
    return images, tf.reverse(masks, [2]), tf.reverse(weights, [2]) / 2


def moves_masks(images, masks, seeds):
    return images, tf.reverse(masks, [2])


def recolours(images, masks, seeds):
    return images / 2, masks


def augmented(config, *maps):
    masks = np.random.default_rng(0).integers(0, 3, (8, 24, 24, 1), np.uint8)
    maps = [tf.cast(masks, tf.float32) + 1 for _ in maps]
    augment = augmentation.build_augmentation(config, seed=3, batch_size=8)
    images, positions = tf.zeros([8, 24, 24, 3]), tf.range(8, dtype=tf.int64)
    return [part.numpy() for part in augment(images, tf.constant(masks), tf.constant(2, tf.int64), positions, *maps)]


def test_maps_move_with_their_masks_and_are_0_outside():
    _, masks, maps = augmented(EVERYTHING, "map")
    np.testing.assert_array_equal(maps, np.where(masks == IGNORED, 0, masks + 1.0))
    assert (masks == IGNORED).any()
    np.testing.assert_array_equal(augmented(EVERYTHING)[1], masks)


def test_a_custom_augmentation_gets_the_maps_if_it_asks_for_them():
    def of(name):
        return AugmentationConfig(augment=f"{__name__}:{name}")

    _, masks, maps = augmented(of("own"), "map")
    np.testing.assert_array_equal(maps, (masks + 1.0) / 2)
    assert len(augmented(of("own"))) == 3  # its weights count without maps too
    _, masks, maps = augmented(of("recolours"), "map")
    np.testing.assert_array_equal(maps, masks + 1.0)
    with pytest.raises(ConfigError, match=r"returns other masks, .* must have a parameter `weights`"):
        augmented(of("moves_masks"), "map")
    assert len(augmented(of("moves_masks"))) == 2


@pytest.mark.parametrize(("dtype", "scale", "one"), [(np.uint8, 0, 255), (np.uint16, 0, 65535), (np.uint8, 100, 100)])
def test_a_number_of_the_scale_counts_as_one(dtype, scale, one):
    (found,) = sample_weights.given({"weight": tf.constant(np.array([0, one], dtype))}, scale)
    assert found.numpy().tolist() == [0, 1]


def test_a_pixel_weighs_the_product_of_all_factors():
    masks = tf.constant(np.array([[0, 1], [2, IGNORED]], np.uint8)[None, ..., None])
    maps = tf.constant(np.array([[0.5, 4], [0, 7]], np.float32)[None, ..., None])
    weights = sample_weights.weight_map(LossConfig(), (1.0, 2.0, 3.0), f"{__name__}:ten")(masks, maps)
    assert weights.numpy().tolist() == [[[5, 80], [0, 0]]]


def ten(masks):
    return tf.fill(masks.shape[:3], 10.0)


def trained(examples, number=1, **options):
    network = two_convolutions.synchronized
    trainer, _, batches = make_trainer(number, examples=examples, batch_size=4, network=network, **options)
    trainer.run(batches, 3)
    return trainer.pop_measurements().scalars, trainer.weights()


@pytest.mark.slow
def test_maps_of_ones_give_the_same_bits_as_none():
    augment = augmentation.build_augmentation(AugmentationConfig(augment="strong"), seed=0, batch_size=4)
    scalars, weights = trained(random_examples(8), augment=augment)
    for maps in (np.ones([8, 32, 32, 1], np.float32), np.full([8, 32, 32, 1], 255, np.uint8)):
        found, others = trained(with_maps(8, maps), augment=augment)
        assert found["loss"] == scalars["loss"]
        for name, weight in weights.items():
            np.testing.assert_array_equal(others[name], weight)


def test_weighted_steps_do_not_depend_on_the_number_of_replicas():
    examples = with_maps(8, random_maps(8))
    examples.weights[::3, :20] = 0
    loss = Loss(LossConfig(loss="cross_entropy_dice", loss_normalization="weights"))
    (one, weights), (two, others) = (trained(examples, number, loss=loss) for number in (1, 2))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for name, weight in weights.items():
        np.testing.assert_allclose(others[name], weight, atol=1e-5)
    assert one["loss"] != trained(random_examples(8), loss=loss)[0]["loss"]
