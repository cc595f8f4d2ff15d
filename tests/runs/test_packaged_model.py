"""Sources of weights named `pets`: work directory, other path, or the packaged model."""

import logging
import os

import pytest
import tensorflow as tf
from conftest import changed

import petseg
from petseg.classes import PETS
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.deployment import export_command, prediction_command
from petseg.errors import ConfigError
from petseg.runs import building, open_trained_run, packed_run, resume_or_init
from petseg.runs.checkpoints import Checkpoints
from petseg.runs.packed_run import PackedRun
from petseg.runs.resume_or_init import StartingPoint
from petseg.runs.trained_run import TrainedRun
from petseg.runs.work_directory import WorkDirectory

pytestmark = pytest.mark.skipif("pets" not in packed_run.NAMES, reason="no model is packaged")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here, tiny_config):
    """A run with random weights in a work directory called `pets`."""
    workdir = WorkDirectory(here / "pets")
    workdir.save_config(tiny_config, classes=PETS, class_weights=None, devices=[])
    state = {"model": building.build_model(tiny_config, PETS), "step": tf.Variable(3, dtype=tf.int64)}
    Checkpoints(workdir.checkpoints, keep=1, **state).save(3)
    return workdir


def ways(tiny_config, out):
    """Calls of everything that takes a source, here `pets`."""

    def start():
        config = changed(tiny_config, "model", init_from="pets")
        return resume_or_init.find_starting_point(config, WorkDirectory(config.runtime.workdir))

    return {
        "load": lambda: petseg.load("pets"),
        "predict": lambda: prediction_command.predict(
            EvalConfig(ScoreConfig(workdir="pets", predict="*.png", output_dir=out))
        ),
        "export": lambda: export_command.export(
            EvalConfig(ScoreConfig(workdir="pets", export="saved_model", output_dir=out))
        ),
        "init_from": start,
    }


def test_a_work_directory_takes_precedence_over_the_packaged_model_of_its_name(run, tiny_config, caplog):
    with caplog.at_level(logging.WARNING, logger="petseg"):
        segmenter = petseg.load("pets", checkpoint="latest")
    assert segmenter.model.input_shape[1:3] == (32, 32)
    assert "pets: the run in this folder is used" in caplog.text
    assert isinstance(open_trained_run.open_run(ScoreConfig(workdir="pets")), TrainedRun)
    config = changed(tiny_config, "model", init_from="pets")
    start = resume_or_init.find_starting_point(config, WorkDirectory(config.runtime.workdir))
    assert start == StartingPoint(init_from="pets")
    assert packed_run.packed_file("pets") is None


@pytest.mark.parametrize("what", ["empty folder", "folder of pictures", "file", "dangling link"])
@pytest.mark.parametrize("way", ["load", "predict", "export", "init_from"])
def test_other_paths_with_the_name_of_the_packaged_model_are_refused(here, tiny_config, what, way):
    path = here / "pets"
    if "folder" in what:
        path.mkdir()
    if what == "folder of pictures":
        (path / "cat.jpg").write_text("")
    if what == "file":
        path.write_text("")
    if what == "dangling link":
        path.symlink_to(here / "gone")
    with pytest.raises(
        ConfigError,
        match=r"^pets: is a path that is not .* must be \./pets .* or /.*/pets\.safetensors",
    ) as caught:
        ways(tiny_config, str(here / "out"))[way]()
    assert "\n" not in str(caught.value)


def test_the_packaged_model_opens_by_flag_file_and_name(here):
    file = packed_run.packaged_file("pets")
    assert packed_run.packed_file("pets") == file
    (here / "pets").mkdir()
    for score in (ScoreConfig(pretrained=True), ScoreConfig(workdir=str(file))):
        run = open_trained_run.open_run(score)
        assert isinstance(run, PackedRun)
        assert run.path == file
    assert packed_run.packed_file(os.path.join(".", "pets")) is None
