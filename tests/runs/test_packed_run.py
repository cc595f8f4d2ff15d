"""Packed runs: content of the file, and reading it back."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import safetensors.numpy
from conftest import changed, random_examples

import petseg
from petseg.classes import PETS
from petseg.config import Config, ModelConfig, presets
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.deployment import export, export_command, prediction_command
from petseg.errors import CheckpointError, ConfigError, ExportError
from petseg.runs import building, packed_run, resume_or_init, scoring
from petseg.runs.packed_run import PackedRun
from petseg.runs.resume_or_init import StartingPoint
from petseg.runs.work_directory import WorkDirectory

CARD = {"step": 12, "weights": "averaged"}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)


@pytest.fixture
def model(tiny_config):
    return building.build_model(tiny_config, PETS)


@pytest.fixture
def packed(model, tiny_config, tmp_path):
    config = changed(tiny_config, "model", encoder_weights="/home/someone/weights.h5")
    return packed_run.pack(tmp_path / "run.safetensors", model, config, PETS, CARD)


def test_a_packed_run_keeps_all_but_machine_paths(packed, tiny_config, tmp_path):
    again = PackedRun.open(packed.path)
    assert (again.classes, again.card, again.weights) == (PETS, CARD, "averaged")
    assert again.config.model == changed(tiny_config, "model", encoder_weights="none").model
    assert again.config.data.size == (32, 32)
    with safetensors.safe_open(packed.path, framework="numpy") as file:
        stored = file.metadata()["petseg"]
    assert str(tmp_path) not in stored
    assert "/home/someone" not in stored
    assert tiny_config.data.data_dir not in stored


def test_kernels_are_rounded_to_half_precision_and_nothing_else(packed, model, images):
    twin = packed.build_model()
    assert packed.restore(str(packed.path), twin) == 12
    for ours, theirs in zip(model.weights, twin.weights, strict=True):
        expected = np.asarray(ours)
        expected = expected if expected.ndim < 2 else expected.astype(np.float16)
        np.testing.assert_array_equal(np.asarray(theirs), expected)
        ours.assign(expected)
    np.testing.assert_array_equal(model(images), twin(images))
    half = sum(np.asarray(w).nbytes for w in model.weights if w.ndim > 1) / 2
    assert packed.path.stat().st_size < half + 60_000


def test_other_files_are_refused_by_name(packed, tmp_path):
    (tmp_path / "text.safetensors").write_text("this is a text")
    safetensors.numpy.save_file({"x": np.zeros(2)}, tmp_path / "other.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(packed.path.read_bytes()[:-100])
    for name in ("text", "other", "damaged", "gone"):
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors: not a file of packed weights"):
            PackedRun.open(tmp_path / f"{name}.safetensors")


def test_a_file_of_a_later_format_is_refused(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(packed_run, "CONFIG_FORMAT", 99)
    with pytest.raises(CheckpointError, match=r"has format 3; this petseg reads 99"):
        PackedRun.open(packed.path)


def test_custom_networks_and_too_large_weights_cannot_be_packed(model, tiny_config, tmp_path):
    model.weights[0].assign(np.full(model.weights[0].shape, 1e6))
    with pytest.raises(ExportError, match="half precision cannot hold"):
        packed_run.pack(tmp_path / "run.safetensors", model, tiny_config, PETS, CARD)
    own = dataclasses.replace(tiny_config, model=ModelConfig(network="mine.py:build"))
    with pytest.raises(ExportError, match=r"its network is the code mine\.py:build"):
        packed_run.pack(tmp_path / "run.safetensors", model, own, PETS, CARD)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_run_starts_from_packed_weights(packed, tiny_config, images, caplog):
    config = changed(tiny_config, "model", init_from=str(packed.path))
    start = resume_or_init.find_starting_point(config, WorkDirectory(config.runtime.workdir))
    assert start == StartingPoint(init_from=str(packed.path))
    with caplog.at_level("INFO", logger="petseg"):
        model = resume_or_init.build_initial_model(start, config, random_examples(2))
    twin = packed.build_model()
    packed.restore(str(packed.path), twin)
    np.testing.assert_array_equal(model(images), twin(images))
    assert "initialised with the averaged weights of" in caplog.text
    assert "step 12" in caplog.text


def test_a_start_from_another_encoder_or_a_damaged_file_is_refused_early(packed, tiny_config, images):
    config = changed(tiny_config, "model", init_from=str(packed.path), input_scaling="symmetric")
    with pytest.raises(ConfigError, match=r"--input_scaling=symmetric: must be unit"):
        resume_or_init.build_initial_model(StartingPoint(init_from=str(packed.path)), config, random_examples(2))
    packed.path.write_text("{}")
    with pytest.raises(CheckpointError, match="not a file of packed weights"):
        resume_or_init.find_starting_point(config, WorkDirectory(config.runtime.workdir))
    config = changed(tiny_config, "model", init_from="nothing of the kind")
    with pytest.raises(ConfigError, match="nor a file of packed weights, nor a packaged model"):
        resume_or_init.find_starting_point(config, WorkDirectory(config.runtime.workdir))


@pytest.mark.parametrize(
    "config",
    [
        *(Config.preset(name, data_dir="here") for name in presets.names()),
        Config.of(dataset="folder", data_dir="here", encoder_weights="none"),
        Config.of(dataset="folder", data_dir="here", image_files="a/*", mask_files="b/{name}.png", resize="crop"),
        Config.of(dataset="folder", data_dir="here", cache="none", on_bad_example="ignore"),
        Config.of(data_dir="here", cache="disk", cache_dir="there", data_service="grpc://localhost:5050"),
        Config.of(strategy="multi_worker_mirrored", workdir="shared"),
    ],
)
def test_the_config_of_every_kind_of_run_can_be_packed_and_read_back(model, config, tmp_path):
    packed = packed_run.pack(tmp_path / "run.safetensors", model, config, PETS, CARD)
    for score in (None, ScoreConfig(workdir=str(packed.path)), ScoreConfig(workdir=str(packed.path), cache="memory")):
        again = PackedRun.open(packed.path, score).config
        assert again.data.data_dir == ""
        paths = {"data_dir": "", "classes": "", "cache_dir": "", "data_service": "", "cache": "", "on_bad_example": ""}
        assert vars(again.data) | paths == vars(config.data) | paths
        assert vars(again.model) | {"encoder_weights": ""} == vars(config.model) | {"encoder_weights": ""}


def rewrite(path, change):
    """Passes the metadata of a packed file through a function that changes it in place, as a stranger could."""
    with safetensors.safe_open(path, framework="numpy") as file:
        record = json.loads(file.metadata()["petseg"])
    tensors = safetensors.numpy.load_file(path)
    change(record)
    safetensors.numpy.save_file(tensors, path, metadata={"petseg": json.dumps(record)})


@pytest.fixture
def with_code(packed, tmp_path, monkeypatch):
    """A packed file whose metadata names a package in the current folder, and a file that is there if that was run."""
    was_run = tmp_path / "was_run"
    (tmp_path / "evil_package").mkdir()
    (tmp_path / "evil_package" / "__init__.py").write_text(f"open({str(was_run)!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = {"network": "evil_package.part:build", "encoder_weights": "none"}
    rewrite(packed.path, lambda record: record["config"].update(model=model))
    yield packed.path, was_run
    sys.modules.pop("evil_package", None)


@pytest.mark.parametrize("allow_code", [False, True])
@pytest.mark.parametrize("way", ["load", "score", "predict", "export", "init_from"])
def test_packed_files_that_name_a_network_are_refused_everywhere(with_code, tiny_config, tmp_path, way, allow_code):
    path, was_run = with_code
    options = {"workdir": str(path), "allow_code": allow_code}
    out = {"output_dir": str(tmp_path / "out")}
    config = changed(tiny_config, "model", init_from=str(path))
    ways = {
        "load": lambda: petseg.load(path, allow_code=allow_code),
        "score": lambda: scoring.evaluate(EvalConfig(ScoreConfig(**options))),
        "predict": lambda: prediction_command.predict(EvalConfig(ScoreConfig(**options, **out, predict=str(tmp_path)))),
        "export": lambda: export_command.export(EvalConfig(ScoreConfig(**options, **out, export="saved_model"))),
        "init_from": lambda: resume_or_init.find_starting_point(config, WorkDirectory(config.runtime.workdir)),
    }
    with pytest.raises(CheckpointError, match=r"run\.safetensors: .*network evil_package\.part:build") as caught:
        ways[way]()
    assert "\n" not in str(caught.value)
    assert not was_run.exists()


def test_paths_in_a_packed_file_are_not_used(packed, tmp_path):
    elsewhere = str(tmp_path / "elsewhere")
    paths = {"data_dir": elsewhere, "cache_dir": elsewhere, "classes": elsewhere}
    rewrite(packed.path, lambda record: record["config"]["data"].update(paths))
    for score in (None, ScoreConfig(workdir=str(packed.path))):
        assert elsewhere not in str(PackedRun.open(packed.path, score).config)


@pytest.mark.parametrize(
    "card",
    [[], ["step", "weights"], "text", None, {}, {"step": 12}, {"step": "12", "weights": "trained"},
     {"step": -1, "weights": "trained"}, {"step": True, "weights": "trained"}, {"step": 12, "weights": ["trained"]}],
)  # fmt: skip
def test_an_incomplete_model_card_is_refused(packed, card):
    rewrite(packed.path, lambda record: record.update(card=card))
    with pytest.raises(CheckpointError, match=r"not a file of packed weights: .*card"):
        PackedRun.open(packed.path)


@pytest.mark.parametrize("metadata", ["[]", "3", '"text"', "null", "[" * 100_000, "{}"])
def test_metadata_of_another_structure_are_refused(tmp_path, metadata):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(2)}, path, metadata={"petseg": metadata})
    with pytest.raises(CheckpointError, match=r"other\.safetensors: not a file of packed weights") as caught:
        PackedRun.open(path)
    assert "\n" not in str(caught.value)


def test_numbers_in_a_card_that_json_lacks_are_null(packed):
    rewrite(packed.path, lambda record: record["card"].update(scores={"iou": [0.5, float("nan")]}))
    assert PackedRun.open(packed.path).card["scores"] == {"iou": [0.5, None]}


def test_packing_a_packed_file_again_keeps_its_metadata(model, tiny_config, images, tmp_path):
    classes = dataclasses.replace(PETS, ignored=(0, 7))
    card = {**CARD, "scores": {"mean_iou": 0.5}, "versions": {"petseg": "0.1"}, "git_commit": "abc"}
    first = packed_run.pack(tmp_path / "run.safetensors", model, tiny_config, classes, card)
    first.restore(str(first.path), model)
    pictures = images.astype(np.uint8)
    export.export(
        model,
        ["weights"],
        str(tmp_path / "out"),
        pictures,
        calibration=None,
        card=first.model_card(str(first.path), "test", 12),
    )
    again = PackedRun.open(tmp_path / "out" / "weights.safetensors")
    assert (again.classes, again.card, again.config) == (classes, card, first.config)
