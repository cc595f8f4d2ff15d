"""Random parts of pictures of several sizes."""

import numpy as np
import pytest
import tensorflow as tf

from petseg.classes import IGNORED
from petseg.data.random_parts import RandomParts
from petseg.data.resizing import GREY, Resizing

SIZES = np.array([[40, 50], [32, 64], [20, 90], [45, 33], [7, 9]], np.int32)
CANVAS = (45, 90)


@pytest.fixture(scope="module")
def canvases():
    """Pictures, each pixel of which says where in its picture it is, and masks of 0, in the middle of canvases."""
    places = [np.stack([*np.mgrid[:h, :w], np.zeros((h, w))], axis=-1).astype(np.uint8) for h, w in SIZES]
    resizing = Resizing(CANVAS, "crop")
    images = tf.stack([resizing.image(tf.constant(each)) for each in places])
    return images, tf.stack([resizing.mask(tf.constant(each[..., 2:])) for each in places])


def cut(canvases, step, positions=range(5), *, seed=0, ids=range(5)):
    ids, positions = np.array(ids, np.int64), np.array(positions, np.int64)
    images, masks = (tf.gather(each, ids) for each in canvases)
    step = tf.constant(step, tf.int64)
    pair = RandomParts((32, 64), SIZES).cut(images, masks, ids, step=step, positions=positions, batch_size=8, seed=seed)
    return [each.numpy() for each in pair]


def test_parts_lie_inside_their_pictures_and_small_pictures_in_the_middle(canvases):
    corners = set()
    for step in range(60):
        images, masks = cut(canvases, step)
        assert images.shape == (5, 32, 64, 3)
        for image, mask, (height, width) in zip(images, masks[..., 0], SIZES, strict=True):
            rows, columns = np.flatnonzero((mask == 0).any(1)), np.flatnonzero((mask == 0).any(0))
            assert (len(rows), len(columns)) == (min(height, 32), min(width, 64))
            assert (rows[0], columns[0]) == (max(32 - height, 0) // 2, max(64 - width, 0) // 2)
            inside = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            top, left, _ = inside[0, 0]
            np.testing.assert_array_equal(
                inside[..., 0], np.broadcast_to(top + np.arange(len(rows))[:, None], inside.shape[:2])
            )
            np.testing.assert_array_equal(
                inside[..., 1], np.broadcast_to(left + np.arange(len(columns)), inside.shape[:2])
            )
            assert top + len(rows) <= height
            assert left + len(columns) <= width
            assert (mask == 0).sum() == inside[..., 0].size
            assert set(mask[mask != 0]) <= {IGNORED}
            assert (image[mask == IGNORED] == GREY).all()
            corners.add((height, top, left))
    assert {top for height, top, _ in corners if height == 40} == set(range(9))  # every place occurs
    assert {left for height, _, left in corners if height == 20} >= {0, 26}


def test_places_are_functions_of_seed_step_and_position(canvases):
    images, _ = cut(canvases, 3, [4, 2, 0, 7, 1])
    order = [2, 0, 4]
    again, _ = cut(canvases, 3, np.array([4, 2, 0, 7, 1])[order], ids=order)
    np.testing.assert_array_equal(again, images[order])
    assert (cut(canvases, 4, [4, 2, 0, 7, 1])[0] != images).any()
    assert (cut(canvases, 3, [5, 3, 1, 6, 0])[0] != images).any()
    assert (cut(canvases, 3, [4, 2, 0, 7, 1], seed=1)[0] != images).any()
