"""Complete runs, in this process or as programs."""

import csv
import errno
import json
import os
import shutil

import numpy as np
import programs_in_forks
import pytest
from conftest import NUM_TEST, changed, four_steps, own_lines, run_program, tiny_flags

from petseg.classes import PETS
from petseg.config import with_run_defaults
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.data import loading
from petseg.data.backends import on_demand
from petseg.errors import CheckpointError, ConfigError, DataError, WorkDirectoryError
from petseg.reporting import tags
from petseg.runs import scoring, train
from petseg.runs.work_directory import WorkDirectory
from petseg.training import sample_weights

SCORES = [
    "accuracy",
    "mean_iou",
    "foreground_iou",
    *(f"{m}/{c}" for m in ("iou", "dice", "precision", "recall") for c in PETS.names),
]


@pytest.fixture(scope="module")
def finished(finished_run, tmp_path_factory):
    """The work directory of a finished run."""
    return WorkDirectory(shutil.copytree(finished_run, tmp_path_factory.mktemp("finished") / "run"))


def test_a_complete_run_has_all_documented_files(finished, finished_run, data_dir):
    found_in_data = {"channels": 3, "image_dtype": "uint8", "intensity_range": "0,255"}
    given = with_run_defaults(four_steps(data_dir, finished_run), None)
    assert finished.load_config() == given.changed(data=found_in_data)
    assert sorted(path.name for path in finished.checkpoints.glob("*.index")) == ["ckpt-2.index", "ckpt-4.index"]
    assert len(list(finished.best.glob("*.index"))) == 1
    assert sorted(path.name for path in finished.results.iterdir()) == ["test-2.json", "test-4.json"]
    figures = {"curves.png", "predictions.png", "confusion_matrix.png", "model.png"}
    assert {path.name for path in finished.figures.iterdir()} == figures
    written = json.loads((finished.results / "test-4.json").read_text())
    scores = ["accuracy", "mean_iou", "foreground_iou", "iou", "dice", "precision", "recall"]
    assert list(written) == ["step", "split", "examples", "loss", *scores, "confusion_matrix"]
    assert (written["step"], written["split"], written["examples"]) == (4, "test", NUM_TEST)
    assert np.sum(written["confusion_matrix"]) == NUM_TEST * 32 * 32


def test_the_best_checkpoint_is_the_one_with_the_best_score(finished):
    scores = {step: json.loads((finished.results / f"test-{step}.json").read_text())["mean_iou"] for step in (2, 4)}
    best = json.loads((finished.best / "best.json").read_text())
    assert best["mean_iou"] == max(scores.values())
    assert scores[best["step"]] == best["mean_iou"]


def test_metrics_csv_holds_every_logged_number_at_its_step(finished):
    with open(finished.metrics_file, newline="") as file:
        rows = list(csv.DictReader(file))
    logged = {(row["run"], row["tag"]) for row in rows}
    of_training = {*tags.SCALARS, *SCORES} - {"time_share/input"}  # unknown with --deterministic
    expected = {
        **{("train", tag): [2, 4] for tag in of_training},
        **{("eval", tag): [2, 4] for tag in ["loss", *SCORES]},
        **{("final", tag): [2, 4] for tag in tags.final(PETS)},
    }
    assert logged == set(expected)
    for (run, tag), steps in expected.items():
        assert [int(row["step"]) for row in rows if (row["run"], row["tag"]) == (run, tag)] == steps, tag
    values = [row["value"] for row in rows if row["run"] == "eval" and row["tag"] == "mean_iou"]
    assert values[-1] == repr(float(experiment_results(finished, 4)["mean_iou"]))


@pytest.mark.parametrize("checkpoint", ["latest", "best"])
def test_eval_reproduces_the_scores_of_training(finished, checkpoint, capsys):
    (results,) = scoring.evaluate(
        EvalConfig(ScoreConfig(workdir=str(finished.path), checkpoint=checkpoint, batch_size=3))
    )
    scored_in_training = experiment_results(finished, results["step"])
    assert results["confusion_matrix"] == scored_in_training["confusion_matrix"]
    assert results["loss"] == pytest.approx(scored_in_training["loss"], rel=1e-5)
    printed = capsys.readouterr().out
    assert f"{results['mean_iou']:.4f}" in printed
    for name in PETS.names:
        assert f"{results['iou'][name]:.4f}" in printed


def experiment_results(workdir, step):
    return json.loads((workdir.results / f"test-{step}.json").read_text())


def test_eval_refuses_training_images_without_the_flag(finished):
    with pytest.raises(DataError, match=r"--split=train\[:5\]: 5 of its images were trained on"):
        scoring.evaluate(EvalConfig(ScoreConfig(workdir=str(finished.path), split="train[:5]")))
    (results,) = scoring.evaluate(
        EvalConfig(ScoreConfig(workdir=str(finished.path), split="train[:5]", allow_training_images=True))
    )
    assert results["examples"] == 5
    assert (finished.results / "train.start-5-4.json").exists()


def test_eval_refuses_missing_checkpoints(finished, tmp_path):
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        scoring.evaluate(EvalConfig(ScoreConfig(workdir=str(finished.path), checkpoint=str(tmp_path / "ckpt-9"))))
    with pytest.raises(WorkDirectoryError, match="no run is here"):
        scoring.evaluate(EvalConfig(ScoreConfig(workdir=str(tmp_path))))


def test_ema_is_refused_for_a_run_without_averages(finished):
    with pytest.raises(ConfigError, match=r"--ema: .* kept no averaged weights \(its --ema_decay is 0\)"):
        scoring.evaluate(EvalConfig(ScoreConfig(workdir=str(finished.path), ema=True)))


def test_resuming_with_another_model_is_refused_and_changes_nothing(finished, data_dir):
    workdir, config = finished, four_steps(data_dir, finished.path)
    before = {path: path.stat().st_mtime_ns for path in workdir.path.rglob("*")}
    with pytest.raises(
        WorkDirectoryError, match=r"--image_size was '32', is now '64'; --encoder_alpha was 0.35, is now 0.5"
    ):
        train.train(changed(changed(config, "data", image_size="64"), "model", encoder_alpha=0.5))
    assert {path: path.stat().st_mtime_ns for path in workdir.path.rglob("*")} == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 25}, "--batch_size=25: must be at most 24, the number of training examples"),
        ({"train_split": "train[3:3]"}, r"split train\[3:3\] is empty"),
        ({"eval_split": "test[:0%]"}, r"split test\[:0%\] is empty"),
    ],
)
def test_unusable_data_leaves_no_work_directory(tiny_config, values, message):
    with pytest.raises(DataError, match=message):
        train.train(changed(tiny_config, "data", **values))
    assert not WorkDirectory(tiny_config.runtime.workdir).path.exists()


@pytest.mark.slow
def test_balanced_class_weights_are_computed_from_the_training_masks(tiny_config, caplog):
    config = changed(changed(tiny_config, "loss", class_weights="balanced"), "schedule", train_steps=1)
    with caplog.at_level("INFO", logger="petseg"):
        train.train(config)
    (line,) = [line for line in caplog.messages if line.startswith("class weights: pet ")]
    weights = [float(part.split()[-1]) for part in line.removeprefix("class weights: ").split(", ")]
    assert sum(weights) == pytest.approx(3, abs=2e-3)
    assert max(weights) == weights[PETS.names.index("border")]
    (scored,) = scoring.evaluate(EvalConfig(ScoreConfig(workdir=config.runtime.workdir)))
    trained = experiment_results(WorkDirectory(config.runtime.workdir), 1)
    assert scored["loss"] == pytest.approx(trained["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_run_resumes_with_what_it_counted_in_a_sample_of_its_masks(
    tiny_config, array_record_dir, monkeypatch, caplog
):
    monkeypatch.setattr(on_demand, "COUNTED_MASKS", 2)
    config = tiny_config.changed(
        data={"cache": "none", "data_dir": str(array_record_dir)},
        loss={"class_weights": "balanced"},
        augmentation={"crop_area": 0.5, "crop_focus": 0.5},
        schedule={"train_steps": 2},
    )
    with caplog.at_level("INFO", logger="petseg"):
        train.train(config)
    assert "counting classes in 2 of the 24 masks" in caplog.text
    workdir = WorkDirectory(config.runtime.workdir)
    record = json.loads(workdir.config_file.read_text())
    workdir.config_file.write_text(json.dumps({**record, "rare_classes": [0]}))  # as from another sample
    config = config.changed(data={"cache": "memory"})
    train.train(config.changed(schedule={"train_steps": 3}))
    after = json.loads(workdir.config_file.read_text())
    assert (after["class_weights"], after["rare_classes"]) == (record["class_weights"], [0])
    masks = loading.load(config.data, "train", PETS).masks_to_count()
    assert list(sample_weights.balanced(masks, 3)) != record["class_weights"]
    assert workdir.load_counts(changed(config, "loss", class_weights="median_frequency")).class_weights is None


@pytest.mark.slow
def test_complete_runs_are_logged_and_diverging_runs_name_step_and_checkpoint(data_dir, tmp_path):
    workdir = tmp_path / "run"
    flags = [*tiny_flags(data_dir, workdir), "--optimizer=sgd", "--eval_every=100", "--checkpoint_every=2"]
    first = programs_in_forks.run("train.py", *flags, "--train_steps=2")
    assert first.returncode == 0, first.stderr
    assert "mean IoU" in first.stdout
    assert f"tensorboard --logdir={workdir}" in first.stdout
    again = programs_in_forks.run("train.py", *flags, "--train_steps=2")
    assert again.returncode == 0
    assert f"{workdir} is complete: step 2 of 2" in again.stderr
    diverged = programs_in_forks.run("train.py", *flags, "--train_steps=20", "--learning_rate=1e30")
    assert diverged.returncode == 3
    (line,) = [line for line in own_lines(diverged.stderr) if "error" in line]
    assert line.startswith("train.py: error: the loss or its gradient is not finite at step ")
    assert f"the last good checkpoint is {workdir}/checkpoints/ckpt-" in line
    assert "Traceback" not in diverged.stderr


@pytest.mark.slow
def test_eval_program_prints_errors_in_one_line(tmp_path):
    result = programs_in_forks.run("eval.py", f"--workdir={tmp_path}")
    assert result.returncode == 2
    (line,) = own_lines(result.stderr)
    assert line == f"eval.py: error: --workdir={tmp_path}: no run is here (there is no {tmp_path}/config.json)"


@pytest.mark.slow
def test_quiet_leaves_warnings_and_errors_only(data_dir, tmp_path):
    flags = [*tiny_flags(data_dir, tmp_path / "run"), "--train_steps=2", "--quiet"]
    result = run_program("train.py", *flags)
    assert result.returncode == 0
    assert result.stdout == ""
    assert own_lines(result.stderr) == []
    assert (tmp_path / "run" / "results" / "test-2.json").exists()
    again = programs_in_forks.run("train.py", *flags, "--image_size=64")
    assert again.returncode == 2
    assert "--image_size was '32', is now '64'" in again.stderr


def test_only_write_errors_are_reported_as_write_errors(tiny_config, monkeypatch):
    def fail(number):
        def load(*arguments, **options):
            raise OSError(number, os.strerror(number), "some file")

        monkeypatch.setattr(loading, "load", load)

    fail(errno.EMFILE)
    with pytest.raises(OSError, match="Too many open files"):
        train.train(tiny_config)
    fail(errno.EROFS)
    with pytest.raises(WorkDirectoryError, match=r"^some file: cannot be written: Read-only file system$"):
        train.train(tiny_config)
