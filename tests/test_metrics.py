import keras
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from petseg import metrics

NAMES = ("pet", "background", "border")


def random_case(seed, classes=3):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, classes, (2, 3, 8, 8))
    return labels.astype(np.uint8), predictions.astype(np.int32), rng.random((3, 8, 8)) < 0.8


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_confusion_matrices_count_the_valid_pixels_of_each_image_by_true_and_predicted_class(seed):
    labels, predictions, valid = random_case(seed)
    expected = np.zeros((3, 3, 3), np.int64)
    np.add.at(expected, (np.nonzero(valid)[0], labels[valid], predictions[valid]), 1)
    matrices = metrics.confusion_matrices(labels, predictions, valid, 3).numpy()
    assert matrices.dtype == np.int64
    np.testing.assert_array_equal(matrices, expected)


@pytest.mark.parametrize("classes", [2, 3])  # with 2, the third class occurs nowhere
def test_scores_are_those_of_keras(classes):
    labels, predictions, valid = random_case(0, classes)
    matrix = metrics.confusion_matrices(labels, predictions, valid, 3).numpy().sum(0)
    scores = metrics.from_confusion_matrix(matrix, NAMES)
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
    scores = metrics.from_confusion_matrix(np.diag([5, 7, 0]), NAMES)
    assert scores["mean_iou"] == scores["accuracy"] == 1
    assert np.isnan(scores["iou"]["border"])


def test_the_mean_iou_of_each_image_is_that_of_its_own_matrix():
    labels, predictions, valid = random_case(1)
    valid[2] = False  # an image without a single valid pixel has no score
    matrices = metrics.confusion_matrices(labels, predictions, valid, 3).numpy()
    first, second, third = metrics.mean_iou(matrices)
    assert [first, second] == [metrics.from_confusion_matrix(matrix, NAMES)["mean_iou"] for matrix in matrices[:2]]
    assert np.isnan(third)
