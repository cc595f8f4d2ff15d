"""Work directories that earlier versions left, and files from people one need not trust."""

import ast
import pickle
import tarfile

import keras
import numpy as np
import pytest
from conftest import ROOT, tiny_flags

from petseg.config import CONFIG_FORMAT, Config, command_line
from petseg.errors import ConfigError, WorkDirectoryError
from petseg.models import encoders
from petseg.runs import checkpoints, experiment
from petseg.runs.work_directory import WorkDirectory

FIXTURES = sorted((ROOT / "tests" / "fixtures").glob("run-format-*.tar.xz"))


def test_there_is_a_run_of_this_format():
    assert f"run-format-{CONFIG_FORMAT}.tar.xz" in [path.name for path in FIXTURES]


@pytest.mark.parametrize("archive", FIXTURES, ids=lambda path: path.name)
def test_a_run_of_an_earlier_version_goes_on_or_is_refused_with_the_reason(data_dir, tmp_path, archive):
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    workdir = WorkDirectory(tmp_path / "run")
    flags = [flag for flag in tiny_flags(data_dir, workdir.path) if flag not in ("--deterministic", "--encoder=tiny")]
    config = command_line.parse(["train.py", *flags, "--train_steps=3", "--optimizer=sgd"], Config)
    if archive.name != f"run-format-{CONFIG_FORMAT}.tar.xz":
        with pytest.raises(WorkDirectoryError, match=f"has format .*; this petseg reads format {CONFIG_FORMAT}"):
            experiment.train(config)
        return
    results = experiment.train(config)
    assert results["step"] == 3
    assert np.isfinite(results["loss"])
    assert checkpoints.newest_intact(workdir.checkpoints) == str(workdir.checkpoints / "ckpt-3")


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_no_code_is_run_from_a_pickle_that_is_called_weights(tmp_path):
    marker = tmp_path / "marker"
    for name in ("weights.h5", "weights.weights.h5", "weights.keras", "weights.npy", "weights.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(marker)))
        with pytest.raises(ConfigError, match="does not fit this encoder"):
            encoders.build_encoder("mobilenet_v2", image_size=(32, 32), alpha=0.35, weights=str(tmp_path / name))
    assert not marker.exists()


def test_no_code_is_run_from_a_keras_file(tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "model.keras"
    path, inputs = str(marker), keras.Input([2])
    code = keras.layers.Lambda(lambda x: (open(path, "w").close(), x)[1], output_shape=(2,))
    keras.Model(inputs, code(inputs)).save(file)
    marker.unlink(missing_ok=True)  # which the saving itself may have left
    with pytest.raises(ConfigError, match="does not fit this encoder"):
        encoders.build_encoder("mobilenet_v2", image_size=(32, 32), alpha=0.35, weights=str(file))
    assert not marker.exists()


@pytest.mark.parametrize("weights", ["__import__('os').system('touch marker')", "1,1,open('marker','w')"])
def test_no_code_is_run_from_a_flag_or_a_config(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="must be comma-separated numbers"):
        command_line.parse(["train.py", f"--class_weights={weights}"], Config)
    assert not (tmp_path / "marker").exists()


def test_nothing_in_petseg_evaluates_text_or_unpickles():
    for file in [*(ROOT / "petseg").rglob("*.py"), ROOT / "train.py", ROOT / "eval.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile"), file
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None)]
                assert not {"pickle", "dill", "marshal", "shelve"} & set(names), file
            if isinstance(node, ast.keyword):
                assert node.arg not in ("allow_pickle", "safe_mode"), file
