import numpy as np
import pytest
import tensorflow as tf

from petseg.classes import IGNORED
from petseg.config import AugmentationConfig, LossConfig
from petseg.training import augmentation, sample_weights

BATCH, SIZE = 16, 24
FLIP, STRONG = AugmentationConfig(augment="flip"), AugmentationConfig(augment="strong")
GEOMETRY = AugmentationConfig(augment="none", flip=0.5, crop_area=0.3, crop_aspect=1.4, rotation=40)


def batch():
    """Images that hold pixel coordinates in red and green, and random masks."""
    masks = np.random.default_rng(0).integers(0, 3, (BATCH, SIZE, SIZE, 1), np.uint8)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    images = np.broadcast_to(np.stack([x, y, 0 * x], axis=-1), (BATCH, SIZE, SIZE, 3))
    return images, masks


def augmented(config, step=0, rows=range(BATCH), seed=0, images=None):
    """Augments some rows of the batch."""
    places, masks = batch()
    images = places if images is None else images
    rows = np.asarray(rows, np.int64)
    augment = augmentation.build_augmentation(config, seed=seed, batch_size=BATCH)
    out = augment(tf.constant(images[rows]), tf.constant(masks[rows]), tf.constant(step, tf.int64), tf.constant(rows))
    return tuple(part.numpy() for part in out)


@pytest.mark.parametrize("config", [FLIP, GEOMETRY], ids=["flip", "crop and rotate"])
def test_image_and_mask_change_together(config):
    _, before = batch()
    seen = 0
    for step in range(5):
        images, masks = augmented(config, step)
        for image, mask, old in zip(images, masks, before, strict=True):
            x, y = image[..., 0], image[..., 1]  # coordinates in the original, interpolated bilinearly
            inner = (x > 0.01) & (x < SIZE - 1.01) & (y > 0.01) & (y < SIZE - 1.01)  # others may be reflections
            clear = (np.abs(x % 1 - 0.5) > 0.01) & (np.abs(y % 1 - 0.5) > 0.01)  # not halfway between neighbours
            known = inner & clear & (mask[..., 0] != IGNORED)
            nearest = old[np.round(y).astype(int), np.round(x).astype(int), 0]
            np.testing.assert_array_equal(mask[known][:, 0], nearest[known])
            seen += known.sum()
    assert seen > 0.5 * 5 * BATCH * SIZE * SIZE


def test_flip_mirrors_half_of_the_examples():
    flips = [np.mean(augmented(FLIP, step)[0][:, 0, 0, 0] == SIZE - 1) for step in range(20)]
    assert 0.4 < np.mean(flips) < 0.6


def test_pixels_from_outside_the_image_are_ignored():
    images, masks = batch()
    turn, ones = tf.fill([BATCH], np.float32(np.pi / 4)), tf.ones([BATCH])
    half = ones / 2
    _, masks = augmentation.crop_and_rotate(tf.constant(images), tf.constant(masks), ones, ones, turn, half, half)
    corners = masks.numpy()[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == IGNORED).all()
    outside = np.mean(masks == IGNORED)
    rotated_and_original = 2 * np.sqrt(2) - 2  # share of a square that its copy, rotated by 45 degrees, covers
    assert outside == pytest.approx(1 - rotated_and_original, abs=0.03)
    weights = sample_weights.weight_map(LossConfig(boundary_weight=1.0), (0.2, 0.3, 0.5))(masks).numpy()
    np.testing.assert_array_equal(weights == 0, (masks == IGNORED)[..., 0])


def test_crops_stay_inside_the_image_within_the_bounds_of_area_and_aspect():
    areas, aspects = [], []
    for step in range(20):
        images, masks = augmented(AugmentationConfig(augment="none", crop_area=0.25, crop_aspect=1.5), step)
        assert (masks != IGNORED).all()
        middle = SIZE // 2
        width = (images[:, middle, middle + 4, 0] - images[:, middle, middle - 4, 0]) / 8
        height = (images[:, middle + 4, middle, 1] - images[:, middle - 4, middle, 1]) / 8
        areas += list(width * height)
        aspects += list(np.where(np.maximum(width, height) < 0.999, width / height, 1))
    assert 0.25 <= min(areas) + 1e-4 < 0.3
    assert 0.9 < max(areas) <= 1.0001
    assert 1 / 1.5 <= min(aspects) + 1e-4 < 0.75
    assert 1.35 < max(aspects) <= 1.5 + 1e-4


@pytest.mark.parametrize("name", ["flip", "standard", "strong"])
def test_augmentation_does_not_depend_on_the_replica(name):
    config = AugmentationConfig(augment=name)
    whole = augmented(config, 5)
    left, right = augmented(config, 5, range(BATCH // 2)), augmented(config, 5, range(BATCH // 2, BATCH))
    for every, *halves in zip(whole, left, right, strict=True):
        np.testing.assert_array_equal(every, np.concatenate(halves))


def test_augmentation_differs_between_steps_and_seeds():
    results = [augmented(STRONG, step, seed=seed)[0] for step, seed in ((0, 0), (1, 0), (0, 1))]
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_switching_on_a_change_does_not_affect_the_draws_of_another():
    flipped = augmented(FLIP)[0][:, 0, 0, 0] > augmented(FLIP)[0][:, 0, -1, 0]
    moved = augmented(GEOMETRY)[0]
    assert ((moved[:, 12, 4, 0] > moved[:, 12, -4, 0]) == flipped).all()


def test_augment_none_changes_nothing():
    images, masks = augmented(AugmentationConfig(augment="none"))
    np.testing.assert_array_equal(images, batch()[0])
    np.testing.assert_array_equal(masks, batch()[1])


def recoloured(**changes):
    images = np.random.default_rng(1).uniform(60, 190, (2, 4, 4, 3)).astype(np.float32)
    factors = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, **changes}
    return images, augmentation.recolour(images, **{k: tf.fill([2], np.float32(v)) for k, v in factors.items()}).numpy()


def luma(images):
    return images @ np.array([0.299, 0.587, 0.114], np.float32)


def test_brightness_contrast_saturation_and_hue():
    before, after = recoloured()
    np.testing.assert_allclose(after, before, atol=0.02)
    before, after = recoloured(brightness=1.2)
    np.testing.assert_allclose(after, before * 1.2, atol=0.02)
    before, after = recoloured(contrast=0.0)
    np.testing.assert_allclose(
        after, np.broadcast_to(before.mean(axis=(1, 2, 3), keepdims=True), before.shape), rtol=1e-4
    )
    before, after = recoloured(saturation=0.0)
    np.testing.assert_allclose(after, np.repeat(luma(before)[..., None], 3, -1), atol=0.02)
    before, after = recoloured(hue=0.05)
    np.testing.assert_allclose(luma(after), luma(before), atol=0.02)
    assert np.abs(after - before).max() > 5
    before, after = recoloured(hue=1.0)
    np.testing.assert_allclose(after, before, atol=0.05)
    _, after = recoloured(brightness=2.0)
    assert after.max() == 255


def test_cutout_paints_a_grey_square_and_keeps_the_mask():
    images = np.zeros((BATCH, SIZE, SIZE, 3), np.float32)
    sizes = []
    for step in range(10):
        changed, masks = augmented(AugmentationConfig(augment="none", cutout=0.25), step, images=images)
        np.testing.assert_array_equal(masks, batch()[1])
        assert set(np.unique(changed)) == {0, np.float32(127.5)}
        sizes += list((changed[..., 0] > 0).sum(axis=(1, 2)))
    assert max(sizes) in (36, 49)  # 6 or 7 pixels a side, by the centre
    assert 0 < min(sizes) < 36  # cut off at an edge
