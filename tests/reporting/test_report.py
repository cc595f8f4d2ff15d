import io
import logging

import numpy as np
import pytest
from conftest import changed, events, random_examples
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from petseg.classes import PETS
from petseg.evaluation import large_splits, metrics, score_tables
from petseg.evaluation.evaluation import Evaluation
from petseg.evaluation.large_splits import LargeSplit
from petseg.evaluation.results import split_results
from petseg.reporting import pictures
from petseg.reporting.report import EXTREME_EXAMPLES, NullReport, Report
from petseg.reporting.summaries import EVAL, read_csv
from petseg.runs.work_directory import WorkDirectory
from petseg.training import measurements
from petseg.training.measurements import Measurements

drawn = pytest.mark.usefixtures("drawn_figures")


class Scorer:
    """Predicts background everywhere and records the images."""

    def __init__(self):
        self.asked = []

    def predict(self, images):
        self.asked.append(images)
        return np.ones(images.shape[:3], np.int32), np.full(images.shape[:3], 0.9, np.float32)


def make_report(workdir, config, **options):
    return Report(
        changed(config, "runtime", quiet=True),
        PETS,
        selected=EVAL,
        directory=workdir.path,
        metrics_file=workdir.metrics_file,
        figures=workdir.figures,
        contents={},
        description="",
        steps_per_epoch=3,
        **{"first_step": 0, "last_step": 4, **options},
    )


@pytest.fixture
def workdir(tiny_config):
    workdir = WorkDirectory(tiny_config.runtime.workdir)
    workdir.path.mkdir()
    return workdir


@pytest.fixture
def report(workdir, tiny_config):
    report = make_report(workdir, tiny_config)
    yield report, workdir
    report.close()


def evaluate(report, step=2):
    """Reports an evaluation of twelve images with increasing scores, the last of which has only ignored pixels."""
    examples, scorer = random_examples(12), Scorer()
    matrices = np.array([np.full((3, 3), 40) + i * 30 * np.eye(3, dtype=int) for i in range(11)] + [np.zeros((3, 3))])
    evaluation = Evaluation(0.5, matrices.astype(np.int64))
    results = split_results(evaluation, step, "test", PETS)
    report.evaluation(step, {EVAL: evaluation}, {EVAL: results}, examples, scorer)
    return examples, scorer


def test_the_worst_and_best_images_with_a_score_are_shown(report):
    examples, scorer = evaluate(report[0])
    (asked,) = scorer.asked
    expected = [*range(6), *range(EXTREME_EXAMPLES), *range(10, 10 - EXTREME_EXAMPLES, -1)]
    np.testing.assert_array_equal(asked, examples.images[expected])


def test_of_a_large_split_the_worst_and_best_of_all_images_are_shown(report, monkeypatch):
    monkeypatch.setattr(large_splits, "MOST_ROWS", 8)
    examples, scorer = random_examples(40), Scorer()
    matrices = np.array([np.full((3, 3), 40) + i * 30 * np.eye(3, dtype=int) for i in range(40)])
    large = LargeSplit(40, 3, resamples=0)
    large.add(0, matrices)
    evaluation = Evaluation(0.5, large.confusion_matrices, large_split=large)
    results = split_results(evaluation, 2, "test", PETS)
    assert results["examples"] == 40
    report[0].evaluation(2, {EVAL: evaluation}, {EVAL: results}, examples, scorer)
    (asked,) = scorer.asked
    expected = [*range(6), *range(EXTREME_EXAMPLES), *range(39, 39 - EXTREME_EXAMPLES, -1)]
    np.testing.assert_array_equal(asked, examples.images[expected])


@drawn
def test_figures_are_updated_at_each_evaluation(report):
    report, workdir = report
    evaluate(report)
    before = {file.name: file.read_bytes() for file in workdir.figures.iterdir()}
    assert set(before) == {"predictions.png", "confusion_matrix.png", "curves.png"}
    evaluate(report, step=4)
    after = {file.name: file.read_bytes() for file in workdir.figures.iterdir()}
    assert after["curves.png"] != before["curves.png"]
    assert after["confusion_matrix.png"] == before["confusion_matrix.png"]
    assert [row[0] for row in read_csv(workdir.metrics_file) if row[1:3] == ("eval", "loss")] == [2, 4]


@pytest.fixture
def rows_of_curves(monkeypatch):
    """The rows of each figure of curves, which is empty."""
    drawn = []

    def training_curves(rows, *_):
        drawn.append(list(rows))
        return Figure()

    monkeypatch.setattr(pictures, "training_curves", training_curves)
    return drawn


def test_a_resumed_run_draws_the_curves_of_an_uninterrupted_one(workdir, tiny_config, rows_of_curves):
    whole = make_report(workdir, tiny_config)
    evaluate(whole)
    evaluate(whole, step=4)
    whole.close()
    (workdir.figures / "curves.png").unlink()
    resumed = make_report(workdir, tiny_config, first_step=2)  # the rows of step 4 are dropped
    evaluate(resumed, step=4)
    resumed.close()
    _, expected, found = rows_of_curves
    assert found == expected
    assert {step for step, *_ in found} == {2, 4}
    assert (workdir.figures / "curves.png").exists()


def test_an_evaluation_does_not_reread_the_csv_file(workdir, tiny_config, rows_of_curves):
    for is_emptied in (False, True):
        report = make_report(workdir, tiny_config)
        evaluate(report)
        if is_emptied:
            workdir.metrics_file.write_bytes(b"")
        evaluate(report, step=4)
        report.close()
    assert rows_of_curves[1] == rows_of_curves[3]


def pictures_logged(workdir, tag):
    """Encoded images of a tag in the event files of evaluations, by step."""
    accumulator = EventAccumulator(str(workdir.path / "eval"), size_guidance={"tensors": 0})
    accumulator.Reload()
    return {event.step: event.tensor_proto.string_val[2] for event in accumulator.Tensors(tag)}


@drawn
def test_event_files_contain_photographs_as_jpeg(report):
    report, workdir = report
    evaluate(report)
    report.flush()
    figure = Image.open(workdir.figures / "predictions.png")
    logged = Image.open(io.BytesIO(pictures_logged(workdir, "predictions")[2]))
    assert (figure.format, logged.format) == ("PNG", "JPEG")
    assert logged.size == figure.size
    difference = np.abs(np.asarray(logged, np.int16) - np.asarray(figure, np.int16))
    assert difference.mean() < 5
    assert pictures_logged(workdir, "worst")[2].startswith(b"\xff\xd8")
    assert Image.open(io.BytesIO(pictures_logged(workdir, "confusion_matrix")[2])).format == "PNG"


def test_images_of_many_evaluations_are_thinned_out_in_event_files(workdir, tiny_config):
    report = make_report(workdir, tiny_config, last_step=335, evaluate_every=10)
    for step in (150, 160, 170, 335):
        evaluate(report, step=step)
        figure = (workdir.figures / "predictions.png").read_bytes()
        (workdir.figures / "predictions.png").unlink()
    assert figure
    report.close()
    for tag in ("predictions", "worst", "best", "confusion_matrix"):
        assert list(pictures_logged(workdir, tag)) == [150, 160, 335]
    assert events(workdir.path / "eval")["mean_iou"] == [150, 160, 170, 335]


def test_figures_that_cannot_be_written_do_not_end_the_training(report, caplog):
    report, workdir = report
    workdir.figures.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "petseg"):
        evaluate(report)
    (message,) = caplog.messages
    assert message.startswith("summaries cannot be written, training continues: ")


def test_a_summary_is_readable_at_once(report):
    report, workdir = report
    scalars = dict.fromkeys(measurements.DESCRIPTIONS, 0.5)
    sums = Measurements(2, scalars, np.eye(3, dtype=np.int64))
    for step in (2, 4):
        report.summary(step, sums, {"speed/images_per_second": 100.0})
        for tag in ("loss", "mean_iou", "speed/images_per_second"):
            assert [row[0] for row in read_csv(workdir.metrics_file) if row[1:3] == ("train", tag)][-1] == step
            assert events(workdir.path / "train")[tag][-1] == step


def test_non_finite_gradients_have_no_histogram(report):
    report, workdir = report
    weights = {"kernel": np.ones((2, 2), np.float32)}
    report.histograms(2, weights, {"kernel": np.array([np.inf, 1.0])})
    report.flush()
    (file,) = (workdir.path / "train").iterdir()
    assert b"weights/kernel" in file.read_bytes()
    assert b"gradients/kernel" not in file.read_bytes()


def test_a_split_without_labelled_pixels_is_reported(report):
    report, workdir = report
    evaluation = Evaluation(float("nan"), np.zeros((12, 3, 3), np.int64))
    results = split_results(evaluation, 2, "test", PETS)
    report.evaluation(2, {EVAL: evaluation}, {EVAL: results}, random_examples(12), Scorer())
    assert {file.name for file in workdir.figures.iterdir()} == {
        "predictions.png",
        "confusion_matrix.png",
        "curves.png",
    }


def test_the_null_report_replaces_each_method_of_the_report_by_one_without_effect():
    methods = [name for name in vars(Report) if not name.startswith("_")]
    assert methods
    for name in methods:
        assert getattr(NullReport(), name)("anything") is None


def test_a_score_that_is_added_in_metrics_alone_reaches_results_tables_and_tensorboard(report, monkeypatch):
    report, workdir = report
    scores_of = metrics.from_confusion_matrix

    def with_new_scores(*arguments):
        scores, (_, classes, *_) = scores_of(*arguments), arguments
        dice = list(scores["dice"].values())
        return {**scores, "mean_dice": float(np.mean(dice)), "specificity": dict.fromkeys(classes.names, 0.875)}

    monkeypatch.setattr(metrics, "from_confusion_matrix", with_new_scores)
    scalars = dict.fromkeys(measurements.DESCRIPTIONS, 0.5)
    report.summary(2, Measurements(2, scalars, np.eye(3, dtype=np.int64)), {"speed/images_per_second": 100.0})
    matrices = np.array([[[8, 1, 1], [2, 8, 0], [0, 0, 4]]] * 12)
    evaluation = Evaluation(0.5, matrices, np.ones((12, 3, 4), np.int64), np.ones((metrics.CALIBRATION_BINS, 3)))
    results = split_results(evaluation, 2, "test", PETS)
    report.evaluation(2, {EVAL: evaluation}, {EVAL: results}, random_examples(12), Scorer())
    report.flush()
    assert results["mean_dice"] == pytest.approx(np.mean(list(results["dice"].values())))
    columns, *_ = (line.split() for line in score_tables.table(results).splitlines()[1:])
    assert columns == ["iou", "dice", "precision", "recall", "specificity", "boundary", "f"]
    assert f"mean dice{results['mean_dice']:14.4f}" in score_tables.table(results)
    assert f"{results['mean_dice']:.4f}" in score_tables.runs_table({"a": results, "b": results})
    for run in ("train", "eval"):
        logged = events(workdir.path / run)
        assert len(logged["mean_dice"]) == len(logged["specificity/border"]) == 1
        accumulator = EventAccumulator(str(workdir.path / run))
        accumulator.Reload()
        descriptions = [
            accumulator.SummaryMetadata(tag).summary_description
            for tag in ("mean_dice", "specificity/border", "mean_iou")
        ]
        assert descriptions[:2] == ["Mean dice.", "Specificity of border."]
        assert descriptions[2].startswith("Mean intersection over union")
    rows = [row[1:3] for row in read_csv(workdir.metrics_file)]
    assert {(run, tag) for run in ("train", "eval") for tag in ("mean_dice", "specificity/pet")} <= set(rows)
