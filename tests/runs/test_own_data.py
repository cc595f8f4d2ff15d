"""Runs on own folders of pictures and masks: other classes, other image shapes."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import changed, tiny_flags
from PIL import Image
from short_trainings import steps_only

import petseg
from petseg.config import Config, command_line
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.data.drawings import drawn_folders
from petseg.data.drawings.drawn_folders import WriteConfig
from petseg.deployment import export_command, prediction_command
from petseg.errors import ConfigError, DataError, WorkDirectoryError
from petseg.runs import scoring, train
from petseg.runs.work_directory import WorkDirectory


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "animals"
    drawn_folders.write(WriteConfig(write=str(folder), num_train=8, num_test=4))
    return folder


def config_of(animals, workdir, *flags):
    own = ["--dataset=folder", f"--cache_dir={animals.parent / 'cache'}", "--image_size=32,64", "--train_steps=2"]
    return command_line.parse(["train.py", *tiny_flags(animals, workdir), *own, *flags], Config)


@pytest.fixture(scope="module")
def trained(animals, tmp_path_factory):
    """A finished run on masks in colours."""
    config = config_of(
        animals,
        tmp_path_factory.mktemp("run") / "run",
        "--image_files=images/{split}/*.jpg",
        "--mask_files=masks_rgb/{split}/{name}.png",
        f"--classes={animals / 'classes_rgb.json'}",
        "--resize=letterbox",
        "--class_weights=balanced",
    )
    return config, train.train(config)


def score(workdir, **options):
    return scoring.evaluate(EvalConfig(ScoreConfig(workdir=str(workdir), **options)))


@pytest.mark.slow
def test_scores_are_named_by_the_classes_of_own_data(trained, capsys):
    config, results = trained
    assert list(results["iou"]) == ["background", "cat", "dog"]
    assert 0 <= results["foreground_iou"] <= 1
    workdir = WorkDirectory(config.runtime.workdir)
    assert workdir.load_classes() == drawn_folders.RGB
    with open(workdir.metrics_file) as file:
        tags = {row["tag"] for row in csv.DictReader(file)}
    assert {"iou/cat", "recall/dog", "foreground_iou", "final/IoU_cat"} <= tags
    assert not [tag for tag in tags if "pet" in tag or "border" in tag]
    (model, native) = score(workdir.path, resolution="native", csv=str(workdir.path / "images.csv"))
    assert model["confusion_matrix"] == results["confusion_matrix"]
    assert model["foreground"] == "foreground"
    masks = Path(config.data.data_dir, "masks_rgb", "test").glob("*.png")
    drawn = sum(np.prod(Image.open(file).size) for file in masks)
    assert np.sum(native["confusion_matrix"]) == drawn  # each pixel of each picture once, and none of the filling
    assert "foreground versus rest, IoU: " in capsys.readouterr().out


def test_prediction_needs_no_data_set(trained, animals, tmp_path):
    config, _ = trained
    workdir = tmp_path / "run"
    shutil.copytree(config.runtime.workdir, workdir)
    record = json.loads((workdir / "config.json").read_text())
    record["config"]["data"] |= {"data_dir": "/nowhere", "classes": "/nowhere/classes.json"}
    (workdir / "config.json").write_text(json.dumps(record))
    photograph = next((animals / "images" / "test").glob("*.jpg"))
    score = ScoreConfig(workdir=str(workdir), predict=str(photograph), output_dir=str(tmp_path / "out"), cutout=True)
    (file,) = prediction_command.predict(EvalConfig(score))
    with Image.open(file) as mask, Image.open(photograph) as picture:
        assert mask.size == picture.size
        assert np.array(mask).max() < 3
        assert mask.getpalette()[:9] == [part for color in drawn_folders.COLORS for part in color]
    assert (tmp_path / "out" / f"{photograph.stem}.cutout.png").exists()


def test_resuming_with_other_classes_is_refused(trained, tmp_path, animals):
    config, _ = trained
    other = drawn_folders.RGB.to_dict()
    other["classes"][1]["name"] = "tiger"
    (tmp_path / "other.json").write_text(json.dumps(other))
    message = "belongs to a run whose classes are background, cat, dog; now they are background, tiger, dog"
    with pytest.raises(WorkDirectoryError, match=message):
        train.train(changed(config, "data", classes=str(tmp_path / "other.json")))


def test_the_number_of_class_weights_must_match_the_classes(animals, tmp_path):
    flags = ["--class_weights=1,2", f"--classes={animals / 'classes.json'}"]
    with pytest.raises(ConfigError, match=r"--class_weights=1,2: there are 2; must be 3, of background, cat, dog"):
        train.train(config_of(animals, tmp_path / "run", *flags))


@pytest.mark.slow
def test_two_classes_have_a_foreground(animals, tmp_path, trained):
    flags = [
        "--image_files=images/{split}/*.jpg",
        "--mask_files=masks_0_255/{split}/{name}.png",
        f"--classes={animals / 'classes_0_255.json'}",
        f"--init_from={trained[0].runtime.workdir}",  # which has three: all but the last layer is of use
    ]
    results = train.train(config_of(animals, tmp_path / "run", *flags))
    assert list(results["iou"]) == ["background", "animal"]
    assert results["foreground_iou"] == results["iou"]["animal"]


@pytest.mark.slow
def test_packed_weights_of_own_data_need_no_folder(trained, animals, tmp_path):
    config, results = trained
    out = tmp_path / "out"
    run = ScoreConfig(workdir=config.runtime.workdir, export="weights", output_dir=str(out))
    (agreement,) = export_command.export(EvalConfig(run))
    assert agreement.mask_agreement >= 0.999
    file = shutil.move(out / "weights.safetensors", tmp_path / "animals.safetensors")
    photograph = next((animals / "images" / "test").glob("*.jpg"))
    first, packed = (petseg.load(source)(photograph) for source in (config.runtime.workdir, file))
    assert packed.classes.names == ("background", "cat", "dog")
    np.testing.assert_allclose(packed.probabilities, first.probabilities, atol=0.02)
    predict = ScoreConfig(workdir=str(file), predict=str(photograph), output_dir=str(tmp_path / "masks"))
    (mask,) = prediction_command.predict(EvalConfig(predict))
    assert Image.open(mask).size == Image.open(photograph).size

    export_command.export(EvalConfig(ScoreConfig(workdir=str(file), export="keras,weights", output_dir=str(out))))
    card = json.loads((out / "model_card.json").read_text())
    assert "drawings" in card["compared_on"]
    with pytest.raises(ConfigError, match="--dataset=folder: --data_dir must be the folder of the pictures"):
        petseg.load(out / "weights.safetensors").evaluate("test")
    scores = petseg.load(out / "weights.safetensors").evaluate("test", data_dir=str(animals))
    assert scores["examples"] == results["examples"]

    begun = config_of(animals, tmp_path / "begun", f"--init_from={file}", "--resize=letterbox")
    assert [value for name, value in steps_only(begun).items() if name.startswith("step/")] == [2]


def test_a_missing_evaluation_split_is_refused_with_its_flag_and_the_existing_splits(animals, tmp_path):
    shutil.copytree(animals, tmp_path / "mine")
    for kind in ("images", "masks"):
        (tmp_path / "mine" / kind / "test").rename(tmp_path / "mine" / kind / "val")
    config = changed(config_of(animals, tmp_path / "run"), "data", data_dir=str(tmp_path / "mine"))
    with pytest.raises(
        DataError, match=r"--eval_split=test: .* has no split test; must be one of train \(8 pairs\), val"
    ):
        train.train(config)
