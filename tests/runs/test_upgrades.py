"""Work directories of earlier versions, and files from untrusted sources."""

import ast
import json
import pickle
import tarfile

import keras
import numpy as np
import pytest
from conftest import ROOT, tiny_flags

from petseg import config as config_lib
from petseg.config import CONFIG_FORMAT, Config, command_line
from petseg.data import input_pipeline
from petseg.errors import ConfigError, WorkDirectoryError
from petseg.models import encoders
from petseg.runs import checkpoints, train
from petseg.runs.work_directory import WorkDirectory

FIXTURES = sorted((ROOT / "tests" / "fixtures").glob("run-format-*.tar.xz"))


def test_a_fixture_of_the_current_format_exists():
    assert f"run-format-{CONFIG_FORMAT}.tar.xz" in [path.name for path in FIXTURES]


def unpack_run(folder, archive=f"run-format-{CONFIG_FORMAT}.tar.xz"):
    with tarfile.open(ROOT / "tests" / "fixtures" / archive) as file:
        file.extractall(folder, filter="data")
    return WorkDirectory(folder / "run")


def resume(data_dir, workdir, *flags):
    base = [flag for flag in tiny_flags(data_dir, workdir.path) if flag not in ("--deterministic", "--encoder=tiny")]
    return train.train(command_line.parse(["train.py", *base, "--train_steps=3", "--optimizer=sgd", *flags], Config))


@pytest.mark.parametrize("archive", [path.name for path in FIXTURES if str(CONFIG_FORMAT) not in path.name])
def test_runs_of_earlier_formats_are_refused_with_the_reason(data_dir, tmp_path, archive):
    with pytest.raises(WorkDirectoryError, match=f"has format .*; this petseg reads format {CONFIG_FORMAT}"):
        resume(data_dir, unpack_run(tmp_path, archive))


@pytest.mark.slow
def test_a_run_of_an_earlier_version_resumes_and_keeps_its_example_order(data_dir, tmp_path, monkeypatch):
    genuine, orders = input_pipeline.distributed_training_batches, []

    def batches(*arguments, order_version, **options):
        orders.append(order_version)
        return genuine(*arguments, order_version=order_version, **options)

    monkeypatch.setattr(input_pipeline, "distributed_training_batches", batches)
    workdir = unpack_run(tmp_path)
    results = resume(data_dir, workdir)
    assert results["step"] == 3
    assert np.isfinite(results["loss"])
    assert checkpoints.newest_intact(workdir.checkpoints) == str(workdir.checkpoints / "ckpt-3")
    assert orders == [1]
    assert workdir.load_config().runtime.example_order == 1
    with pytest.raises(WorkDirectoryError, match="--example_order was 1, is now 2"):
        resume(data_dir, workdir, "--example_order=2")


@pytest.mark.slow
def test_a_run_of_an_earlier_version_keeps_its_class_weights(data_dir, tmp_path):
    workdir = unpack_run(tmp_path)
    record = json.loads(workdir.config_file.read_text())
    record["config"]["loss"]["class_weights"], record["class_weights"] = "2,2,1", [0.4, 0.4, 0.2]
    workdir.config_file.write_text(json.dumps(record))
    resume(data_dir, workdir, "--class_weights=2,2,1", "--train_steps=2")  # evaluates the complete run
    assert workdir.load_class_weights() == (0.4, 0.4, 0.2)
    before = workdir.load_config()  # that the next start resumes with
    assert (
        config_lib.with_run_defaults(Config.of(class_weights="1,1,2"), before).loss.class_weight_normalization == "sum"
    )
    asked = Config.of(class_weights="1,1,2", class_weight_normalization="mean")
    assert config_lib.with_run_defaults(asked, before).loss.class_weight_normalization == "mean"


def test_class_weights_added_to_a_run_of_an_earlier_version_are_normalised_as_in_new_runs(tmp_path):
    before = unpack_run(tmp_path).load_config()
    assert (
        config_lib.with_run_defaults(Config.of(class_weights="2,2,1"), before).loss.class_weight_normalization == "mean"
    )


def test_a_new_run_records_the_choices_it_keeps(finished_run):
    config = WorkDirectory(finished_run).load_config()
    assert config.runtime.example_order == 2
    assert config.loss.class_weight_normalization == "mean"


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
            if isinstance(node, ast.keyword) and node.arg in (safe := {"allow_pickle": False, "safe_mode": True}):
                assert isinstance(node.value, ast.Constant), file
                assert node.value.value is safe[node.arg], file
