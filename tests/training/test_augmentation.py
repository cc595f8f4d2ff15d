import numpy as np
import pytest
import tensorflow as tf

from petseg.classes import IGNORED
from petseg.config import AugmentationConfig, LossConfig
from petseg.data.crop_focus import CropFocus
from petseg.training import augmentation, sample_weights

BATCH, SIZE = 16, 24
FLIP, STRONG = AugmentationConfig(augment="flip"), AugmentationConfig(augment="strong")
GEOMETRY = AugmentationConfig(augment="none", flip=0.5, crop_area=0.3, crop_aspect=1.4, rotation=40)
ORIENTATIONS = AugmentationConfig(augment="flip", vertical_flip=0.5, quarter_turns=1)
ZOOMS = AugmentationConfig(augment="none", crop_area=0.5, crop_area_max=2, rotation=20)
RESIZED = AugmentationConfig(augment="none", crop_area=0.3, rotation=20, crop_size="32,64")
EVERYTHING = AugmentationConfig(augment="strong", vertical_flip=0.5, quarter_turns=1, crop_area_max=2)
FOCUS = CropFocus(0.5, (1, 2))


def batch():
    """Images that hold pixel coordinates in red and green, and random masks."""
    masks = np.random.default_rng(0).integers(0, 3, (BATCH, SIZE, SIZE, 1), np.uint8)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    images = np.broadcast_to(np.stack([x, y, 0 * x], axis=-1), (BATCH, SIZE, SIZE, 3))
    return images, masks


def augmented(config, step=0, rows=range(BATCH), seed=0, images=None, masks=None, focus=None):
    """Augments some rows of the batch."""
    places, classes = batch()
    images, masks = places if images is None else images, classes if masks is None else masks
    rows = np.asarray(rows, np.int64)
    augment = augmentation.build_augmentation(config, seed=seed, batch_size=BATCH, focus=focus)
    out = augment(tf.constant(images[rows]), tf.constant(masks[rows]), tf.constant(step, tf.int64), tf.constant(rows))
    return tuple(part.numpy() for part in out)


@pytest.mark.parametrize(
    "config",
    [FLIP, GEOMETRY, ORIENTATIONS, ZOOMS, RESIZED],
    ids=["flip", "crop and rotate", "flips and turns", "zoom", "another size"],
)
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
            seen += known.mean()
    assert seen > 0.5 * 5 * BATCH


def test_crops_of_another_size_show_what_crops_of_the_image_size_show():
    for bounds in (1.0, 0.5):
        cropped = {"augment": "none", "crop_area": bounds}
        images, _ = augmented(AugmentationConfig(**cropped))
        larger, larger_masks = augmented(AugmentationConfig(**cropped, crop_size="32"))
        assert larger.shape == (BATCH, 32, 32, 3)
        assert larger_masks.shape == (BATCH, 32, 32, 1)
        np.testing.assert_allclose(larger.mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=0.2)


def test_flip_mirrors_half_of_the_examples():
    flips = [np.mean(augmented(FLIP, step)[0][:, 0, 0, 0] == SIZE - 1) for step in range(20)]
    assert 0.4 < np.mean(flips) < 0.6


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_quarter_turns_and_vertical_flips_move_pixels_exactly_and_all_orientations_are_as_likely(channels):
    images = np.random.default_rng(5).uniform(0, 255, (BATCH, SIZE, SIZE, channels)).astype(np.float32)
    masks = batch()[1]
    for config, count in (
        (AugmentationConfig(augment="none", quarter_turns=1), 4),
        (AugmentationConfig(augment="none", vertical_flip=0.5), 2),
        (ORIENTATIONS, 8),
    ):
        seen = np.zeros(8, int)
        for step in range(25):
            for i, (image, mask) in enumerate(zip(*augmented(config, step, images=images), strict=True)):
                ways = [lambda x, k=k, flip=flip: np.rot90(x[:: -1 if flip else 1], k)
                        for flip in (False, True) for k in range(4)]  # fmt: skip
                fits = [np.array_equal(way(images[i]), image) and np.array_equal(way(masks[i]), mask) for way in ways]
                assert sum(fits) == 1
                seen += fits
        assert (seen > 0).sum() == count
        assert seen[seen > 0].min() > 0.7 * seen.sum() / count


def test_zooming_out_shows_the_whole_image_with_ignored_pixels_around():
    shares, offsets = [], []
    masks = np.ones_like(batch()[1])
    for step in range(20):
        config = AugmentationConfig(augment="none", crop_area=4, crop_aspect=1.2)
        images, changed = augmented(config, step, masks=masks)
        for image, mask in zip(images, changed[..., 0], strict=True):
            rows, columns = np.flatnonzero((mask == 1).any(1)), np.flatnonzero((mask == 1).any(0))
            if min(rows[0], columns[0]) > 0 and max(rows[-1], columns[-1]) < SIZE - 1:  # not at an edge
                assert image[rows][:, columns][..., :2].min() < 2
                assert image[rows][:, columns][..., :2].max() > SIZE - 3
            assert (mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 1).all()
            shares.append((mask == 1).mean())
            offsets.append(rows[0] / (SIZE - len(rows)) if len(rows) < SIZE else 0.5)
            assert image.max() <= SIZE - 1  # the image's own pixels, reflected
    assert 0.2 < min(shares) < 0.35
    assert 0.85 < max(shares) <= 1
    assert np.mean(offsets) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("bounds", [(0.5, 2.0), (2.0, 0.5), (2.0, None), (None, 3.0), (0.4, 0.4)])
def test_crops_have_areas_between_both_bounds_in_either_order(bounds):
    lower, upper = sorted(1.0 if bound is None else bound for bound in bounds)
    config = AugmentationConfig(augment="none", crop_area=bounds[0], crop_area_max=bounds[1])
    middle, areas = SIZE // 2, []
    for step in range(20):
        images, masks = augmented(config, step)
        known = masks[:, middle - 1 : middle + 2, middle - 1 : middle + 2, 0].max(axis=(1, 2)) != IGNORED
        width = (images[:, middle, middle + 1, 0] - images[:, middle, middle - 1, 0]) / 2
        height = (images[:, middle + 1, middle, 1] - images[:, middle - 1, middle, 1]) / 2
        areas += list((width * height)[known])
    assert lower == pytest.approx(min(areas), rel=0.1)
    assert upper == pytest.approx(max(areas), rel=0.1)
    assert min(areas) > lower - 1e-3
    assert max(areas) < upper + 1e-3


def test_focused_crops_are_centred_on_a_rare_pixel_as_far_as_the_image_reaches():
    config = AugmentationConfig(augment="none", crop_area=0.25, crop_area_max=0.25, rotation=30)
    masks, places = np.ones_like(batch()[1]), []
    rng = np.random.default_rng(2)
    for mask in masks[1:]:
        places.append(rng.integers(0, SIZE, 2))
        mask[tuple(places[-1])] = 2
    images, _ = augmented(config, masks=masks, focus=CropFocus(1.0, (2,)))
    ordinary, _ = augmented(config, masks=masks)
    np.testing.assert_array_equal(images[0], ordinary[0])  # has none of the class
    middle = slice(SIZE // 2 - 1, SIZE // 2 + 1)
    for image, (row, column) in zip(images[1:], places, strict=True):
        x, y = image[middle, middle, 0].mean(), image[middle, middle, 1].mean()
        quarter = SIZE / 4
        expected = np.clip([column + 0.5, row + 0.5], quarter, SIZE - quarter) - 0.5
        np.testing.assert_allclose([x, y], expected, atol=0.05)


def test_pixels_from_outside_the_image_are_ignored():
    images, masks = batch()
    turn, ones = tf.fill([BATCH], np.float32(np.pi / 4)), tf.ones([BATCH])
    half = ones / 2
    moved, size = [tf.constant(images), tf.constant(masks)], images.shape[1:3]
    _, masks = augmentation.crop_and_rotate(moved, ones, ones, turn, half, half, size)
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


@pytest.mark.parametrize("config", [FLIP, STRONG, EVERYTHING], ids=["flip", "strong", "everything"])
def test_augmentation_does_not_depend_on_the_replica(config):
    whole = augmented(config, 5, focus=FOCUS)
    left, right = (augmented(config, 5, rows, focus=FOCUS) for rows in (range(BATCH // 2), range(BATCH // 2, BATCH)))
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
    plain = augmented(AugmentationConfig(augment="flip", brightness=0.4))[0]
    turned = augmented(AugmentationConfig(augment="flip", brightness=0.4, vertical_flip=0.5, quarter_turns=1))[0]
    for one, other in zip(plain, turned, strict=True):
        ways = [np.rot90(one[::step], k) for step in (1, -1) for k in range(4)]
        assert min(np.abs(way - other).max() for way in ways) < 0.01


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


def test_images_with_other_channels_than_rgb_change_in_brightness_and_contrast_only():
    images = np.random.default_rng(1).uniform(60, 190, (BATCH, SIZE, SIZE, 4)).astype(np.float32)
    config = {"augment": "none", "brightness": 0.3, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}
    found, _ = augmented(AugmentationConfig(**config), images=images)
    for before, after in zip(images, found, strict=True):
        unclipped = (after > 0) & (after < 255)
        factor, offset = np.polyfit(before[unclipped], after[unclipped], 1)
        np.testing.assert_allclose(after[unclipped], factor * before[unclipped] + offset, atol=0.05)
    assert np.abs(found - images).max() > 10


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
