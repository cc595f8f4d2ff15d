"""The networks that the demo page offers."""

import logging

import numpy as np
import pytest

import petseg
from petseg.config import Config
from petseg.config.eval_config import ScoreConfig
from petseg.deployment.demo.networks import Networks
from petseg.errors import ConfigError
from petseg.runs.open_trained_run import open_run

PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture
def train(data_dir, tmp_path):
    """Trains a run, or goes on with it, to a step."""

    def train(steps):
        return petseg.train(
            Config.of(
                dataset="synthetic_pets", data_dir=data_dir, image_size=32, batch_size=8, encoder="tiny",
                encoder_weights="none", train_steps=steps, strategy="one_device", workdir=tmp_path / "run", quiet=True,
            )
        ).workdir  # fmt: skip

    return train


@pytest.mark.slow
def test_a_newer_checkpoint_is_served_and_a_damaged_one_is_not(train, tmp_path, caplog):
    workdir = str(train(1))
    networks = Networks(workdir, open_run(ScoreConfig(workdir=workdir)))
    first = networks("latest", False, False)
    assert first.step == 1
    assert networks("latest", False, False) is first  # loaded once
    before = first(PHOTOGRAPH).probabilities
    train(3)
    second = networks("latest", False, False)
    assert second.step == 3
    assert np.abs(second(PHOTOGRAPH).probabilities - before).max() > 0
    for file in (tmp_path / "run" / "checkpoints").glob("ckpt-*"):
        file.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING, "petseg"):
        assert networks("latest", False, False).step == 3
    assert "still serving the weights of step 3" in caplog.text
    with pytest.raises(ConfigError, match="checkpoint: got 'other'"):
        networks("other", False, False)
