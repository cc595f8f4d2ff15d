"""Early stopping (--patience), also after kills and restarts."""

import json
import shutil

import pytest
import tensorflow as tf
from conftest import changed, events, tiny_flags
from short_trainings import built_once

from petseg.config import Config, command_line
from petseg.config.eval_config import ScoreConfig
from petseg.errors import ConfigError
from petseg.evaluation.evaluator import Evaluator
from petseg.reporting.summaries import Summaries
from petseg.runs import early_stopping, evaluations, train, watch_checkpoints
from petseg.runs.checkpoints import Checkpoints
from petseg.runs.trained_run import TrainedRun
from petseg.runs.work_directory import WorkDirectory
from petseg.training.trainer import Trainer

SCORES = {2: 0.5, 4: 0.5, 6: 0.6, 8: 0.2}  # a tie is no better score, so the run ends at step 4


class Killed(BaseException):
    """Not caught by any program."""


@pytest.fixture(scope="module", autouse=True)
def scores():
    """Evaluations find the scores above."""
    genuine = evaluations.split_results

    def results(*arguments, **options):
        found = genuine(*arguments, **options)
        return {**found, "mean_iou": SCORES[found["step"]]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluations, "split_results", results)
        yield


@pytest.fixture(scope="module", autouse=True)
def same_build(tmp_path_factory):
    """All trainings of this module have one config but for their flags of the loop."""
    with built_once(tmp_path_factory.mktemp("built")):
        yield


def patient(data_dir, workdir, *flags):
    """A run of eight steps, evaluated at every second, that ends when one of its scores is no better."""
    intervals = ["--train_steps=8", "--eval_every=2", "--checkpoint_every=3", "--histogram_every=100", "--patience=1"]
    return command_line.parse(["train.py", *tiny_flags(data_dir, workdir), *intervals, *flags], Config)


@pytest.fixture(scope="module")
def ended(data_dir, tmp_path_factory):
    """The work directory of a run that has ended early, and what `train` returned."""
    workdir = tmp_path_factory.mktemp("ended") / "run"
    return workdir, train.train(patient(data_dir, workdir))


def left(workdir):
    """What a run has written, without times."""
    workdir = WorkDirectory(workdir)
    timed = ("speed/", "time_share/", "memory/")
    rows = [row for row in workdir.metrics_file.read_text().splitlines() if not any(tag in row for tag in timed)]
    reader = tf.train.load_checkpoint(str(workdir.checkpoints / "ckpt-4"))
    names = set(reader.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH"}  # which counts all layers ever
    weights = {name: reader.get_tensor(name).tobytes() for name in names}
    results = {file.name: file.read_text() for file in workdir.results.iterdir()}
    figures = {file.name for file in workdir.figures.iterdir()}
    steps = events(workdir.path / "eval")["loss"]
    return rows, weights, results, figures, steps, json.loads((workdir.best / "best.json").read_text())


def test_a_run_whose_scores_stop_improving_ends_early_and_is_complete(data_dir, ended, caplog, capsys, monkeypatch):
    workdir, results = ended
    assert results["step"] == 4
    expected = left(workdir)
    assert expected[-1] == {"step": 2, "mean_iou": 0.5}
    assert "curves.png" in expected[3]
    monkeypatch.setattr(Trainer, "run", None)
    monkeypatch.setattr(Evaluator, "evaluate", None)
    with caplog.at_level("INFO", logger="petseg"):
        assert train.train(patient(data_dir, workdir)) == results
    assert "step 4: mean IoU has not improved on 0.5000 (step 2) in 1 evaluations: the run ends here" in caplog.messages
    assert f"{workdir} is complete: step 4 of 4" in caplog.messages
    assert left(workdir) == expected
    assert f"score it:       petseg-eval --workdir={workdir} --checkpoint=best" in capsys.readouterr().out


def test_watching_ends_at_an_early_stop(ended, monkeypatch):
    monkeypatch.setattr(watch_checkpoints.time, "sleep", None)  # it must not wait
    run = TrainedRun.open(WorkDirectory(ended[0]), ScoreConfig(workdir=str(ended[0])))
    assert list(watch_checkpoints.new_checkpoints(run, ScoreConfig(workdir=str(ended[0])))) == [
        run.path_of(3),
        run.path_of(4),
    ]


def test_a_repeated_missed_evaluation_can_stop_the_run_early(data_dir, ended, tmp_path, monkeypatch):
    workdir = shutil.copytree(ended[0], tmp_path / "run")
    WorkDirectory(workdir).results_file("test", 4).unlink()
    monkeypatch.setattr(Trainer, "run", None)
    assert train.train(patient(data_dir, workdir)) == ended[1]
    assert left(workdir) == left(ended[0])


@pytest.mark.slow
def test_a_run_that_stopped_early_continues_with_more_patience(data_dir, ended, tmp_path):
    workdir = shutil.copytree(ended[0], tmp_path / "run")
    assert train.train(patient(data_dir, workdir, "--patience=2"))["step"] == 8
    assert json.loads((workdir / "best" / "best.json").read_text()) == {"step": 6, "mean_iou": 0.6}


@pytest.mark.slow
def test_a_killed_run_stops_early_at_the_same_step(data_dir, ended, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    for owner, name, number in (
        (evaluations, "write_json", 2),  # results of step 4 are there, its rows are not; the checkpoint is that of 3
        (Summaries, "evaluated", 1),  # the evaluation of step 4 is complete, and there is no checkpoint of it
        (Checkpoints, "save", 1),  # there is one, and the end of the run is not recorded
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killing(getattr(owner, name), number))
            with pytest.raises(Killed):
                train.train(patient(data_dir, workdir))
    assert train.train(patient(data_dir, workdir)) == ended[1]
    assert left(workdir) == left(ended[0])


def killing(genuine, number):
    """A function that ends the process after its call of some number."""
    calls = iter(range(1, 100))

    def function(*arguments, **options):
        genuine(*arguments, **options)
        if next(calls) == number:
            raise Killed

    return function


def test_early_stopping_uses_the_score_of_model_selection(tiny_config, tmp_path):
    file = tmp_path / "metrics.csv"
    rows = [(step, run, score) for step in (0, 5, 10, 15) for run, score in (("eval", step), ("ema", 100 - step))]
    file.write_text("".join(f"{step},{run},mean_iou,{score}\n" for step, run, score in rows))
    plain = changed(tiny_config, "schedule", patience=2)
    averaged = changed(plain, "optimizer", ema_decay=0.9)
    assert early_stopping.no_improvement(plain, file, 15) is None
    assert early_stopping.no_improvement(averaged, file, 15) == (5, 95, 2)  # the start is no evaluation that counts
    assert early_stopping.no_improvement(averaged, file, 10) is None
    assert early_stopping.no_improvement(averaged, file, 14) is None  # it was not evaluated there
    assert early_stopping.no_improvement(tiny_config, file, 15) is None
    patient = changed(averaged, "schedule", patience=3)
    assert early_stopping.no_improvement(patient, file, 15) is None


@pytest.mark.parametrize("schedule", ["cosine", "polynomial"])
def test_patience_with_a_decaying_learning_rate_needs_its_own_flag(tiny_config, schedule):
    falling = changed(tiny_config, "optimizer", learning_rate_schedule=schedule)
    with pytest.raises(ConfigError, match=rf"--patience=3: must be 0 with --learning_rate_schedule={schedule}, .*"):
        changed(falling, "schedule", patience=3)
    assert changed(falling, "schedule", patience=3, patience_before_decay=True).schedule.patience == 3
    assert changed(tiny_config, "schedule", patience=3).schedule.patience == 3


def test_early_stopping_adds_own_scores_to_logged_ones_without_those_of_later_steps(tiny_config, tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("2,eval,mean_iou,0.5\n4,eval,mean_iou,0.9\n5,eval,mean_iou,1.0\n")
    patience = early_stopping.EarlyStopping(changed(tiny_config, "schedule", patience=2), file)
    assert patience.no_improvement(4) is None  # a run that resumes at step 4
    found = []
    for step, score in ((6, 0.8), (8, 0.7), (10, 0.95)):
        patience.add(step, score)
        found.append(patience.no_improvement(step))
    assert found == [None, (4, 0.9, 2), None]
