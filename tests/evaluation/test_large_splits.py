import numpy as np
import pytest

from petseg.evaluation import confidence_intervals, large_splits, metrics
from petseg.evaluation.large_splits import LargeSplit

QUANTILE, NORMAL_DENSITY = 0.025, 0.0584  # of the interval's ends, in standard deviations


def matrices(count, quality=8, seed=0):
    """Confusion matrices of images of about 100 pixels; the true class is 1 + quality times as likely as another."""
    rng = np.random.default_rng(seed)
    return rng.poisson(100 / (quality + 6) / 3 * (1 + quality * np.eye(3)), (count, 3, 3))


def folded(counts, sizes=(10**9,), resamples=100, boundaries=None):
    """A large split to which images are added in blocks of the given sizes, in turn."""
    split = LargeSplit(len(counts), 3, resamples=resamples, outlines=boundaries is not None)
    first, i = 0, 0
    while first < len(counts):
        last = min(first + sizes[i % len(sizes)], len(counts))
        split.add(first, counts[first:last], None if boundaries is None else boundaries[first:last])
        first, i = last, i + 1
    return split


@pytest.fixture
def few_rows(monkeypatch):
    monkeypatch.setattr(large_splits, "MOST_ROWS", 64)
    monkeypatch.setattr(large_splits, "EXTREMES", 5)


def test_totals_sample_and_extremes_do_not_depend_on_the_blocks(few_rows):
    counts, boundaries = matrices(3000), np.random.default_rng(1).integers(0, 50, (3000, 3, 4))
    counts[[5, 600]] = 0  # without a score
    counts[[70, 2000]] = counts[900]  # equal scores
    splits = [folded(counts, sizes, boundaries=boundaries) for sizes in ((10**9,), (61,), (1024,), (7, 1500))]
    for split in splits:
        np.testing.assert_array_equal(split.confusion_matrix, counts.sum(axis=0))
        np.testing.assert_array_equal(split.boundary_total, boundaries.sum(axis=0))
        np.testing.assert_array_equal(split.confusion_matrices, counts[split.ids])
        np.testing.assert_array_equal(split.boundaries, boundaries[split.ids])
        np.testing.assert_array_equal(split.totals.parts, splits[0].totals.parts)  # to the last bit
        scores = metrics.mean_iou(counts)
        order = np.argsort(scores, kind="stable")[:2998]
        ends = np.concatenate([order[:5], order[-5:]])
        np.testing.assert_array_equal(split.extremes[0], ends)
        np.testing.assert_array_equal(split.extremes[1], scores[ends])
    assert len(splits[0].ids) == 16


def test_the_digest_of_masks_depends_on_their_order_but_not_on_the_blocks(few_rows):
    digests, counts = np.random.default_rng(0).integers(-(2**62), 2**62, 300), matrices(300)

    def truth(digests, size):
        split = LargeSplit(300, 3, resamples=0)
        for first in range(0, 300, size):
            split.add(first, counts[first : first + size], mask_digests=digests[first : first + size])
        return split.truth

    assert truth(digests, 300) == truth(digests, 7)
    assert len({truth(each, 64) for each in (digests, digests[::-1], digests + (np.arange(300) == 299))}) == 3


def test_extremes_of_few_images_are_all_of_them_once(few_rows):
    counts = matrices(70)
    counts[7:] = 0
    found = folded(counts, (3,)).extremes[0]
    np.testing.assert_array_equal(found, np.argsort(metrics.mean_iou(counts[:7]), kind="stable"))


def test_resampling_weights_are_independent_draws_from_poisson_1():
    weights = large_splits.poisson_weights(200, 0, 0).astype(np.float64)
    count = weights.size
    assert abs(weights.mean() - 1) < 5 / np.sqrt(count)
    assert abs(weights.var() - 1) < 5 * np.sqrt(3 / count)  # the fourth moment is 4
    for i, chance in enumerate(np.exp(-1) / np.array([1, 1, 2, 6, 24])):
        assert abs(np.mean(weights == i) - chance) < 5 * np.sqrt(chance * (1 - chance) / count)
    for other in ((0, 1), (1, 0)):  # independent: products of deviations have mean 0 and variance 1
        products = (weights - 1) * (large_splits.poisson_weights(200, *other) - 1.0)
        assert abs(products.mean()) < 5 / np.sqrt(count)


def test_the_interval_is_that_of_the_ordinary_bootstrap_within_resampling_error(few_rows):
    counts = matrices(2000)
    ordinary = confidence_intervals.resampled_mean_iou(counts)
    poisson = confidence_intervals.resampled_mean_iou(
        folded(counts, resamples=confidence_intervals.RESAMPLES).totals
    )  # fmt: skip
    # The standard error of a quantile of R draws is sqrt(p (1 - p) / R) / density; both are drawn, so sqrt(2) of it;
    # four of these. Poisson weights add to another number of images in each resample, which no ratio sees.
    of_quantile = np.sqrt(QUANTILE * (1 - QUANTILE) / confidence_intervals.RESAMPLES) / NORMAL_DENSITY
    bound = 4 * np.sqrt(2) * of_quantile * ordinary.std()
    low, high = confidence_intervals.interval(ordinary)
    assert bound < 0.1 * (high - low)
    np.testing.assert_allclose(confidence_intervals.interval(poisson), (low, high), atol=bound)
    # And that of a standard deviation, sqrt(1 / 2 R) of it.
    assert poisson.std() == pytest.approx(ordinary.std(), rel=4 * np.sqrt(1 / confidence_intervals.RESAMPLES))


def test_two_models_are_compared_on_the_same_resamples(few_rows):
    better = matrices(500, quality=4) * np.random.default_rng(2).integers(1, 30, 500)[:, None, None]
    worse = better.copy()
    moved = worse[:, 0, 0] // 25
    worse[:, 0, 0] -= moved
    worse[:, 0, 1] += moved
    of_rows = confidence_intervals.compare([better], [worse])
    comparison = confidence_intervals.compare(
        *([folded(counts, resamples=confidence_intervals.RESAMPLES).totals] for counts in (better, worse))
    )
    assert comparison["difference"] == of_rows["difference"]
    width = of_rows["interval"][1] - of_rows["interval"][0]
    np.testing.assert_allclose(comparison["interval"], of_rows["interval"], atol=0.1 * width)
    assert (comparison["better"], comparison["bootstrap"]) == (1, "Poisson")
    assert "bootstrap" not in of_rows


@pytest.mark.parametrize("num_classes", [3, 150])
def test_memory_does_not_grow_with_the_number_of_images(num_classes):
    def size(count):
        split = LargeSplit(count, num_classes, resamples=2, outlines=True)
        split.add(
            count - 50, np.ones((50, num_classes, num_classes), np.int64), np.ones((50, num_classes, 4), np.int64)
        )
        arrays = [each for each in vars(split).values() if isinstance(each, np.ndarray)]
        assert {type(each) for each in vars(split).values()} <= {np.ndarray, int}
        return sum(array.nbytes for array in arrays)

    assert size(100_000) == size(100_000_000) < large_splits.MOST_BYTES


def test_the_limit_falls_with_the_square_of_the_number_of_classes():
    assert large_splits.most_rows(3) == large_splits.most_rows(64) == 2**16
    assert not large_splits.is_large(3669, 3)
    assert large_splits.most_rows(150) == 2**31 // (8 * 150**2)
