"""TrainedRun: config, results files and weights."""

import pytest
from conftest import changed

from petseg.classes import PETS
from petseg.config.eval_config import ScoreConfig
from petseg.errors import ConfigError
from petseg.runs.trained_run import TrainedRun
from petseg.runs.work_directory import WorkDirectory


@pytest.fixture
def workdir(tiny_config):
    """The work directory of a run that averages its weights, as it begins."""
    workdir = WorkDirectory(tiny_config.runtime.workdir)
    config = changed(tiny_config, "optimizer", ema_decay=0.5)
    config = changed(config, "data", cache="disk", cache_dir="there", data_service="grpc://localhost:5050")
    workdir.save_config(config, classes=PETS, class_weights=None, devices=[])
    return workdir


def test_flags_of_eval_replace_precision_data_folder_and_cache(workdir):
    run = TrainedRun.open(workdir, ScoreConfig(workdir="run"))
    theirs = workdir.load_config()
    assert run.config == changed(theirs, "data", data_service="")
    asked = ScoreConfig(workdir="run", cache="none", cache_dir="here", data_dir="tfds", precision="mixed_bfloat16")
    run = TrainedRun.open(workdir, asked)
    data = {"cache": "none", "cache_dir": "here", "data_dir": "tfds", "data_service": ""}
    assert run.config == changed(changed(theirs, "data", **data), "compute", precision="mixed_bfloat16")


def test_averaged_weights_have_their_own_name_and_results_files(workdir, caplog):
    with caplog.at_level("INFO", logger="petseg"):
        trained = TrainedRun.open(workdir, ScoreConfig(workdir="run"))
    assert caplog.messages == [f"{workdir.path} has averaged weights too; --ema uses them"]
    averaged = TrainedRun.open(workdir, ScoreConfig(workdir="run", ema=True))
    assert (trained.weights, averaged.weights) == ("trained", "averaged")
    assert [run.results_file("test", 4).name for run in (trained, averaged)] == ["test-4.json", "test-4.ema.json"]
    assert averaged.results_file("test", 4, "flip", "native").name == "test-4.ema.flip.native.json"
    assert trained.results_file("test", 4, "flip").name == "test-4.flip.json"


def test_a_run_without_averages_refuses_ema_but_can_be_compared(workdir):
    config = changed(workdir.load_config(), "optimizer", ema_decay=0.0)
    workdir.save_config(config, classes=PETS, class_weights=None, devices=[])
    asked = ScoreConfig(workdir="run", ema=True)
    with pytest.raises(ConfigError, match=r"--ema: .* kept no averaged weights"):
        TrainedRun.open(workdir, asked)
    assert not TrainedRun.open_to_compare(workdir, asked).averaged
