"""Runs with averaged weights, and runs with --init_from."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import load_examples, tiny_flags
from PIL import Image

from petseg.classes import PETS
from petseg.config import Config, command_line
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.deployment import export_command, prediction_command
from petseg.errors import CheckpointError, ConfigError
from petseg.models import inference
from petseg.reporting.summaries import read_csv
from petseg.runs import building, scoring, train
from petseg.runs.work_directory import WorkDirectory
from petseg.training import optimizers

SCHEDULE = ["--train_steps=4", "--eval_every=2", "--checkpoint_every=2", "--eval_at_start"]


def tiny(data_dir, workdir, *flags):
    return command_line.parse(["train.py", *tiny_flags(data_dir, workdir), *SCHEDULE, *flags], Config)


@pytest.fixture(scope="module")
def averaged(averaged_run, tmp_path_factory):
    """A finished run that averages its weights: its work directory and its results files by weights and step."""
    workdir = WorkDirectory(shutil.copytree(averaged_run, tmp_path_factory.mktemp("averaged") / "run"))
    results = {
        (kind, step): json.loads((workdir.results / f"test-{step}{kind}.json").read_text())
        for kind in ("", ".ema")
        for step in (0, 2, 4)
    }
    return workdir, results


def test_trained_and_averaged_weights_are_scored_and_averages_select_the_best(averaged):
    workdir, results = averaged
    trained, mean = results["", 4], results[".ema", 4]
    assert mean["step"] == trained["step"] == 4
    assert mean["confusion_matrix"] != trained["confusion_matrix"]
    rows = list(read_csv(workdir.metrics_file))
    scores = {run: {step: v for step, r, tag, v in rows if (r, tag) == (run, "mean_iou")} for run in ("eval", "ema")}
    assert scores["eval"][0] == scores["ema"][0]  # nothing has been averaged yet
    assert scores["ema"][4] == mean["mean_iou"]
    best = json.loads((workdir.best / "best.json").read_text())
    assert best["mean_iou"] == max(scores["ema"][2], scores["ema"][4])
    final = [value for step, run, tag, value in rows if (step, run, tag) == (4, "final", "final/IoU")]
    assert final == [mean["mean_iou"]]


@pytest.mark.parametrize("checkpoint", [pytest.param("latest", marks=pytest.mark.slow), "best"])
def test_eval_reproduces_the_scores_of_averaged_weights(averaged, checkpoint):
    workdir, trained = averaged
    (raw,), (mean,) = (
        scoring.evaluate(EvalConfig(ScoreConfig(workdir=str(workdir.path), checkpoint=checkpoint, ema=ema)))
        for ema in (False, True)
    )
    assert raw["confusion_matrix"] == trained["", raw["step"]]["confusion_matrix"]
    assert mean["confusion_matrix"] == trained[".ema", raw["step"]]["confusion_matrix"]
    assert mean["loss"] == pytest.approx(trained[".ema", raw["step"]]["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("ema", [False, True])
def test_exports_and_predictions_use_the_requested_weights(averaged, data_dir, tmp_path, ema):
    workdir, trained = averaged
    config, images = workdir.load_config(), load_examples("synthetic_pets", "test", 32, str(data_dir)).images
    models = [building.build_model(config, PETS) for _ in range(2)]
    for model, average in zip(models, (ema, not ema), strict=True):
        building.restore(str(workdir.checkpoints / "ckpt-4"), config, model, averaged=average)
    expected, other = (tf.nn.softmax(inference.logits(model, images)).numpy() for model in models)
    assert np.abs(expected - other).max() > 0.01

    flags = {"workdir": str(workdir.path), "output_dir": str(tmp_path / "out"), "ema": ema}
    export_command.export(EvalConfig(ScoreConfig(**flags, export="keras")))
    found = keras.models.load_model(tmp_path / "out" / "model.keras")(images)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    card = json.loads((tmp_path / "out" / "model_card.json").read_text())
    assert card["weights"] == ("averaged" if ema else "trained")
    assert card["scores"]["loss"] == trained[".ema" if ema else "", 4]["loss"]

    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    masks = prediction_command.predict(EvalConfig(ScoreConfig(**flags, predict=str(tmp_path / "*.png"))))
    found = {path.name: np.asarray(Image.open(path)) for path in masks}
    for i, probabilities in enumerate(expected):
        np.testing.assert_array_equal(found[f"{i}.mask.png"], probabilities.argmax(-1))


@pytest.mark.slow
def test_init_from_starts_a_new_run_and_logs_it(averaged, data_dir, tmp_path, caplog):
    source, theirs = averaged
    best = json.loads((source.best / "best.json").read_text())["step"]
    origins = [  # a work directory's averages, also into an encoder that will be trained; a checkpoint's weights
        (source.path, ["--train_encoder", "--train_steps=1", "--encoder_weights=missing.h5"], theirs[".ema", best]),
        (source.checkpoints / "ckpt-4", ["--train_steps=1"], theirs["", 4]),
    ]
    for i, (origin, flags, expected) in enumerate(origins):
        with caplog.at_level("INFO", logger="petseg"):
            results = train.train(tiny(data_dir, tmp_path / str(i), f"--init_from={origin}", *flags))
        assert results["step"] == 1
        initial = json.loads((tmp_path / str(i) / "results" / "test-0.json").read_text())
        assert initial["confusion_matrix"] == expected["confusion_matrix"]
    first, second = (line for line in caplog.messages if line.startswith("initialised with the "))
    assert first == (
        f"initialised with the averaged weights of {source.best}/ckpt-{best}, step {best}; "
        "this is a new run, from step 0"
    )
    assert second.startswith(f"initialised with the trained weights of {source.checkpoints}/ckpt-4, step 4; ")
    assert not [line for line in caplog.messages if "resumed" in line]


@pytest.mark.slow
def test_incompatible_initial_weights_are_refused(averaged, data_dir, tmp_path):
    source, _ = averaged
    for flag, value in (("encoder_alpha", "0.5"), ("input_scaling", "symmetric")):
        with pytest.raises(ConfigError, match=f"--{flag}={value}: must be .*, as in the run of --init_from="):
            train.train(tiny(data_dir, tmp_path / "run", f"--init_from={source.path}", f"--{flag}={value}"))
    checkpoint = tmp_path / "elsewhere" / "ckpt-4"  # where nothing says what model it is of
    shutil.copytree(source.checkpoints, checkpoint.parent)
    with pytest.raises(CheckpointError, match="cannot be restored"):
        train.train(tiny(data_dir, tmp_path / "run", f"--init_from={checkpoint}", "--encoder_alpha=0.5"))
    assert not (tmp_path / "run").exists()


def test_the_encoder_is_frozen_until_unfreezing_and_then_has_its_own_rate(data_dir, tmp_path):
    flags = ["--train_encoder", "--unfreeze_encoder_at=1", "--encoder_learning_rate_factor=0.2"]
    config = tiny(data_dir, tmp_path / "run", *flags, "--optimizer=sgd", "--learning_rate=0.1", "--momentum=0")
    model = building.build_model(config, PETS)
    optimizer = optimizers.build_optimizer(config.optimizer, model, total_steps=4)
    encoder = {id(weight) for weight in model.get_layer("encoder").trainable_variables}
    assert len(optimizer.weights) == len(model.trainable_variables) > len(encoder) >= 15
    for step, of_encoder in ((0, 0.0), (1, 0.02)):
        before = [weight.numpy() for weight in optimizer.weights]
        optimizer.set_learning_rates(tf.constant(step, tf.int64))
        optimizer.apply(optimizer.join([tf.ones(weight.shape) for weight in optimizer.weights]))
        for old, weight in zip(before, optimizer.weights, strict=True):
            rate = of_encoder if id(weight) in encoder else 0.1
            np.testing.assert_allclose(weight.numpy(), old - rate, atol=1e-5)
