"""Splits without a labelled pixel are refused before they are used."""

import shutil

import numpy as np
import pytest
from conftest import tiny_flags
from PIL import Image

import petseg
from petseg.config import Config, command_line
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.errors import DataError
from petseg.runs import group_scoring, scoring, train

NONE = 255


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders of pictures: `train`, `val`, of which the last mask alone has labels, and `test`, which has none."""
    root = tmp_path_factory.mktemp("data") / "mine"
    labelled = np.resize(np.array([0, 1, 2], np.uint8), 32)[None].repeat(32, 0)
    nothing = np.full([32, 32], NONE, np.uint8)
    for split, masks in {"train": [labelled] * 8, "val": [nothing] * 3 + [labelled], "test": [nothing] * 3}.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i, mask in enumerate(masks):
            picture = np.random.default_rng([len(split), i]).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(picture).save(root / f"images/{split}/{i}.png")
            Image.fromarray(mask).save(root / f"masks/{split}/{i}.png")
    return root


def config_of(root, workdir, *more):
    flags = ["--dataset=folder", f"--cache_dir={root.parent / 'cache'}", "--train_steps=2", "--batch_size=2"]
    return command_line.parse(["train.py", *tiny_flags(root, workdir), *flags, *more], Config)


@pytest.fixture(scope="module")
def workdir(root):
    """A run that was scored on the few labels of `val`."""
    results = train.train(config_of(root, root.parent / "run", "--eval_split=val"))
    assert results["examples"] == 4
    assert np.sum(results["confusion_matrix"]) == 32 * 32
    return root.parent / "run"


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_training_refuses_an_unlabelled_split_by_name(root, tmp_path, cache):
    message = (
        r"^--eval_split=test: none of its 3 masks has a pixel in a class .*; there are test \(3 .*, val \(4 examples"
    )
    with pytest.raises(DataError, match=message) as caught:
        train.train(config_of(root, tmp_path / "run", f"--cache={cache}"))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"^--train_split=test: none of its 3 masks"):
        train.train(config_of(root, tmp_path / "run", f"--cache={cache}", "--train_split=test"))
    assert not (tmp_path / "run").exists()


def test_a_sample_without_labels_is_refused_by_the_flag_that_draws_it(root, tmp_path):
    for seed in range(2):
        flags = ["--eval_split=val[:3]+val[3:]", "--eval_examples=1", f"--seed={seed}"]
        with pytest.raises(DataError, match="none of its 1 masks drawn by --eval_examples=1 has a pixel in a class"):
            train.train(config_of(root, tmp_path / "run", *flags))


@pytest.mark.parametrize("options", [{}, {"resolution": "native"}, {"cache": "none"}, {"checkpoint": "all"}])
def test_scoring_refuses_an_unlabelled_split_by_name(workdir, options):
    with pytest.raises(DataError, match=r"^--split=test: none of its 3 masks has a pixel in a class"):
        scoring.evaluate(EvalConfig(ScoreConfig(workdir=str(workdir), split="test", **options)))


def test_group_scoring_and_the_python_api_refuse_an_unlabelled_split(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "other")
    both = ScoreConfig(workdir=f"{workdir},{tmp_path / 'other'}", split="test")
    with pytest.raises(DataError, match=r"^--split=test: none of its 3 masks has a pixel in a class"):
        group_scoring.evaluate(EvalConfig(both))
    with pytest.raises(DataError, match=r"^dataset=test: none of its 3 masks has a pixel in a class"):
        petseg.load(workdir).evaluate("test")


def test_a_split_with_few_labels_is_scored_with_all_details(workdir, tmp_path, capsys):
    (results,) = scoring.evaluate(EvalConfig(ScoreConfig(workdir=str(workdir), csv=str(tmp_path / "images.csv"))))
    assert np.isfinite(results["mean_iou_interval"]).all()
    assert results["examples"] == 4
    assert "val at 32 x 32" in capsys.readouterr().out
