"""Samples of a split (--eval_examples), and splits too large for per-image scores."""

import csv
import json
import shutil

import pytest
from conftest import NUM_TEST, changed

from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.data import loading, subsampling
from petseg.evaluation import large_splits
from petseg.runs import group_scoring, scoring, train
from petseg.runs.work_directory import WorkDirectory


@pytest.fixture
def runs(tiny_config, tmp_path):
    """A finished run whose evaluations scored four of the ten examples, and the same run with another seed."""
    config = changed(tiny_config, "schedule", train_steps=1, eval_every=1, eval_examples=4)
    config = changed(config, "runtime", seed=3)
    assert train.train(config)["examples"] == 4
    shutil.copytree(config.runtime.workdir, tmp_path / "other")
    record = json.loads((tmp_path / "other" / "config.json").read_text())
    record["config"]["runtime"]["seed"] = 5
    (tmp_path / "other" / "config.json").write_text(json.dumps(record))
    return config, WorkDirectory(config.runtime.workdir), WorkDirectory(tmp_path / "other")


@pytest.mark.slow
def test_training_eval_and_group_scoring_use_the_same_sample(runs, array_record_dir, tmp_path, monkeypatch, capsys):
    config, first, other = runs
    trained, table = json.loads((first.results / "test-1.json").read_text()), tmp_path / "images.csv"
    asked = {"eval_examples": 4, "csv": str(table), "cache": "none", "resolution": "native"}
    asked["data_dir"] = str(array_record_dir)
    both = group_scoring.evaluate(EvalConfig(ScoreConfig(workdir=f"{first.path},{other.path}", **asked)))
    assert both[0]["confusion_matrix"] == trained["confusion_matrix"]
    assert [(each["examples"], each["sample"]) for each in both] == [(4, {"seed": 3, "of": NUM_TEST})] * 4
    assert json.loads((first.results / "test-1.sample4.json").read_text())["examples"] == 4
    assert json.loads((first.results / "test-1.json").read_text()) == trained
    names = loading.load(config.data, "test").names
    with open(table, newline="") as file:
        found = [row["name"] for row in csv.DictReader(file)]
    assert found == [names[i] for i in subsampling.positions(NUM_TEST, 4, 3)] * 2

    monkeypatch.setattr(large_splits, "MOST_ROWS", 8)
    capsys.readouterr()
    asked = {"compare": str(other.path), "csv": str(table), "eval_examples": NUM_TEST + 1}  # so all there are
    (large,) = scoring.evaluate(EvalConfig(ScoreConfig(workdir=str(first.path), **asked)))
    assert (large["examples"], large["sampled_images"], large["bootstrap"]) == (NUM_TEST, 2, "Poisson")
    assert "sample" not in large
    assert sum(row["examples"] for row in large["groups"]["label"].values()) == 2
    assert large["comparison"]["bootstrap"] == "Poisson"
    assert (large["comparison"]["difference"], large["comparison"]["interval"]) == (0, [0, 0])
    printed = capsys.readouterr().out
    for said in ("(Poisson bootstrap)", "paired Poisson bootstrap", "are of a sample of 2 images"):
        assert said in printed
    with open(table, newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
