import time
from pathlib import Path

import keras
import numpy as np
import pytest
import scipy.ndimage
import sklearn.metrics

from petseg.classes import PETS
from petseg.evaluation import metrics
from petseg.training import confusion_matrix

NAMES = ("pet", "background", "border")


def random_case(seed, classes=3):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, classes, (2, 3, 8, 8))
    return labels.astype(np.uint8), predictions.astype(np.int32), rng.random((3, 8, 8)) < 0.8


@pytest.mark.parametrize("classes", [2, 3])  # with 2, the third class occurs nowhere
def test_scores_equal_those_of_keras(classes):
    labels, predictions, valid = random_case(0, classes)
    matrix = confusion_matrix.confusion_matrices(labels, predictions, valid, 3).numpy().sum(0)
    scores = metrics.from_confusion_matrix(matrix, PETS)
    mean_iou = keras.metrics.MeanIoU(3)
    mean_iou.update_state(labels, predictions, sample_weight=valid)
    assert scores["mean_iou"] == pytest.approx(float(mean_iou.result()), rel=1e-6)
    assert scores["accuracy"] == pytest.approx(np.mean(labels[valid] == predictions[valid]))
    for i, name in enumerate(NAMES[:classes]):
        true, predicted = labels[valid] == i, predictions[valid] == i
        hit = np.sum(true & predicted)
        assert scores["iou"][name] == pytest.approx(hit / np.sum(true | predicted))
        assert scores["dice"][name] == pytest.approx(2 * hit / (np.sum(true) + np.sum(predicted)))
        assert scores["precision"][name] == pytest.approx(hit / np.sum(predicted))
        assert scores["recall"][name] == pytest.approx(hit / np.sum(true))


def test_a_class_that_occurs_nowhere_has_no_score_and_does_not_pull_the_mean_down():
    scores = metrics.from_confusion_matrix(np.diag([5, 7, 0]), PETS)
    assert scores["mean_iou"] == scores["accuracy"] == 1
    assert np.isnan(scores["iou"]["border"])


def test_mean_iou_of_stacked_matrices_is_that_of_each_matrix():
    labels, predictions, valid = random_case(1)
    valid[2] = False  # an image without a single valid pixel has no score
    matrices = confusion_matrix.confusion_matrices(labels, predictions, valid, 3).numpy()
    first, second, third = metrics.mean_iou(matrices)
    assert [first, second] == [metrics.from_confusion_matrix(matrix, PETS)["mean_iou"] for matrix in matrices[:2]]
    assert np.isnan(third)


def smooth_case(seed, classes=3):
    """Masks with regions, as real ones have, predictions that are nearly right, and some pixels without a class."""
    rng = np.random.default_rng(seed)
    noise = scipy.ndimage.gaussian_filter(rng.normal(size=(2, classes, 40, 52)), (0, 0, 4, 4))
    labels = noise.argmax(1)
    shifted = np.roll(labels, rng.integers(0, 3, 2), axis=(1, 2))
    valid = np.ones(labels.shape, bool)
    valid[:, 10:13, :20] = False
    return labels.astype(np.uint8), shifted.astype(np.int32), valid


def outlines_of(ids, valid, number):
    """The outline of a class as morphology draws it: what a cross erodes, away from the edge and from the unknown."""
    cross = scipy.ndimage.generate_binary_structure(2, 1)
    known = scipy.ndimage.binary_erosion(valid, cross, border_value=1)
    inside = scipy.ndimage.binary_erosion(ids == number, cross, border_value=1)
    return (ids == number) & ~inside & known


@pytest.mark.parametrize("tolerance", [1, 3])
@pytest.mark.parametrize("classes", [2, 3])  # with 2, the third class occurs nowhere
def test_boundary_counts_equal_those_of_a_distance_transform(classes, tolerance):
    labels, predictions, valid = smooth_case(classes, classes)
    counts = metrics.boundary_counts(labels, predictions, valid, 3, tolerance).numpy()
    assert counts.shape == (2, 3, 4)
    for i in range(2):
        for number in range(classes):
            predicted = outlines_of(predictions[i], valid[i], number)
            true = outlines_of(labels[i], valid[i], number)
            far = [scipy.ndimage.distance_transform_cdt(~each, "chessboard") for each in (true, predicted)]
            expected = [
                predicted.sum(), (predicted & (far[0] <= tolerance)).sum(),
                true.sum(), (true & (far[1] <= tolerance)).sum(),
            ]  # fmt: skip
            assert counts[i, number].tolist() == expected
            assert expected[0] > expected[1] > 0 or tolerance == 3
    if classes == 2:
        assert not counts[:, 2].any()
        assert np.isnan(metrics.boundary_f_scores(counts[0, 2]))


@pytest.mark.parametrize("tolerance", [1, 2, 3, 4, 7, 60])  # the last one is larger than the image
def test_sparse_boundaries_match_within_a_square_of_any_size(tolerance):
    rng = np.random.default_rng(tolerance)
    labels, predictions = (rng.random((2, 2, 40, 52)) < 0.002).astype(np.uint8)
    valid = np.ones(labels.shape, bool)
    counts = metrics.boundary_counts(labels, predictions.astype(np.int32), valid, 2, tolerance).numpy()
    for i in range(2):
        for number in range(2):
            predicted, true = (outlines_of(ids[i], valid[i], number) for ids in (predictions, labels))
            near = [
                scipy.ndimage.maximum_filter(each, 2 * tolerance + 1, mode="constant") for each in (true, predicted)
            ]
            expected = [predicted.sum(), (predicted & near[0]).sum(), true.sum(), (true & near[1]).sum()]
            assert counts[i, number].tolist() == expected


def peak_memory():
    """Peak memory of this process since the last call in MiB, which Linux reports and resets."""
    status = Path("/proc/self/status").read_text()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not report the peak memory of a process")
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def test_boundaries_of_a_large_image_take_little_time_and_memory():
    labels = np.kron(np.random.default_rng(0).integers(0, 3, (1, 15, 20)), np.ones((1, 100, 100), int)).astype(np.uint8)
    peak_memory()
    before, began = peak_memory(), time.monotonic()
    counts = metrics.boundary_counts(labels, np.roll(labels, 20, 1).astype(np.int32), labels < 3, 3, 40).numpy()
    assert time.monotonic() - began < 15  # a window of 81 x 81 takes minutes
    assert (counts[0, :, 1] > counts[0, :, 0] * 0.9).all()
    assert peak_memory() - before < 200


def test_boundary_f_scores_of_perfect_partial_and_missing_boundaries():
    counts = np.array([[10, 10, 8, 8], [10, 5, 20, 10], [10, 0, 20, 0], [0, 0, 20, 0], [10, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(metrics.boundary_f_scores(counts), [1, 0.5, 0, 0, 0, np.nan])
    assert metrics.boundary_tolerance(128, 128) == 1
    assert metrics.boundary_tolerance(375, 500) == 5


def test_calibration_error_equals_its_definition():
    rng = np.random.default_rng(0)
    confidences = rng.uniform(1 / 3, 1, (4, 16, 16)).astype(np.float32)
    confidences[0, 0, 0] = 1.0
    correct, valid = rng.random((4, 16, 16)) < confidences**2, rng.random((4, 16, 16)) < 0.9
    counts = sum(
        metrics.calibration_counts(c[None], r[None], v[None]).numpy()
        for c, r, v in zip(confidences, correct, valid, strict=True)
    )
    edges = np.linspace(0, 1, metrics.CALIBRATION_BINS + 1)
    bins = np.minimum(np.digitize(confidences, edges) - 1, metrics.CALIBRATION_BINS - 1)
    expected = 0.0
    for number in range(metrics.CALIBRATION_BINS):
        chosen = (bins == number) & valid
        if chosen.any():
            expected += chosen.sum() / valid.sum() * abs(correct[chosen].mean() - confidences[chosen].mean())
    assert metrics.calibration_error(counts) == pytest.approx(expected, rel=1e-5)
    assert metrics.calibration_error(counts) > 0.1
    assert np.isnan(metrics.calibration_error(np.zeros_like(counts)))


def test_foreground_iou_with_and_without_borders_equals_jaccard_scores_of_scikit_learn():
    labels, predictions, valid = random_case(7)
    matrix = confusion_matrix.confusion_matrices(labels, predictions, valid, 3).numpy().sum(0)
    true, predicted = labels[valid] != 1, predictions[valid] != 1  # pet and border are the pet
    assert metrics.foreground_iou(matrix, PETS) == pytest.approx(sklearn.metrics.jaccard_score(true, predicted))
    without = labels[valid] != 2
    expected = pytest.approx(sklearn.metrics.jaccard_score(true[without], predicted[without]))
    assert metrics.foreground_iou(matrix, PETS, without_borders=True) == expected
    assert np.isnan(metrics.foreground_iou(np.diag([0, 5, 0]), PETS))
