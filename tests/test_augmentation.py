import numpy as np
import pytest
import tensorflow as tf

from petseg import augmentation

BATCH = 16


def augmented(step, rows, seed=0, name="flip"):
    """Augments some rows of a batch in which the mask is the image's red channel."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 8, 8, 3)).astype(np.float32)
    masks = images[..., :1].astype(np.uint8)
    augment = augmentation.augmentation(name, seed=seed, batch_size=BATCH)
    rows = np.asarray(rows, np.int64)
    out = augment(tf.constant(images[rows]), tf.constant(masks[rows]), tf.constant(step, tf.int64), tf.constant(rows))
    return images[rows], *(part.numpy() for part in out)


def test_image_and_mask_stay_together_and_about_half_are_flipped():
    flips = 0
    for step in range(20):
        before, images, masks = augmented(step, range(BATCH))
        np.testing.assert_array_equal(images[..., :1].astype(np.uint8), masks)
        for old, new in zip(before, images, strict=True):
            flipped = not np.array_equal(old, new)
            np.testing.assert_array_equal(new, old[:, ::-1] if flipped else old)
            flips += flipped
    assert 0.4 < flips / (20 * BATCH) < 0.6


def test_an_example_is_augmented_alike_whichever_replica_it_is_on():
    _, whole, _ = augmented(5, range(BATCH))
    _, left, _ = augmented(5, range(BATCH // 2))
    _, right, _ = augmented(5, range(BATCH // 2, BATCH))
    np.testing.assert_array_equal(whole, np.concatenate([left, right]))


def test_steps_and_seeds_differ():
    results = [augmented(step, range(BATCH), seed)[1] for step, seed in ((0, 0), (1, 0), (0, 1))]
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_none_changes_nothing():
    before, images, _ = augmented(0, range(BATCH), name="none")
    np.testing.assert_array_equal(before, images)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no augmentation 'wild'"):
        augmentation.augmentation("wild", seed=0, batch_size=1)
