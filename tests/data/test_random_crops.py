"""Random crops of pictures of several sizes."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import data_config, replicas
from test_disk_cache import equal, training_batches

from petseg.classes import IGNORED, PETS
from petseg.data import input_pipeline, loading
from petseg.data.backends.memory import MemoryExamples
from petseg.data.crop_focus import CropFocus
from petseg.data.examples import BatchPosition
from petseg.data.random_crops import RandomCrops
from petseg.data.resizing import GREY, Resizing

SIZES = np.array([[40, 50], [32, 64], [20, 90], [45, 33], [7, 9]], np.int32)
CANVAS = (45, 90)


@pytest.fixture(scope="module")
def canvases():
    """Pictures whose pixels hold their own coordinates, with masks of 0."""
    places = [np.stack([*np.mgrid[:h, :w], np.zeros((h, w))], axis=-1).astype(np.uint8) for h, w in SIZES]
    resizing = Resizing(CANVAS, "crop")
    images = np.stack([resizing.image(tf.constant(each)).numpy() for each in places])
    masks = np.stack([resizing.mask(tf.constant(each[..., 2:])).numpy() for each in places])
    return MemoryExamples(images, masks, PETS)


@pytest.fixture(scope="module")
def crops(canvases):
    return RandomCrops(canvases, (32, 64), SIZES)


def cut(crops, step, positions=range(5), *, seed=0, ids=range(5)):
    ids, positions = np.array(ids, np.int64), np.array(positions, np.int64)
    fetched = crops.batch(tf.constant(ids), BatchPosition(tf.constant(step, tf.int64), tf.constant(positions), 8, seed))
    return fetched.image.numpy(), fetched.mask.numpy()


def test_weight_maps_are_cut_with_their_masks(canvases):
    images, masks = canvases.read(range(5))
    maps = np.where(masks == IGNORED, 0, masks / np.float32(4)).astype(np.float32)
    weighted = RandomCrops(MemoryExamples(images, masks, PETS, weights=maps), (32, 64), SIZES)
    at = BatchPosition(tf.constant(3, tf.int64), tf.range(5, dtype=tf.int64), 8, 0)
    for fetched in (weighted.batch(tf.range(5, dtype=tf.int64), at), weighted.fetch(tf.range(5, dtype=tf.int64))):
        masks = fetched.mask.numpy()
        np.testing.assert_array_equal(fetched.weight, np.where(masks == IGNORED, 0, masks / np.float32(4)))


def test_crops_lie_inside_their_images_and_small_images_are_centred(crops):
    corners = set()
    for step in range(60):
        images, masks = cut(crops, step)
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


def test_crops_are_functions_of_seed_step_and_position(crops):
    images, _ = cut(crops, 3, [4, 2, 0, 7, 1])
    order = [2, 0, 4]
    again, _ = cut(crops, 3, np.array([4, 2, 0, 7, 1])[order], ids=order)
    np.testing.assert_array_equal(again, images[order])
    assert (cut(crops, 4, [4, 2, 0, 7, 1])[0] != images).any()
    assert (cut(crops, 3, [5, 3, 1, 6, 0])[0] != images).any()
    assert (cut(crops, 3, [4, 2, 0, 7, 1], seed=1)[0] != images).any()


def test_focused_crops_are_centred_on_a_rare_pixel_and_stay_inside_their_images(canvases):
    images, masks = canvases.read(range(5))
    (first_row, first_column) = CANVAS[0] // 2, CANVAS[1] // 2
    for row, column in ((0, 0), (3, -9), (-4, 15)):  # from the middle of the canvas, which is in every image
        rare = masks.copy()
        rare[:, first_row + row, first_column + column] = 2
        rare[2] = np.where(rare[2] == 2, 1, rare[2])  # has none
        marked = RandomCrops(MemoryExamples(images, rare, PETS), (32, 64), SIZES)
        everywhere = {}
        for share in (0.0, 1.0):
            everywhere[share] = [cut(marked.focused(CropFocus(share, (2,))), step) for step in range(8)]
        np.testing.assert_array_equal(everywhere[0.0][0][0], cut(marked, 0)[0])
        for (ordinary, _), (_, found) in zip(everywhere[0.0], everywhere[1.0], strict=True):
            assert ordinary.shape == (5, 32, 64, 3)
            for i in (0, 1, 3):
                (found_row,), (found_column,) = (set(each) for each in np.nonzero(found[i, ..., 0] == 2))
                margins = (np.array(CANVAS) - SIZES[i]) // 2
                place = np.array([first_row + row, first_column + column]) - margins
                room = SIZES[i] - (32, 64)
                start = np.where(room >= 0, np.clip(place - (16, 32), 0, np.maximum(room, 0)), -(-room // 2))
                assert (found_row, found_column) == tuple(place - start)
        assert (everywhere[1.0][3][0][2] == everywhere[0.0][3][0][2]).all()  # an ordinary crop


def load(data_dir, *, focused=False, **more):
    config = data_config("synthetic_pets", 64, str(data_dir), resize="crop", **more)
    crops = loading.load(config, "train", PETS, for_training=True)
    return crops.focused(CropFocus(0.5, (0, 2))) if focused else crops


def test_read_examples_are_centre_crops_and_classes_are_counted_in_whole_images(data_dir):
    config = data_config("synthetic_pets", 64, str(data_dir), resize="crop")
    pairs = list(loading.native_pairs(config, "train", PETS))
    assert len({image.shape for image, _ in pairs}) > 1
    counted = np.concatenate([*load(data_dir).masks_to_count()])
    assert counted.shape[1:3] == tuple(np.max([image.shape[:2] for image, _ in pairs], axis=0))
    assert (counted != IGNORED).sum() == sum((mask != IGNORED).sum() for _, mask in pairs)
    for examples in (load(data_dir), loading.load(config, "train", PETS)):  # as trained on, and as scored
        images, masks = examples.read(range(len(pairs)))
        for i, (image, mask) in enumerate(pairs):
            top, left = ((side - 64) // 2 for side in image.shape[:2])
            np.testing.assert_array_equal(images[i], image[top : top + 64, left : left + 64])
            np.testing.assert_array_equal(masks[i], mask[top : top + 64, left : left + 64])


def test_batches_are_the_same_bits_in_all_caches_on_all_replicas_and_after_a_resume(array_record_dir, tmp_path):
    caches = ("memory", "disk", "none")
    memory, *others = (
        load(array_record_dir, focused=True, cache=cache, cache_dir=str(tmp_path))
        for cache in caches  # half of them
    )
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
    at = BatchPosition(tf.constant(2, tf.int64), tf.constant([3, 1], tf.int64), 4, 3)
    some = input_pipeline.part_of_batch(memory, at)
    np.testing.assert_array_equal(some["image"], expected[2]["image"][[3, 1]])


def test_the_graph_for_a_data_service_makes_the_same_crops(data_dir, tmp_path):
    examples = load(data_dir, focused=True, cache="disk", cache_dir=str(tmp_path))
    for step, expected in enumerate(training_batches(examples)):
        at = BatchPosition(tf.constant(step, tf.int64), tf.range(4, dtype=tf.int64), 4, 3)
        found = input_pipeline.part_of_batch(examples, at, portable=True)
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)
