import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from petseg import sample_weights

MASK = np.array([0, 1, 2, sample_weights.IGNORED], np.uint8).reshape(1, 2, 2, 1)


def test_without_class_weights_every_valid_pixel_counts_1():
    weights = sample_weights.sample_weight_map(tf.constant(MASK), None)
    assert weights.dtype == tf.float32
    np.testing.assert_array_equal(weights[0], [[1, 1], [1, 0]])


def test_each_pixel_gets_the_weight_of_its_class():
    weights = sample_weights.sample_weight_map(tf.constant(MASK), (0.5, 0.3, 0.2))
    np.testing.assert_allclose(weights[0], [[0.5, 0.3], [0.2, 0]])


@given(st.lists(st.just(0.0) | st.floats(1e-6, 1e6), min_size=2, max_size=5).filter(sum))
def test_normalized_weights_sum_to_1_and_keep_their_ratios(weights):
    normalized = sample_weights.normalized(weights)
    assert sum(normalized) == pytest.approx(1)
    np.testing.assert_allclose(np.array(normalized) * sum(weights), weights, rtol=1e-9)


@given(
    mask=arrays(np.uint8, (2, 4, 3, 1), elements=st.sampled_from([0, 1, 2, sample_weights.IGNORED])),
    # No subnormal numbers: TensorFlow's threads take them for 0.
    class_weights=st.none() | st.tuples(*[st.floats(0, 100, width=32, allow_subnormal=False)] * 3),
)
def test_a_weight_map_holds_the_weight_of_each_pixels_class_and_0_where_there_is_none(mask, class_weights):
    weights = sample_weights.sample_weight_map(tf.constant(mask), class_weights).numpy()
    table = np.array([*(class_weights or (1, 1, 1)), 0], np.float32)
    np.testing.assert_array_equal(weights, table[np.minimum(mask[..., 0], 3)])
    np.testing.assert_array_equal(sample_weights.valid_pixels(tf.constant(mask)), mask[..., 0] != 255)


def test_balanced_weights_make_all_classes_count_alike():
    masks = np.repeat(np.array([0, 1, 2, sample_weights.IGNORED], np.uint8), [10, 70, 20, 5]).reshape(1, 5, 21, 1)
    weights = sample_weights.balanced(masks, 3)
    assert sum(weights) == pytest.approx(1)
    np.testing.assert_allclose(np.array(weights) * [10, 70, 20], weights[0] * 10)


def test_balanced_weights_of_a_class_that_never_occurs():
    assert sample_weights.balanced(np.zeros((1, 2, 2, 1), np.uint8), 3) == (1.0, 0.0, 0.0)
