"""Random parts of pictures of several sizes."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from conftest import data_config, replicas
from test_disk_cache import equal, training_batches

from petseg.classes import IGNORED, PETS
from petseg.data import decoding, input_pipeline
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


def load(data_dir, **more):
    config = data_config("synthetic_pets", 64, str(data_dir), resize="crop", **more)
    return decoding.load(config, "train", PETS, for_training=True)


def test_pictures_lie_on_canvases_and_evaluation_has_their_middles(data_dir):
    config = data_config("synthetic_pets", 64, str(data_dir), resize="crop")
    examples, middles = load(data_dir), decoding.load(config, "train", PETS)
    pairs = list(decoding.native(config, "train", PETS))
    np.testing.assert_array_equal(examples.parts.sizes, [image.shape[:2] for image, _ in pairs])
    assert len(set(map(tuple, examples.parts.sizes.tolist()))) > 1
    assert examples.images.shape[1:3] == tuple(examples.parts.sizes.max(0))
    assert middles.images.shape == (len(pairs), 64, 64, 3)
    assert middles.parts is None
    for i, (image, mask) in enumerate(pairs):
        counted = examples.masks[i, ..., 0] != IGNORED
        np.testing.assert_array_equal(examples.images[i][counted], image[mask[..., 0] != IGNORED])
        top, left = ((side - 64) // 2 for side in image.shape[:2])
        np.testing.assert_array_equal(middles.images[i], image[top : top + 64, left : left + 64])
        np.testing.assert_array_equal(middles.masks[i], mask[top : top + 64, left : left + 64])


def test_batches_are_the_same_bits_in_all_caches_on_all_replicas_and_after_a_resume(data_dir, tmp_path):
    caches = ("memory", "disk", "none")
    memory, *others = (load(data_dir, cache=cache, cache_dir=str(tmp_path)) for cache in caches)
    expected = training_batches(memory)
    assert {batch["image"].shape for batch in expected} == {(4, 64, 64, 3)}
    for examples in others:
        for batch, other in zip(expected, training_batches(examples), strict=True):
            equal(batch, other)
    equal(expected[2], training_batches(memory, first_step=2)[0])
    strategy = replicas(2)
    dealt = input_pipeline.distributed_training_batches(
        strategy, memory, batch_size=4, seed=3, first_step=2, last_step=3
    )
    (parts,) = [strategy.experimental_local_results(batch["image"]) for batch in dealt]
    np.testing.assert_array_equal(np.concatenate(parts), expected[2]["image"])
    some = input_pipeline.part_of_batch(
        memory, tf.constant(2, tf.int64), tf.constant([3, 1], tf.int64), batch_size=4, seed=3
    )
    np.testing.assert_array_equal(some["image"], expected[2]["image"][[3, 1]])


def test_a_graph_for_any_process_cuts_the_same_parts(data_dir, tmp_path):
    """What a data service is sent."""
    examples = load(data_dir, cache="disk", cache_dir=str(tmp_path))
    expected = training_batches(examples)
    elsewhere = dataclasses.replace(examples, gather=examples.gather_anywhere)
    for batch, other in zip(expected, training_batches(elsewhere), strict=True):
        equal(batch, other)
