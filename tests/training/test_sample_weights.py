import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from petseg.classes import IGNORED
from petseg.config import LossConfig
from petseg.errors import ConfigError
from petseg.training import losses, sample_weights

MASK = np.array([0, 1, 2, IGNORED], np.uint8).reshape(1, 2, 2, 1)


def test_without_class_weights_every_valid_pixel_counts_1():
    weights = sample_weights.weight_map(LossConfig())(tf.constant(MASK))
    assert weights.dtype == tf.float32
    np.testing.assert_array_equal(weights[0], [[1, 1], [1, 0]])


def test_each_pixel_gets_the_weight_of_its_class():
    weights = sample_weights.weight_map(LossConfig(), (0.5, 0.3, 0.2))(tf.constant(MASK))
    np.testing.assert_allclose(weights[0], [[0.5, 0.3], [0.2, 0]])


@given(st.lists(st.just(0.0) | st.floats(1e-6, 1e6), min_size=2, max_size=5).filter(sum))
def test_normalized_weights_have_a_mean_or_a_sum_of_1_and_keep_their_ratios(weights):
    for normalization, total in (("mean", len(weights)), ("sum", 1)):
        normalized = sample_weights.normalized(weights, normalization)
        assert sum(normalized) == pytest.approx(total)
        np.testing.assert_allclose(np.array(normalized) * sum(weights) / total, weights, rtol=1e-9)


def resolved(class_weights, masks=MASK, num_classes=3, **options):
    config = LossConfig(class_weights=class_weights, **options)
    return sample_weights.resolve_class_weights(config, lambda: [masks], [f"class {i}" for i in range(num_classes)])


@pytest.mark.parametrize("loss", ["cross_entropy", "dice", "cross_entropy_dice", "focal"])
@pytest.mark.parametrize("equal", ["1", "0.1", "7"])
def test_equal_class_weights_change_nothing_for_any_loss_and_number_of_classes(loss, equal):
    classes, rng = 11, np.random.default_rng(0)
    masks = rng.integers(0, classes, (2, 16, 16, 1)).astype(np.uint8)
    logits = tf.constant(rng.normal(size=(2, 16, 16, classes)), tf.float32)

    def value(class_weights):
        config = LossConfig(loss=loss, class_weights=class_weights, boundary_weight=2.0)
        weights = sample_weights.weight_map(config, resolved(class_weights, masks, classes))(tf.constant(masks))
        labels, valid = masks[..., 0], sample_weights.valid_pixels(tf.constant(masks))
        total, divisor = losses.Loss(config).sums(tf.constant(labels), logits, weights, valid)
        return float(total / divisor)

    assert value(",".join([equal] * classes)) == pytest.approx(value(""), rel=1e-6)


@pytest.mark.parametrize("counted", ["balanced", "median_frequency"])
def test_counted_weights_are_as_none_where_all_classes_are_equally_frequent(counted):
    masks = np.arange(3, dtype=np.uint8).repeat(16).reshape(1, 6, 8, 1)
    np.testing.assert_allclose(resolved(counted, masks), [1, 1, 1])
    np.testing.assert_allclose(resolved(counted, masks, class_weight_normalization="sum"), [1 / 3] * 3)


def test_the_weights_of_the_tutorial_stay_available():
    np.testing.assert_allclose(resolved("2,2,1"), [1.2, 1.2, 0.6])
    tutorials = np.array([2.0, 2.0, 1.0]) / np.sum([2.0, 2.0, 1.0])
    np.testing.assert_array_equal(resolved("2,2,1", class_weight_normalization="sum"), tutorials)


def test_weights_cannot_be_counted_where_no_pixel_is_in_a_class():
    for counted in ("balanced", "median_frequency"):
        with pytest.raises(ConfigError, match="--class_weights: no pixel of the training masks is in a class"):
            resolved(counted, np.full((2, 4, 4, 1), IGNORED, np.uint8))


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
    weights = sample_weights.balanced([masks], 3)
    assert sum(weights) == pytest.approx(3)
    np.testing.assert_allclose(np.array(weights) * [10, 70, 20], weights[0] * 10)


def test_balanced_weights_of_a_class_that_never_occurs():
    assert sample_weights.balanced([np.zeros((1, 2, 2, 1), np.uint8)], 3) == (3.0, 0.0, 0.0)


def test_median_frequency_weights_count_only_images_in_which_a_class_occurs():
    masks = np.zeros((4, 10, 10, 1), np.uint8)
    masks[:2, :5] = 1  # half of two images
    masks[0, 5, :5] = 2  # 5 pixels of one image
    masks[3, :5] = IGNORED
    counts, pixels = np.array([45 + 50 + 100 + 50, 100, 5]), np.array([350, 200, 100])
    inverse = pixels / counts
    weights = sample_weights.median_frequency([masks], 3)
    np.testing.assert_allclose(weights, inverse / inverse.mean())
    assert sample_weights.median_frequency([masks[2:]], 3) == (3.0, 0.0, 0.0)


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
