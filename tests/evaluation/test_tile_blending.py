"""Pictures in tiles, and what becomes of these."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from petseg.evaluation import tiled_inference


def places(height, width):
    """A picture whose every pixel says where it is, float32 [H, W, 2]."""
    return np.stack(np.mgrid[:height, :width], axis=-1).astype(np.float32)


@settings(max_examples=60, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40))
def test_tiles_cover_the_picture_and_what_is_the_same_in_all_stays_the_same(height, width, tall, wide):
    image, seen = places(height, width), []

    def predict(row):
        seen.extend(part.shape for part in row)
        return row

    found = list(tiled_inference.blend_tiles(image, (tall, wide), predict))
    np.testing.assert_allclose(np.concatenate(found), image, rtol=1e-5, atol=1e-5)
    assert set(seen) == {(min(height, tall), min(width, wide), 2)}
    assert max(map(len, found)) <= min(height, tall)
    assert (len(seen) == 1) == tiled_inference.is_one_tile(image.shape, (tall, wide))


def test_neighbours_overlap_by_a_quarter_at_least_and_are_as_few_as_can_be():
    for length in range(33, 300):
        starts = tiled_inference._tile_starts(length, 32)
        assert starts[0] == 0
        assert starts[-1] == length - 32
        assert max(np.diff(starts)) <= 32 - 32 // 4 + 0.5
        assert (len(starts) - 1) * 24 + 32 >= length > (len(starts) - 2) * 24 + 32


def test_from_one_tile_to_the_next_there_is_no_step():
    """Each tile says something else; in the result, neighbouring pixels differ little."""
    said = iter(np.linspace(0, 1, 64))
    image = np.zeros((200, 200, 3), np.uint8)

    def predict(row):
        return (np.full((*part.shape[:2], 1), next(said), np.float32) for part in row)

    found = np.concatenate(list(tiled_inference.blend_tiles(image, (64, 64), predict)))[..., 0]
    assert np.ptp(found) > 0.2  # what the tiles say goes from 0 to .25
    assert max(np.abs(np.diff(found, axis=axis)).max() for axis in (0, 1)) < 0.02


def test_where_one_tile_says_something_it_is_exactly_that():
    rng = np.random.default_rng(0)
    image = rng.random((100, 150, 3), np.float32)
    found = np.concatenate(list(tiled_inference.blend_tiles(image, (64, 64), lambda row: row)))
    np.testing.assert_array_equal(found[:36, :43], image[:36, :43])  # the first tile alone
    (whole,) = tiled_inference.blend_tiles(image, (100, 150), lambda row: row)
    np.testing.assert_array_equal(whole, image)


@pytest.mark.parametrize(("height", "rows"), [(64, [64]), (65, [1, 64]), (200, [45, 46, 45, 64])])
def test_as_soon_as_rows_are_done_they_are_handed_on(height, rows):
    found = tiled_inference.blend_tiles(np.zeros((height, 80, 3), np.float32), (64, 64), lambda row: row)
    assert [len(stripe) for stripe in found] == rows
