import numpy as np
import pytest
import tensorflow as tf

from petseg.classes import IGNORED
from petseg.config import LossConfig
from petseg.training import augmentation, sample_weights
from petseg.training.augmentation import SETS, Parts

BATCH, SIZE = 16, 24
GEOMETRY = Parts(flip=0.5, crop_area=0.3, crop_aspect=1.4, rotation=40)


def batch():
    """Images that hold each pixel's place in red and green, and masks that are anything."""
    masks = np.random.default_rng(0).integers(0, 3, (BATCH, SIZE, SIZE, 1), np.uint8)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    images = np.broadcast_to(np.stack([x, y, 0 * x], axis=-1), (BATCH, SIZE, SIZE, 3))
    return images, masks


def augmented(parts, step=0, rows=range(BATCH), seed=0, images=None):
    """Augments some rows of the batch."""
    places, masks = batch()
    images = places if images is None else images
    rows = np.asarray(rows, np.int64)
    augment = augmentation.augmentation(parts, seed=seed, batch_size=BATCH)
    out = augment(tf.constant(images[rows]), tf.constant(masks[rows]), tf.constant(step, tf.int64), tf.constant(rows))
    return tuple(part.numpy() for part in out)


@pytest.mark.parametrize("parts", [SETS["flip"], GEOMETRY], ids=["flip", "all that moves"])
def test_image_and_mask_stay_together(parts):
    _, before = batch()
    seen = 0
    for step in range(5):
        images, masks = augmented(parts, step)
        for image, mask, old in zip(images, masks, before, strict=True):
            x, y = image[..., 0], image[..., 1]  # bilinear interpolation of places is where they came from
            inner = (x > 0.01) & (x < SIZE - 1.01) & (y > 0.01) & (y < SIZE - 1.01)  # the rest may be a reflection
            clear = (np.abs(x % 1 - 0.5) > 0.01) & (np.abs(y % 1 - 0.5) > 0.01)  # no tie between two neighbours
            known = inner & clear & (mask[..., 0] != IGNORED)
            nearest = old[np.round(y).astype(int), np.round(x).astype(int), 0]
            np.testing.assert_array_equal(mask[known][:, 0], nearest[known])
            seen += known.sum()
    assert seen > 0.5 * 5 * BATCH * SIZE * SIZE


def test_about_half_are_flipped():
    flips = [np.mean(augmented(SETS["flip"], step)[0][:, 0, 0, 0] == SIZE - 1) for step in range(20)]
    assert 0.4 < np.mean(flips) < 0.6


def test_pixels_from_outside_are_not_background_and_weigh_nothing():
    images, masks = batch()
    turn, ones = tf.fill([BATCH], np.float32(np.pi / 4)), tf.ones([BATCH])
    _, masks = augmentation.move(tf.constant(images), tf.constant(masks), ones, ones, turn, ones / 2, ones / 2)
    corners = masks.numpy()[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == IGNORED).all()
    outside = np.mean(masks == IGNORED)
    assert outside == pytest.approx(
        1 - (2 * np.sqrt(2) - 2), abs=0.03
    )  # what a square and its turned self do not share
    weights = sample_weights.weight_map(LossConfig(boundary_weight=1.0), (0.2, 0.3, 0.5))(masks).numpy()
    np.testing.assert_array_equal(weights == 0, (masks == IGNORED)[..., 0])


def test_a_crop_stays_inside_and_has_the_area_and_the_shape_that_were_asked_for():
    areas, aspects = [], []
    for step in range(20):
        images, masks = augmented(Parts(crop_area=0.25, crop_aspect=1.5), step)
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
def test_an_example_is_augmented_alike_whichever_replica_it_is_on(name):
    whole = augmented(SETS[name], 5)
    left, right = augmented(SETS[name], 5, range(BATCH // 2)), augmented(SETS[name], 5, range(BATCH // 2, BATCH))
    for every, *halves in zip(whole, left, right, strict=True):
        np.testing.assert_array_equal(every, np.concatenate(halves))


def test_steps_and_seeds_differ():
    results = [augmented(SETS["strong"], step, seed=seed)[0] for step, seed in ((0, 0), (1, 0), (0, 1))]
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_no_part_changes_what_another_one_draws():
    flipped = augmented(SETS["flip"])[0][:, 0, 0, 0] > augmented(SETS["flip"])[0][:, 0, -1, 0]
    moved = augmented(GEOMETRY)[0]
    assert ((moved[:, 12, 4, 0] > moved[:, 12, -4, 0]) == flipped).all()


def test_none_changes_nothing():
    images, masks = augmented(SETS["none"])
    np.testing.assert_array_equal(images, batch()[0])
    np.testing.assert_array_equal(masks, batch()[1])


def recoloured(**changes):
    images = np.random.default_rng(1).uniform(60, 190, (2, 4, 4, 3)).astype(np.float32)
    factors = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, **changes}
    return images, augmentation.recolour(images, **{k: tf.fill([2], np.float32(v)) for k, v in factors.items()}).numpy()


def luma(images):
    return images @ np.array([0.299, 0.587, 0.114], np.float32)


def test_colours():
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


def test_a_hole_is_grey_as_large_as_asked_and_leaves_the_mask_alone():
    images = np.zeros((BATCH, SIZE, SIZE, 3), np.float32)
    sizes = []
    for step in range(10):
        changed, masks = augmented(Parts(cutout=0.25), step, images=images)
        np.testing.assert_array_equal(masks, batch()[1])
        assert set(np.unique(changed)) == {0, np.float32(127.5)}
        sizes += list((changed[..., 0] > 0).sum(axis=(1, 2)))
    assert max(sizes) in (36, 49)  # 6 or 7 pixels a side, as the centre falls
    assert 0 < min(sizes) < 36  # over an edge
