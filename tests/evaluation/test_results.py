import dataclasses

import numpy as np
import pytest

from petseg.classes import PETS
from petseg.errors import ConfigError
from petseg.evaluation import metrics, score_tables
from petseg.evaluation.evaluation import Evaluation
from petseg.evaluation.results import image_rows, split_results


def matrices(count=40, quality=8, seed=0):
    """Confusion matrices of images of about 100 pixels; the true class is 1 + quality times as likely as another."""
    rng = np.random.default_rng(seed)
    return rng.poisson(100 / (quality + 6) / 3 * (1 + quality * np.eye(3)), (count, 3, 3))


def detailed():
    counts = matrices(4)
    boundaries = np.tile(np.array([10, 5, 20, 10]), (4, 3, 1))
    calibration = np.zeros((metrics.CALIBRATION_BINS, 3))
    calibration[-1] = 100, 97, 90
    return Evaluation(0.5, counts, boundaries, calibration)


def mean_image_dice(matrix, classes, images):
    return {"image_dice": np.mean([metrics.from_confusion_matrix(each, classes)["dice"]["pet"] for each in images])}


@pytest.mark.parametrize("unit", [1, 4])
def test_a_score_of_ones_own_of_single_images_is_in_evaluations_and_not_in_training(unit):
    evaluation = dataclasses.replace(detailed(), unit=unit)
    own = metrics.own(f"{__name__}:mean_image_dice")
    found = split_results(evaluation, 7, "test", PETS, own_scores=own)
    expected = mean_image_dice(None, PETS, evaluation.confusion_matrices)["image_dice"]
    assert found["image_dice"] == pytest.approx(expected)
    assert evaluation.pixels_of_images.sum() * unit == evaluation.confusion_matrix.sum()
    assert "image_dice" not in metrics.from_confusion_matrix(evaluation.confusion_matrix, PETS, own)


def own_mean_iou(matrix, classes):
    return {"mean_iou": 1.0}


def own_loss(matrix, classes):
    return {"loss": 0.0}


@pytest.mark.parametrize("function", [own_mean_iou, own_loss])
def test_a_score_of_ones_own_cannot_replace_what_selects_the_best_checkpoint(function):
    own = metrics.own(f"{__name__}:{function.__name__}")
    with pytest.raises(ConfigError, match="a name of petseg's own"):
        split_results(detailed(), 7, "test", PETS, own_scores=own)


def test_results_of_an_evaluation_with_details_have_every_score():
    evaluation = detailed()
    species = {"species": ("Cat", "Dog", "Cat", "Cat")}
    found = split_results(evaluation, 7, "test", PETS, resolution="native resolution", groups=species)
    assert found["examples"] == 4
    assert found["confusion_matrix"] == evaluation.confusion_matrices.sum(axis=0).tolist()
    assert found["boundary_f"] == dict.fromkeys(PETS.names, 0.5)
    assert found["calibration_error"] == pytest.approx(0.07)
    assert found["image_iou_percentiles"]["50"] == pytest.approx(np.median(metrics.mean_iou(matrices(4))))
    assert {name: row["examples"] for name, row in found["groups"]["species"].items()} == {"Cat": 3, "Dog": 1}
    assert found["groups"]["species"]["Dog"]["mean_iou"] == pytest.approx(metrics.mean_iou(matrices(4)[1]))
    text = score_tables.table(found)
    for shown in ("test at native resolution, step 7: 4 examples", "boundary f", "95% interval", "Dog", "0.0700"):
        assert shown in text


def test_image_rows_have_the_scores_of_each_image():
    evaluation = detailed()
    rows = image_rows(evaluation, PETS, ["a", "b", "c", "d"], {"species": ("Cat", "Dog", "Cat", "Cat")})
    assert [row["name"] for row in rows] == ["a", "b", "c", "d"]
    assert rows[1]["species"] == "Dog"
    scores = metrics.from_confusion_matrix(evaluation.confusion_matrices[1], PETS)
    assert rows[1]["mean_iou"] == scores["mean_iou"]
    assert rows[1]["iou_border"] == scores["iou"]["border"]
    assert rows[1]["boundary_f_pet"] == 0.5
