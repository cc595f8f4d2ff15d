"""Evaluations that an interrupted process missed are repeated once."""

import csv
import json
import shutil

import pytest
from conftest import events, tiny_flags
from short_trainings import built_once

from petseg.config import Config, command_line
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.errors import StoppedError
from petseg.evaluation.evaluator import Evaluator
from petseg.reporting.summaries import Summaries
from petseg.runs import checkpoints, scoring, train
from petseg.runs.work_directory import WorkDirectory
from petseg.training.trainer import Trainer


class Killed(BaseException):
    """Not caught by any program."""


@pytest.fixture(scope="module", autouse=True)
def same_build(tmp_path_factory):
    """All trainings of this module have one config but for their flags of the loop."""
    with built_once(tmp_path_factory.mktemp("built")):
        yield


def trained(data_dir, workdir, *more):
    """Trains for four steps and evaluates the last one: weights and averages."""
    flags = [*tiny_flags(data_dir, workdir), "--train_steps=4", "--eval_every=4", "--checkpoint_every=2"]
    return train.train(command_line.parse(["train.py", *flags, "--ema_decay=0.9", *more], Config))


def logged(workdir):
    """What a finished run has logged of its evaluations: rows, events, results, the best."""
    workdir = WorkDirectory(workdir)
    with open(workdir.metrics_file, newline="") as file:
        rows = [tuple(row) for row in csv.reader(file) if row[1] in ("eval", "ema", "final")]
    found = {run: events(workdir.path / run) for run in ("eval", "ema", "final")}
    for tags in found.values():
        for tag in [tag for tag in tags if tag.startswith("_hparams_")]:
            del tags[tag]
    results = {file.name: json.loads(file.read_text())["mean_iou"] for file in workdir.results.iterdir()}
    return rows, found, results, json.loads((workdir.best / "best.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    """The work directory of an uninterrupted run, and what `train` returned."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    return workdir, trained(data_dir, workdir)


@pytest.fixture(scope="module")
def stopped_run(data_dir, tmp_path_factory):
    """The same, but a signal has ended the evaluation at step 4; the checkpoint of step 4 is there."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", lambda self: None)
        with pytest.raises(StoppedError, match="at step 4"):
            trained(data_dir, workdir)
    assert checkpoints.steps(workdir / "checkpoints") == [4, 2]
    assert not (workdir / "results").exists()
    return workdir


@pytest.fixture
def stopped(stopped_run, tmp_path):
    return shutil.copytree(stopped_run, tmp_path / "run")


@pytest.mark.slow
def test_results_written_by_eval_do_not_count_as_an_evaluation_of_training(data_dir, stopped, undisturbed):
    for ema in (False, True):
        scoring.evaluate(EvalConfig(ScoreConfig(workdir=str(stopped), ema=ema)))
    trained(data_dir, stopped)
    assert logged(stopped) == logged(undisturbed[0])


def after(cls, name, number=1):
    """A method that ends the process after its call of some number."""
    genuine, calls = getattr(cls, name), iter(range(1, 100))

    def method(self, *arguments, **options):
        value = genuine(self, *arguments, **options)
        if next(calls) == number:
            raise Killed
        return value

    return cls, name, method


@pytest.mark.parametrize(("name", "number"), [pytest.param("image", 3, marks=pytest.mark.slow), ("scalars", 3)])
def test_an_interrupted_evaluation_is_repeated_and_logged_once(
    data_dir, stopped, undisturbed, monkeypatch, name, number
):
    with monkeypatch.context() as patch:
        patch.setattr(*after(Summaries, name, number))
        if name == "scalars":  # the last row was logged, but did not reach the file
            patch.setattr(Summaries, "close", lambda self: None)
        with pytest.raises(Killed):
            trained(data_dir, stopped)
    trained(data_dir, stopped)
    assert logged(stopped) == logged(undisturbed[0])


def test_a_finished_evaluation_is_not_repeated(data_dir, undisturbed, monkeypatch):
    workdir, results = undisturbed
    assert results["ema"] == json.loads((workdir / "results" / "test-4.ema.json").read_text())
    monkeypatch.setattr(Evaluator, "evaluate", None)
    assert trained(data_dir, workdir) == results


def test_a_run_beyond_its_new_end_is_evaluated_at_its_step(data_dir, stopped, monkeypatch, caplog):
    monkeypatch.setattr(Trainer, "run", None)
    with caplog.at_level("INFO", logger="petseg"):
        results = trained(data_dir, stopped, "--train_steps=2")
    assert results["step"] == 4
    assert json.loads((stopped / "best" / "best.json").read_text())["step"] == 4
    assert any("is at step 4, beyond the last one, 2" in message for message in caplog.messages)
