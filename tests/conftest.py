"""What the tests share: two virtual CPUs, a small data set, tiny configs, and programs run as programs."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import settings

from petseg.config import Config, DataConfig, ModelConfig, RuntimeConfig, ScheduleConfig
from petseg.data.datasets import Examples
from petseg.data.synthetic_pets import SyntheticPets

ROOT = Path(__file__).parent.parent
NUM_TRAIN, NUM_TEST = 24, 10

settings.register_profile("noisy machine", deadline=None)
settings.load_profile("noisy machine")

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small `synthetic_pets`, prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    SyntheticPets(num_train=NUM_TRAIN, num_test=NUM_TEST, data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture(scope="session")
def real_data_dir() -> str:
    """A folder with a prepared oxford_iiit_pet."""
    folder = os.environ.get("PETSEG_TEST_DATA_DIR", "")
    if not os.path.isdir(os.path.join(folder, "oxford_iiit_pet")):
        pytest.skip("PETSEG_TEST_DATA_DIR names no folder with a prepared oxford_iiit_pet")
    return folder


@pytest.fixture(scope="session")
def real_weights() -> str:
    """A file of MobileNetV2 1.0 weights without top."""
    file = os.environ.get("PETSEG_TEST_ENCODER_WEIGHTS", "")
    if not os.path.isfile(file):
        pytest.skip("PETSEG_TEST_ENCODER_WEIGHTS names no file of MobileNetV2 weights")
    return file


@pytest.fixture
def tiny_config(data_dir: Path, tmp_path: Path) -> Config:
    """Four steps of the smallest run: 32 px, a frozen random encoder, batches of 8."""
    return Config(
        data=DataConfig(dataset="synthetic_pets", data_dir=str(data_dir), image_size=32, batch_size=8),
        model=ModelConfig(encoder_weights="none", encoder_alpha=0.35),
        schedule=ScheduleConfig(epochs=0, train_steps=4, summary_every=2, eval_every=2, checkpoint_every=2),
        runtime=RuntimeConfig(workdir=str(tmp_path / "run"), strategy="one_device", deterministic=True),
    )


def changed(config: Config, group: str, **values: object) -> Config:
    """A config with other values in one of its groups."""
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **values)})


def tiny_flags(data_dir: Path, workdir: Path) -> list[str]:
    """The flags of `tiny_config`, but for how long it runs."""
    return [
        "--dataset=synthetic_pets",
        f"--data_dir={data_dir}",
        f"--workdir={workdir}",
        "--image_size=32",
        "--batch_size=8",
        "--encoder_weights=none",
        "--encoder_alpha=0.35",
        "--strategy=one_device",
        "--deterministic",
    ]


def run_program(script: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs one of the entry scripts in a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


def own_lines(stderr: str) -> list[str]:
    """What petseg itself wrote to stderr: without the lines with which TensorFlow's C++ greets."""
    greetings = ("WARNING: All log messages before absl", "I0000 ", "W0000 ", "E0000 ", "To enable the following")
    return [line for line in stderr.splitlines() if line.strip() and not line.startswith(greetings)]


def random_examples(count: int, size: int = 32, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    masks = rng.integers(0, 3, (count, size, size, 1), np.uint8)
    return Examples(images, masks, tuple(str(i) for i in range(count)))
