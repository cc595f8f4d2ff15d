"""Positions of tiles and blending of their predictions."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from petseg.evaluation import tiled_inference


def places(height, width):
    """An image whose pixels hold their own coordinates, float32 [H, W, 2]."""
    return np.stack(np.mgrid[:height, :width], axis=-1).astype(np.float32)


@settings(max_examples=60, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40))
def test_tiles_cover_the_image_and_equal_predictions_stay_equal(height, width, tall, wide):
    image, seen = places(height, width), []

    def predict(row):
        seen.extend(part.shape for part in row)
        return row

    found = list(tiled_inference.blend_tiles(image, (tall, wide), predict))
    np.testing.assert_allclose(np.concatenate(found), image, rtol=1e-5, atol=1e-5)
    assert set(seen) == {(min(height, tall), min(width, wide), 2)}
    assert max(map(len, found)) <= min(height, tall)
    assert (len(seen) == 1) == tiled_inference.is_one_tile(image.shape, (tall, wide))


def test_neighbouring_tiles_overlap_by_at_least_a_quarter_and_are_as_few_as_possible():
    for length in range(33, 300):
        starts = []

        def predict(row, starts=starts):
            starts.extend(int(part[0, 0, 1]) for part in row)
            return row

        list(tiled_inference.blend_tiles(places(32, length), (32, 32), predict))
        assert starts[0] == 0
        assert starts[-1] == length - 32
        assert max(np.diff(starts)) <= 32 - 32 // 4 + 0.5
        assert (len(starts) - 1) * 24 + 32 >= length > (len(starts) - 2) * 24 + 32


def test_blending_leaves_no_seams():
    """Each tile predicts another constant; in the result, neighbouring pixels differ little."""
    constants = iter(np.linspace(0, 1, 64))
    image = np.zeros((200, 200, 3), np.uint8)

    def predict(row):
        return (np.full((*part.shape[:2], 1), next(constants), np.float32) for part in row)

    found = np.concatenate(list(tiled_inference.blend_tiles(image, (64, 64), predict)))[..., 0]
    assert np.ptp(found) > 0.2  # the constants go from 0 to .25
    assert max(np.abs(np.diff(found, axis=axis)).max() for axis in (0, 1)) < 0.02


def test_where_tiles_do_not_overlap_predictions_are_unchanged():
    rng = np.random.default_rng(0)
    image = rng.random((100, 150, 3), np.float32)
    found = np.concatenate(list(tiled_inference.blend_tiles(image, (64, 64), lambda row: row)))
    np.testing.assert_array_equal(found[:36, :43], image[:36, :43])  # the first tile alone
    (whole,) = tiled_inference.blend_tiles(image, (100, 150), lambda row: row)
    np.testing.assert_array_equal(whole, image)


@pytest.mark.parametrize(("height", "rows"), [(64, [64]), (65, [1, 64]), (200, [45, 46, 45, 64])])
def test_finished_rows_are_yielded_at_once(height, rows):
    found = tiled_inference.blend_tiles(np.zeros((height, 80, 3), np.float32), (64, 64), lambda row: row)
    assert [len(stripe) for stripe in found] == rows
