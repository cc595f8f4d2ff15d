import numpy as np
import pytest

from petseg.classes import CLASS_NAMES
from petseg.evaluation import analysis, confidence_intervals, metrics, score_tables
from petseg.evaluation.evaluator import Evaluation


def matrices(count=40, quality=8, seed=0):
    """Confusion matrices of images of 100 pixels or so, in which the right class is so many times likelier."""
    rng = np.random.default_rng(seed)
    return rng.poisson(100 / (quality + 6) / 3 * (1 + quality * np.eye(3)), (count, 3, 3))


def test_the_interval_of_the_mean_iou_is_that_of_a_plain_bootstrap():
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


def test_a_small_difference_on_the_same_images_is_seen_where_the_intervals_overlap():
    better = matrices(60, quality=4)
    better = better * np.random.default_rng(2).integers(1, 30, 60)[:, None, None]  # hard and easy images
    worse = better.copy()
    moved = worse[:, 0, 0] // 25
    worse[:, 0, 0] -= moved
    worse[:, 0, 1] += moved
    comparison = confidence_intervals.compare(better, worse)
    low, high = comparison["interval"]
    assert 0 < low < comparison["difference"] < high
    assert comparison["better"] == 1
    assert "the first is better" in score_tables.comparison_text(comparison)
    alone = [confidence_intervals.interval(confidence_intervals.resampled_mean_iou(each)) for each in (better, worse)]
    assert alone[0][0] < alone[1][1]  # which unpaired intervals would not have shown


def test_a_model_is_not_better_than_itself():
    comparison = confidence_intervals.compare(matrices(), matrices())
    assert (comparison["difference"], comparison["interval"], comparison["better"]) == (0, [0, 0], 0)
    assert "no difference is proven" in score_tables.comparison_text(comparison)


def detailed():
    counts = matrices(4)
    boundaries = np.tile(np.array([10, 5, 20, 10]), (4, 3, 1))
    calibration = np.zeros((metrics.CALIBRATION_BINS, 3))
    calibration[-1] = 100, 97, 90
    return Evaluation(0.5, counts, boundaries, calibration)


def test_results_of_a_detailed_evaluation_hold_every_score():
    evaluation = detailed()
    species = {"species": ("Cat", "Dog", "Cat", "Cat")}
    found = analysis.results(evaluation, 7, "test", resolution="native resolution", groups=species)
    assert found["examples"] == 4
    assert found["confusion_matrix"] == evaluation.confusion_matrices.sum(axis=0).tolist()
    assert found["boundary_f"] == dict.fromkeys(CLASS_NAMES, 0.5)
    assert found["calibration_error"] == pytest.approx(0.07)
    assert found["image_iou_percentiles"]["50"] == pytest.approx(np.median(metrics.mean_iou(matrices(4))))
    assert {name: row["examples"] for name, row in found["groups"]["species"].items()} == {"Cat": 3, "Dog": 1}
    assert found["groups"]["species"]["Dog"]["mean_iou"] == pytest.approx(metrics.mean_iou(matrices(4)[1]))
    text = score_tables.table(found)
    for shown in ("test at native resolution, step 7: 4 examples", "boundary f", "95% interval", "Dog", "0.0700"):
        assert shown in text


def test_rows_hold_the_scores_of_each_image_by_itself():
    evaluation = detailed()
    rows = analysis.rows(evaluation, ["a", "b", "c", "d"], {"species": ("Cat", "Dog", "Cat", "Cat")})
    assert [row["name"] for row in rows] == ["a", "b", "c", "d"]
    assert rows[1]["species"] == "Dog"
    scores = metrics.from_confusion_matrix(evaluation.confusion_matrices[1], CLASS_NAMES)
    assert rows[1]["mean_iou"] == scores["mean_iou"]
    assert rows[1]["iou_border"] == scores["iou"]["border"]
    assert rows[1]["boundary_f_pet"] == 0.5
