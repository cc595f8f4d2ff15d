import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from petseg.classes import IGNORED
from petseg.config import LossConfig
from petseg.training import sample_weights

MASK = np.array([0, 1, 2, IGNORED], np.uint8).reshape(1, 2, 2, 1)


def test_without_class_weights_every_valid_pixel_counts_1():
    weights = sample_weights.weight_map(LossConfig())(tf.constant(MASK))
    assert weights.dtype == tf.float32
    np.testing.assert_array_equal(weights[0], [[1, 1], [1, 0]])


def test_each_pixel_gets_the_weight_of_its_class():
    weights = sample_weights.weight_map(LossConfig(), (0.5, 0.3, 0.2))(tf.constant(MASK))
    np.testing.assert_allclose(weights[0], [[0.5, 0.3], [0.2, 0]])


@given(st.lists(st.just(0.0) | st.floats(1e-6, 1e6), min_size=2, max_size=5).filter(sum))
def test_normalized_weights_sum_to_1_and_keep_their_ratios(weights):
    normalized = sample_weights.normalized(weights)
    assert sum(normalized) == pytest.approx(1)
    np.testing.assert_allclose(np.array(normalized) * sum(weights), weights, rtol=1e-9)


@given(
    mask=arrays(np.uint8, (2, 4, 3, 1), elements=st.sampled_from([0, 1, 2, IGNORED])),
    # No subnormal numbers: TensorFlow's threads take them for 0.
    class_weights=st.none() | st.tuples(*[st.floats(0, 100, width=32, allow_subnormal=False)] * 3),
)
def test_a_weight_map_holds_the_weight_of_each_pixels_class_and_0_where_there_is_none(mask, class_weights):
    weights = sample_weights.weight_map(LossConfig(), class_weights)(tf.constant(mask)).numpy()
    table = np.array([*(class_weights or (1, 1, 1)), 0], np.float32)
    np.testing.assert_array_equal(weights, table[np.minimum(mask[..., 0], 3)])
    np.testing.assert_array_equal(sample_weights.valid_pixels(tf.constant(mask)), mask[..., 0] != 255)


def test_balanced_weights_make_all_classes_count_alike():
    masks = np.repeat(np.array([0, 1, 2, IGNORED], np.uint8), [10, 70, 20, 5]).reshape(1, 5, 21, 1)
    weights = sample_weights.balanced(masks, 3)
    assert sum(weights) == pytest.approx(1)
    np.testing.assert_allclose(np.array(weights) * [10, 70, 20], weights[0] * 10)


def test_balanced_weights_of_a_class_that_never_occurs():
    assert sample_weights.balanced(np.zeros((1, 2, 2, 1), np.uint8), 3) == (1.0, 0.0, 0.0)


def test_median_frequency_weights_count_only_images_in_which_a_class_occurs():
    masks = np.zeros((4, 10, 10, 1), np.uint8)
    masks[:2, :5] = 1  # half of two images
    masks[0, 5, :5] = 2  # 5 pixels of one image
    masks[3, :5] = IGNORED
    counts, pixels = np.array([45 + 50 + 100 + 50, 100, 5]), np.array([350, 200, 100])
    inverse = pixels / counts
    weights = sample_weights.median_frequency(masks, 3)
    np.testing.assert_allclose(weights, inverse / inverse.sum())
    assert sample_weights.median_frequency(masks[2:], 3) == (1.0, 0.0, 0.0)


def distances(mask, reach):
    """To the nearest pixel that touches one of another class, by looking at all of them."""
    rows, columns = mask.shape
    touching = [
        (y, x)
        for y in range(rows)
        for x in range(columns)
        for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
        if 0 <= ny < rows and 0 <= nx < columns and mask[y, x] != mask[ny, nx]
        and IGNORED not in (mask[y, x], mask[ny, nx])
    ]  # fmt: skip
    found = np.full(mask.shape, np.inf)
    for y, x in np.ndindex(mask.shape):
        nearest = min((np.hypot(y - a, x - b) for a, b in touching), default=np.inf)
        found[y, x] = nearest if nearest <= reach else np.inf
    return found


def test_weights_near_boundaries_are_those_of_the_formula():
    masks = np.ones((2, 20, 17, 1), np.uint8)
    masks[0, 4:11, 3:9] = 0
    masks[0, 15:, 12:] = IGNORED
    sigma = 2.0
    weights = sample_weights.near_boundaries(tf.constant(masks), sigma).numpy()
    np.testing.assert_allclose(weights[0], np.exp(-(distances(masks[0, ..., 0], 3 * sigma) ** 2) / 8), atol=1e-6)
    assert not weights[1].any()  # one class: no boundary
    near = LossConfig(boundary_weight=10.0, boundary_sigma=sigma)
    whole = sample_weights.weight_map(near, (0.2, 0.3, 0.5))(masks).numpy()
    expected = np.array([0.2, 0.3, 0.5, 0])[np.minimum(masks[..., 0], 3)] + 10 * weights * (masks[..., 0] != 255)
    np.testing.assert_allclose(whole, expected, rtol=1e-5)
