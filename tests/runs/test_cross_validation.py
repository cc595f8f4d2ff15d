"""Cross-validation: training on folds, the table and file of all folds, scoring and comparing them, ensembles."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import NUM_TRAIN, tiny_flags

from petseg import config as config_lib
from petseg.config import DataConfig, command_line
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.data import catalog, loading
from petseg.errors import ConfigError, DataError
from petseg.evaluation import confidence_intervals, metrics
from petseg.evaluation.evaluation import Evaluation
from petseg.evaluation.results import split_results
from petseg.runs import comparison, group_scoring, run_groups, scoring, seeds, training_data_record
from petseg.runs.scorer import CheckpointScores
from petseg.runs.seeds import SeedsConfig
from petseg.runs.training_data_record import TrainingData
from petseg.runs.work_directory import WorkDirectory

HALF = NUM_TRAIN // 2


def parse(*flags):
    return command_line.parse(["seeds.py", *flags], SeedsConfig)


@pytest.fixture(scope="module")
def folder(data_dir, finished_run, tmp_path_factory):
    """What --folds=2 leaves, with a copy of a finished run in place of each training."""
    folder = tmp_path_factory.mktemp("runs") / "cv"

    def copy(config):
        workdir = shutil.copytree(finished_run, Path(config.runtime.workdir))
        stored = json.loads((workdir / "config.json").read_text())
        stored["config"] = dataclasses.asdict(config)
        (workdir / "config.json").write_text(json.dumps(stored))
        (workdir / "training_data.npz").unlink()
        results = json.loads((workdir / "results" / "test-4.json").read_text())
        matrix = np.random.default_rng(len(os.listdir(folder))).integers(0, 99, (3, 3))
        file = WorkDirectory(workdir).results_file(config.data.eval_split, 4)
        changes = {"confusion_matrix": matrix.tolist(), "mean_iou": float(metrics.mean_iou(matrix)), "examples": HALF}
        file.write_text(json.dumps({**results, "split": config.data.eval_split, **changes}))

    flags = ["--folds=2", "--train_steps=4", "--seed=3", "--group_files={group}[0-9].*"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeds, "train_in_a_process", copy)
        seeds.main(parse(*tiny_flags(data_dir, folder), *flags))
    return folder


def score(folder, **options):
    return EvalConfig(ScoreConfig(workdir=str(folder), **options))


def test_each_run_leaves_out_a_fold_and_scores_it(folder):
    for number in (1, 2):
        config = WorkDirectory(folder / f"fold-{number}").load_config()
        assert config.data.train_split == f"train@without_fold{number}of2"
        assert config.data.eval_split == f"train@fold{number}of2"
        assert config.runtime.seed == 3
        assert run_groups.group_folder(config) == folder
        assert config_lib.hyperparameters(config)["eval_split"] == "train"
    found = json.loads((folder / "folds.json").read_text())
    matrices = [np.array(each["confusion_matrix"]) for each in found["runs"].values()]
    assert found["pooled"]["confusion_matrix"] == sum(matrices).tolist()
    assert found["pooled"]["mean_iou"] == pytest.approx(metrics.mean_iou(sum(matrices)))
    assert found["pooled"]["examples"] == NUM_TRAIN
    assert found["mean_iou"]["mean"] == pytest.approx(np.mean([metrics.mean_iou(each) for each in matrices]))
    assert (found["split"], found["folds"]) == ("train", "2 of 2")


@pytest.mark.slow
def test_all_folds_are_scored_as_one(folder, capsys):
    results = group_scoring.evaluate(score(folder))
    assert [each["split"] for each in results] == ["train@fold1of2", "train@fold2of2"]
    assert sum(each["examples"] for each in results) == NUM_TRAIN
    printed = capsys.readouterr().out
    assert "\n2 folds\n" in printed
    assert f"pooled: {NUM_TRAIN} examples of train, each scored by the run without its fold; 95% interval" in printed
    pooled = json.loads((folder / "folds.json").read_text())["pooled"]
    (line,) = [line.split() for line in printed.splitlines() if line.startswith("pooled  ")]
    assert line[1] == f"{pooled['mean_iou']:.4f}"
    low, high = pooled["mean_iou_interval"]
    assert low < pooled["mean_iou"] < high
    assert pooled["interval_over"] == "groups"


def scorer_of(made_up):
    """A stand-in for `Scorer` with made-up counts, by split."""

    class MadeUp:
        def __init__(self, run, score, split, *_, **__):
            self.run, self.examples = run, loading.load(run.config.data, split)
            self._file = run.results_file(split, 4, "native")
            self._evaluation = Evaluation(0.5, made_up[split], mask_digests=np.arange(HALF))

        def latest_or_best(self):
            return f"{self.run.name}/checkpoints/ckpt-4"

        def score(self, path):
            split = self.run.config.data.eval_split
            results = split_results(self._evaluation, 4, split, self.run.classes)
            return CheckpointScores(
                path, [self._evaluation], [{**results, "weights": "trained", "resolution": "native"}], [self._file], []
            )

    return MadeUp


def test_two_recipes_are_compared_fold_by_fold(folder, monkeypatch, capsys):
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    splits = ("train@fold1of2", "train@fold2of2")
    counts = {split: np.random.default_rng(i).integers(0, 9, (HALF, 3, 3)) for i, split in enumerate(splits)}
    monkeypatch.setattr(group_scoring, "Scorer", scorer_of(counts))
    monkeypatch.setattr(comparison, "draw_comparison", lambda *_: None)
    results = group_scoring.evaluate(score(folder, compare=str(other)))
    assert results[0]["comparison"]["difference"] == 0
    assert len(results[0]["comparison"]["runs"]) == 2
    assert "first: 2 folds, second: 2 folds" in capsys.readouterr().out
    names = catalog.open_data(WorkDirectory(folder / "fold-1").load_config().data).groups
    members = {group: np.zeros((3, 3)) for split in splits for group in names(split)}
    for split in splits:
        for group, matrix in zip(names(split), counts[split], strict=True):
            members[group] += matrix
    expected = confidence_intervals.interval_of_runs([np.array([members[group] for group in sorted(members)])])
    pooled = json.loads((folder / "folds.native.json").read_text())["pooled"]
    assert len(members) < NUM_TRAIN
    assert pooled["mean_iou_interval"] == pytest.approx(expected)

    shutil.rmtree(other / "fold-1")
    with pytest.raises(ConfigError, match=r"--compare: has folds \[2\]; must have those of --workdir, \[1, 2\]"):
        group_scoring.evaluate(score(folder, compare=str(other)))
    message = r"--workdir: .*/other/fold-2 is a second run of fold 2; must be one of each fold"
    with pytest.raises(ConfigError, match=message):
        group_scoring.evaluate(score(f"{folder},{other}"))


def test_folds_and_other_runs_are_not_mixed(folder, finished_run):
    with pytest.raises(ConfigError, match=r"was evaluated on test, others on another split or other folds; all runs"):
        group_scoring.evaluate(score(f"{folder},{finished_run}"))


def test_what_a_run_was_trained_on_is_refused(folder):
    message = rf"--split=train@fold2of2: {HALF} of its images were trained on \(train@without_fold1of2\)"
    with pytest.raises(DataError, match=message):
        scoring.evaluate(score(folder / "fold-1", split="train@fold2of2"))
    with pytest.raises(DataError, match=r"--split=train@fold1of2: .* were trained on \(train@without_fold2of2\)"):
        scoring.evaluate(score(folder, ensemble=True))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folds=1"], "--folds=1: must be at least 2, or 0 for no cross-validation"),
        (["--folds=2", "--seeds=3,4"], "--seeds=3,4 and --folds=2: must not both be given; --seed is for folds"),
        (["--folds=2", "--eval_split=val"], "--folds=2 and --eval_split=val: must not both be given, since each run"),
        (["--eval_split", "test", "--folds=2"], "--folds=2 and --eval_split=test: must not both be given"),
        (["--folds=2", "--train_split=train@fold1of3"], "--train_split=train@fold1of3: must not be a fold itself"),
        (["--folds=2", "--eval_examples=9"], "--eval_examples=9: must be 0 with --folds=2, so that each example"),
    ],
)
def test_flags_that_contradict_folds_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse("--workdir=runs/cv", *flags)


def test_folds_replace_the_evaluation_split_of_a_preset():
    first, _ = parse("--workdir=runs/cv", "--preset=camvid", "--folds=2").configs()
    assert first.data.eval_split == "train@fold1of2"


CODE = """
import numpy as np

class Drawn(list):
    classes = ["background", "object"]
    fingerprint = {version}

def drawn(data_dir, split):
    return Drawn({{"image": np.full((40, 48, 3), i, np.uint8), "mask": np.eye(40, 48, dtype=np.uint8)}}
                 for i in range(6 + {version}))
"""


def test_folds_of_own_data_that_changed_after_training_are_not_scored(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(CODE.format(version=0))
    splits = {"train_split": "train@without_fold1of2", "eval_split": "train@fold1of2"}
    config = DataConfig(dataset=f"{file}:drawn", **splits)
    data_set = catalog.open_data(config)
    record = TrainingData.of(data_set, config)
    training_data_record.check_not_trained_on("train@fold1of2", config, data_set.classes, record)
    file.write_text(CODE.format(version=3))
    with pytest.raises(DataError, match="its folds may hold other examples; must be as in training"):
        training_data_record.check_not_trained_on("train@fold1of2", config, data_set.classes, record)
