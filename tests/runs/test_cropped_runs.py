"""Training on random crops and tiled inference of such a run."""

import dataclasses

import numpy as np
import pytest
from conftest import NUM_TEST
from PIL import Image

import petseg
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.data import loading
from petseg.deployment import prediction_command
from petseg.errors import ConfigError
from petseg.runs import scoring, train


@pytest.mark.slow
def test_a_run_on_crops_trains_scores_and_predicts(tiny_config, tmp_path):
    data = {"resize": "crop", "image_size": "64", "eval_split": "test[:3]"}
    config = tiny_config.changed(data=data, augmentation={"crop_focus": 0.5}, schedule={"train_steps": 2})
    results = train.train(config)
    assert np.sum(results["confusion_matrix"]) == 3 * 64 * 64
    score = ScoreConfig(workdir=config.runtime.workdir, resolution="native")
    pairs = list(loading.native_pairs(config.data, "test[:3]"))
    middles, native = scoring.evaluate(EvalConfig(score))
    assert middles["confusion_matrix"] == results["confusion_matrix"]
    assert native["resolution"] == "native resolution in tiles of 64 x 64"
    assert np.sum(native["confusion_matrix"]) == sum(mask.size for _, mask in pairs)
    Image.fromarray(pairs[0][0]).save(tmp_path / "photo.png")
    photo = ScoreConfig(
        workdir=config.runtime.workdir, predict=str(tmp_path / "photo.png"), output_dir=str(tmp_path / "out")
    )
    (mask,) = prediction_command.predict(EvalConfig(photo))
    assert Image.open(mask).size == pairs[0][0].shape[1::-1]
    with pytest.raises(ConfigError, match=r"--tile=96: .* at most its --image_size=64, and not 0"):
        prediction_command.predict(EvalConfig(dataclasses.replace(photo, tile="96")))


@pytest.mark.slow
def test_crops_of_half_the_size_train_the_network_that_sees_whole_images(tiny_config):
    flags = {"crop_size": "32", "crop_area": 0.25, "crop_area_max": 0.25}
    config = tiny_config.changed(
        data={"image_size": "64"}, augmentation=flags, schedule={"train_steps": 2, "summary_every": 1}
    )
    results = train.train(config)
    assert np.sum(results["confusion_matrix"]) == NUM_TEST * 64 * 64
    segmentation = petseg.load(config.runtime.workdir)(np.zeros([64, 64, 3], np.uint8))
    assert segmentation.mask.shape == (64, 64)
