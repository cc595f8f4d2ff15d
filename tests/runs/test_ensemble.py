"""Ensembles: several runs as one model, in scores, predictions and Python."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import NUM_TEST, NUM_TRAIN, load_examples
from PIL import Image

import petseg
from petseg.classes import PETS
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.deployment import prediction_command
from petseg.errors import CheckpointError, ConfigError, DataError, WorkDirectoryError
from petseg.models import inference
from petseg.runs import run_groups, scoring
from petseg.runs.open_trained_run import load_model, open_run
from petseg.runs.work_directory import WorkDirectory
from petseg.training import confusion_matrix


@pytest.fixture(scope="module")
def folder(finished_run, averaged_run, tmp_path_factory):
    """A folder of two finished runs."""
    folder = tmp_path_factory.mktemp("ensemble")
    for run in (finished_run, averaged_run):
        shutil.copytree(run, folder / run.name)
    return folder


@pytest.fixture(scope="module")
def examples(folder):
    config = WorkDirectory(folder / "finished_run").load_config()
    return load_examples("synthetic_pets", "test", 32, config.data.data_dir)


def score_config(workdir, **options):
    return ScoreConfig(workdir=str(workdir), ensemble=True, **options)


def probabilities(folder, images):
    """The mean of the runs' probabilities, computed here."""
    found = []
    for workdir in sorted(folder.iterdir()):
        run = open_run(ScoreConfig(workdir=str(workdir)))
        model, _ = load_model(run, run.checkpoint("latest"))
        found.append(tf.nn.softmax(inference.logits(model, images)).numpy())
    assert np.abs(found[0] - found[1]).max() > 1e-3
    return np.mean(found, axis=0)


def test_a_split_is_scored_by_the_mean_probabilities(folder, examples, capsys):
    (results,) = scoring.evaluate(EvalConfig(score_config(folder, batch_size=4)))
    predictions = probabilities(folder, examples.images).argmax(-1)
    labels = examples.masks[..., 0]
    expected = confusion_matrix.confusion_matrices(labels, predictions, labels != 255, 3).numpy().sum(0)
    assert results["confusion_matrix"] == expected.tolist()
    assert results["examples"] == NUM_TEST
    assert len(results["ensemble"]) == 2
    (file,) = folder.glob("*/results/test-4.ensemble2-*.json")
    assert json.loads(file.read_text())["confusion_matrix"] == expected.tolist()
    assert str(file) in capsys.readouterr().out


@pytest.mark.slow
def test_native_resolution_tables_and_comparisons_work_as_for_one_run(folder, tmp_path):
    single = folder / "finished_run"
    options = {"resolution": "native", "csv": str(tmp_path / "scores.csv"), "flip_tta": True, "compare": str(single)}
    results = scoring.evaluate(EvalConfig(score_config(folder, **options)))
    assert [each["examples"] for each in results] == [NUM_TEST] * 2
    assert results[1]["comparison"]["other"].startswith(str(single))
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == NUM_TEST + 1


@pytest.mark.slow
def test_files_and_python_get_the_mean_probabilities(folder, examples, tmp_path):
    image = examples.images[0]
    expected = probabilities(folder, image[None])[0]
    segmenter = petseg.load(sorted(folder.iterdir()), checkpoint="latest", ema=False)
    np.testing.assert_allclose(segmenter(image).probabilities, expected, atol=1e-5)
    assert segmenter.evaluate("test")["examples"] == NUM_TEST
    with pytest.raises(DataError, match=rf"dataset=train: {NUM_TRAIN} of its images were trained on"):
        segmenter.evaluate("train")
    Image.fromarray(image).save(tmp_path / "cat.png")
    where = {"predict": str(tmp_path / "cat.png"), "output_dir": str(tmp_path / "out"), "probabilities": "npz"}
    (mask,) = prediction_command.predict(EvalConfig(score_config(folder, **where)))
    np.testing.assert_array_equal(np.asarray(Image.open(mask)), expected.argmax(-1))
    with np.load(tmp_path / "out" / "cat.probabilities.npz") as content:
        np.testing.assert_allclose(content["probabilities"], expected, atol=1e-5)


def changed_run(folder, tmp_path, change):
    """A copy of a run with changed records."""
    copy = shutil.copytree(folder / "finished_run", tmp_path / "other")
    file = copy / "config.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    return f"{folder / 'finished_run'},{copy}"


def test_runs_that_do_not_fit_together_are_refused(folder, tmp_path):
    both = changed_run(folder, tmp_path, lambda record: record["config"]["data"].update(image_size="64"))
    with pytest.raises(ConfigError, match=r"^--ensemble: .* the same --image_size; .*run has 32 x 32, .*other has 64"):
        open_run(score_config(both))
    shutil.rmtree(tmp_path / "other")
    both = changed_run(folder, tmp_path, lambda record: record["classes"]["classes"][0].update(name="cat", value=7))
    with pytest.raises(ConfigError, match=rf"^--ensemble: .* the same classes; .* has {', '.join(PETS.names)}, .*cat"):
        open_run(score_config(both))


def test_wrong_ensembles_are_refused_in_one_line(folder, tmp_path):
    single = folder / "finished_run"
    with pytest.raises(ConfigError, match=f"^--ensemble: must have at least two runs; got {single}$"):
        open_run(score_config(single))
    with pytest.raises(
        ConfigError, match=r"^source: got \[\]; must be a path, the name of a packaged model, or a list of these$"
    ):
        petseg.load([])
    with pytest.raises(WorkDirectoryError, match="missing"):
        open_run(score_config(f"{single},{tmp_path}/missing"))
    with pytest.raises(ConfigError, match="each run must be named once"):
        open_run(score_config(f"{single},{single}"))
    shutil.copytree(single, tmp_path / "rate=0.1, seed=2")
    with pytest.raises(ConfigError, match=r"^--ensemble: .*rate=0.1, seed=2: its path must not contain ', '; rename"):
        petseg.load([single, tmp_path / "rate=0.1, seed=2"])
    shutil.copytree(single, tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty" / "checkpoints")
    with pytest.raises(CheckpointError, match="empty"):
        scoring.evaluate(EvalConfig(score_config(f"{single},{tmp_path}/empty")))
    with pytest.raises(ConfigError, match=r"--compare=.*: holds 2 runs"):
        run_groups.names_several_runs(score_config(folder, compare=str(folder)))
    assert not run_groups.names_several_runs(score_config(folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"watch": True}, "--watch=True: must not come with --ensemble"),
        ({"export": "onnx", "output_dir": "out"}, "--export=onnx: must not come with --ensemble"),
        ({"predict": "*.png", "runtime": "onnx"}, "--runtime=onnx: must not come with --ensemble"),
        ({"checkpoint": "all"}, "--ensemble: must come with .*; got --workdir=runs and --checkpoint=all"),
        ({"checkpoint": "runs/a/ckpt-1"}, "--ensemble: must come with .*"),
    ],
)
def test_flags_that_an_ensemble_does_not_have(options, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        score_config("runs", **options)
