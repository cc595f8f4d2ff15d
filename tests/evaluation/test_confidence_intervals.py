import tracemalloc
import warnings

import numpy as np
import pytest
from scipy import stats

from petseg.errors import DataError
from petseg.evaluation import confidence_intervals, metrics, score_tables


def matrices(count=40, quality=8, seed=0):
    """Confusion matrices of images of about 100 pixels; the true class is 1 + quality times as likely as another."""
    rng = np.random.default_rng(seed)
    return rng.poisson(100 / (quality + 6) / 3 * (1 + quality * np.eye(3)), (count, 3, 3))


def test_the_interval_of_the_mean_iou_equals_that_of_a_plain_bootstrap():
    counts = matrices()
    rng = np.random.default_rng(1)
    drawn = [metrics.mean_iou(counts[rng.integers(0, 40, 40)].sum(axis=0)) for _ in range(4000)]
    expected = np.percentile(drawn, [2.5, 97.5])
    found = confidence_intervals.interval(confidence_intervals.resampled_mean_iou(counts))
    np.testing.assert_allclose(found, expected, atol=0.1 * (expected[1] - expected[0]))
    assert found[0] < metrics.mean_iou(counts.sum(axis=0)) < found[1]


def test_an_interval_narrows_with_the_root_of_the_number_of_images():
    widths = [
        np.diff(confidence_intervals.interval(confidence_intervals.resampled_mean_iou(matrices(count))))[0]
        for count in (50, 800)
    ]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)


def test_a_paired_comparison_finds_a_difference_although_the_intervals_overlap():
    better = matrices(60, quality=4)
    better = better * np.random.default_rng(2).integers(1, 30, 60)[:, None, None]  # hard and easy images
    worse = better.copy()
    moved = worse[:, 0, 0] // 25
    worse[:, 0, 0] -= moved
    worse[:, 0, 1] += moved
    comparison = confidence_intervals.compare([better], [worse])
    low, high = comparison["interval"]
    assert 0 < low < comparison["difference"] < high
    assert comparison["better"] == 1
    assert "the first is better" in score_tables.comparison_text(comparison)
    alone = [confidence_intervals.interval(confidence_intervals.resampled_mean_iou(each)) for each in (better, worse)]
    assert alone[0][0] < alone[1][1]  # so unpaired intervals would not show it


def test_a_model_is_not_better_than_itself():
    comparison = confidence_intervals.compare([matrices()], [matrices()])
    assert (comparison["difference"], comparison["interval"], comparison["better"]) == (0, [0, 0], 0)
    assert "no significant difference" in score_tables.comparison_text(comparison)


def runs_of(recipe, rng, seeds=3, spread=0.02, images=6):
    """Counts of runs with accuracy `recipe`, plus noise by seed and image."""
    right = recipe + spread * rng.normal(size=(seeds, 1)) + 0.01 * rng.normal(size=(seeds, images))
    counts = np.round(1000 * right).astype(np.int64)
    wrong = 1000 - counts
    return list(np.stack([np.stack([counts, wrong], -1), np.stack([wrong, counts], -1)], -2))


@pytest.mark.parametrize("seeds", [(3, 3), (5, 2), (3, 1)])
def test_an_interval_over_seeds_has_its_nominal_coverage(monkeypatch, seeds):
    monkeypatch.setattr(confidence_intervals, "RESAMPLES", 300)
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        first, second = (runs_of(0.8, rng, count) for count in seeds)
        low, high = confidence_intervals.compare(first, second)["interval"]
        found.append(low <= 0 <= high)
    assert 0.91 < np.mean(found) < 0.995  # an interval over images alone covers it in a sixth of the cases


def test_the_difference_of_recipes_is_that_of_their_means_over_seeds():
    rng = np.random.default_rng(1)
    better, worse = runs_of(0.85, rng, spread=0.001), runs_of(0.8, rng, spread=0.001)
    comparison = confidence_intervals.compare(better, worse)
    scores = [np.mean([metrics.mean_iou(run.sum(axis=0)) for run in runs]) for runs in (better, worse)]
    assert comparison["difference"] == pytest.approx(scores[0] - scores[1])
    assert 0 < comparison["interval"][0] < comparison["difference"] < comparison["interval"][1]
    low, high = confidence_intervals.interval_of_runs(better)
    assert low < scores[0] < high
    alone = confidence_intervals.compare(better[:1], worse[:1])["interval"]
    assert comparison["interval"][1] - comparison["interval"][0] > alone[1] - alone[0]


def test_a_bootstrap_in_chunks_equals_one_at_once(monkeypatch):
    counts = matrices(60)
    drawn = np.random.default_rng(3).multinomial(60, np.full(60, 1 / 60), confidence_intervals.RESAMPLES)
    sums = (drawn @ counts.reshape(60, 9)).reshape(-1, 3, 3)
    for at_once in (60 * 7, 10**9):
        monkeypatch.setattr(confidence_intervals, "DRAWN_AT_ONCE", at_once)
        scores = confidence_intervals.resampled_mean_iou(counts, seed=3)
        np.testing.assert_array_equal(scores, metrics.mean_iou(sums))  # to the last bit


def test_a_class_that_a_resample_lacks_does_not_pull_its_score_down():
    counts = np.zeros((5, 3, 3), np.int64)
    counts[:, 0, 0], counts[0, 2, 2] = 10, 10
    np.testing.assert_array_equal(confidence_intervals.resampled_mean_iou(counts), 1)


def test_a_bootstrap_of_a_hundred_thousand_images_is_within_200_mebibytes(monkeypatch):
    counts = np.ones((100_000, 3, 3), np.int64)
    monkeypatch.setattr(confidence_intervals, "RESAMPLES", 200)  # more resamples are only more chunks
    tracemalloc.start()
    try:
        confidence_intervals.resampled_mean_iou(counts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 * 2**20


def mirrored(comparison):
    low, high = comparison["interval"]
    return {**comparison, "difference": -comparison["difference"], "interval": [-high, -low]}


@pytest.mark.parametrize("seeds", [(1, 1), (2, 2), (3, 3), (3, 1), (1, 4), (5, 2)])
def test_a_comparison_with_the_sides_swapped_is_its_mirror_image(seeds):
    rng = np.random.default_rng(3)
    for gap in (0.0, 0.01, 0.03, 0.05):
        first, second = runs_of(0.8 + gap, rng, seeds[0]), runs_of(0.8, rng, seeds[1])
        one, other = confidence_intervals.compare(first, second), confidence_intervals.compare(second, first)
        assert other["interval"] == mirrored(one)["interval"]  # to the last bit, so no verdict depends on the order
        assert other["difference"] == -one["difference"]
        assert one["better"] + other["better"] == pytest.approx(1, abs=1e-6)
        swapped = {"first": "second", "second": "first"}
        verdicts = [score_tables.comparison_text(each).split("): ")[1] for each in (one, other)]
        assert verdicts[1] == " ".join(swapped.get(word, word) for word in verdicts[0].split())


def test_without_variation_over_images_the_interval_over_seeds_is_that_of_welchs_test():
    """Every image of a run is the same, so only the seeds spread: SciPy's interval is the expected one."""
    rng = np.random.default_rng(4)
    first, second = (
        [np.repeat(run[:1], 6, axis=0) for run in runs_of(quality, rng, count)]
        for quality, count in ((0.82, 4), (0.8, 3))
    )
    scores = [[metrics.mean_iou(run.sum(axis=0)) for run in runs] for runs in (first, second)]
    expected = stats.ttest_ind(*scores, equal_var=False)
    found = confidence_intervals.compare(first, second)
    np.testing.assert_allclose(found["interval"], expected.confidence_interval(0.95), rtol=1e-9)
    two_sided = 2 * min(found["better"], 1 - found["better"])
    assert two_sided == pytest.approx(expected.pvalue, rel=1e-9)


def test_nothing_is_concluded_from_images_without_a_score():
    empty = [np.zeros((4, 3, 3), np.int64)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        comparison = confidence_intervals.compare(empty, empty)
    assert "no significant difference" in score_tables.comparison_text(comparison)


def test_counts_of_different_true_masks_are_refused():
    counts = matrices()
    moved = counts.copy()
    moved[3, 0, 1] += 1
    for other in (moved, counts[:-1], np.pad(counts, [(0, 0), (0, 1), (0, 1)])):
        with pytest.raises(DataError, match="different images, classes or masks; they must be the same"):
            confidence_intervals.compare([counts], [other])
