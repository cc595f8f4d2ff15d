"""Shared by all tests: four virtual CPUs, a small data set, finished runs, tiny configs and subprocesses."""

import itertools
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf
import white_figures
from filelock import FileLock
from hypothesis import settings
from short_trainings import SMALL_NETWORK, built_once
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from petseg.classes import PETS
from petseg.config import (
    Config,
    DataConfig,
    DistributionConfig,
    ModelConfig,
    RuntimeConfig,
    ScheduleConfig,
    command_line,
)
from petseg.data import loading, to_array_record
from petseg.data.backends.memory import MemoryExamples
from petseg.data.synthetic_pets import SyntheticPets
from petseg.data.to_array_record import ConversionConfig
from petseg.reporting import pictures
from petseg.runs import train
from petseg.runtime import startup

pytest_plugins = ["conversion_fixtures"]
ROOT = Path(__file__).parent.parent
NUM_TRAIN, NUM_TEST = 24, 10

# Files that take longest, with `-m slow` or by default. They start first, so that no process is idle at the end.
LONGEST = (
    "test_cluster.py", "test_networks.py", "test_export.py", "test_examples.py", "test_crash_states.py",
    "test_keras_optimizers.py", "test_survival.py", "test_tensorboard.py", "test_replicas.py", "test_scoring.py",
    "test_server.py", "test_bad_input.py",
)  # fmt: skip

startup.collect_garbage_rarely()

settings.register_profile("noisy machine", deadline=None)
settings.load_profile("noisy machine")

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)

pictures.to_array = white_figures.to_array


@pytest.fixture
def drawn_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn; without this fixture they stay white."""
    monkeypatch.setattr(pictures, "to_array", white_figures.draw)


@pytest.hookimpl(trylast=True)  # after tests are deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, then those with most tests; each goes to one process of pytest-xdist."""
    tests = Counter(item.path for item in items)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(item.path.name, len(places)), -tests[item.path], item.path))


@pytest.fixture
def fit_without_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    """`model.fit` uses XLA only if it is asked to; compiling takes longer than the few steps of a test."""
    given = keras.Model.compile
    monkeypatch.setattr(keras.Model, "compile", lambda *each, **more: given(*each, **{"jit_compile": False, **more}))


@pytest.fixture(autouse=True)
def default_log_level() -> None:
    """The package's log level before each test: programs that ran in this process have changed it."""
    logging.getLogger("petseg").setLevel(logging.NOTSET)


@pytest.fixture
def disk_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Python's calls of fsync, with the path of the file or folder, and of rename and replace, with the new path."""
    calls: list[tuple[str, str]] = []
    for name in ("fsync", "replace", "rename"):
        call = getattr(os, name)

        def recorded(*arguments: Any, name: str = name, call: Callable[..., None] = call) -> None:
            calls.append((name, os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else str(arguments[1])))
            call(*arguments)

        monkeypatch.setattr(os, name, recorded)
    return calls


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that is made once, by the first process of pytest-xdist that needs it; no test may change it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not (done := folder.with_name(f"{name}.done")).exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS folder with a small, prepared `synthetic_pets`."""

    def draw(folder: Path) -> None:
        SyntheticPets(num_train=NUM_TRAIN, num_test=NUM_TEST, data_dir=folder).download_and_prepare()

    return made_once(tmp_path_factory, "tfds", draw)


@pytest.fixture(scope="session")
def array_record_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same data set in array_record files, which --cache=none needs."""
    return made_once(
        tmp_path_factory, "array_record", lambda folder: as_array_records("synthetic_pets", data_dir, folder)
    )


@pytest.fixture(scope="session")
def finished_run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of a finished run of four steps; evaluated and saved at 2 and 4."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pictures, "to_array", white_figures.draw)
            train.train(four_steps(data_dir, folder))

    return made_once(tmp_path_factory, "finished_run", make)


@pytest.fixture(scope="session")
def averaged_run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with averaged weights and another learning rate; evaluated at 0, too."""
    flags = ["--ema_decay=0.5", "--learning_rate=0.01", "--eval_at_start"]
    return made_once(tmp_path_factory, "averaged_run", lambda folder: train.train(four_steps(data_dir, folder, *flags)))


@pytest.fixture
def same_build(tmp_path: Path) -> Iterator[None]:
    """All trainings of the test reuse what the first has built: see `built_once` for what may differ in them."""
    with built_once(tmp_path / "built"):
        yield


def four_steps(data_dir: Path, workdir: Path, *flags: str) -> Config:
    """The config of `finished_run` in another work directory."""
    every = [f"--{name}_every=2" for name in ("summary", "eval", "checkpoint")]
    return command_line.parse(["", *tiny_flags(data_dir, workdir), "--train_steps=4", *every, *flags], Config)


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The Chromium of this machine under Playwright; per module, because it keeps an event loop running."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on the PATH")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tiny_config(data_dir: Path, tmp_path: Path) -> Config:
    """The smallest run: four steps, 32 px, a frozen random encoder, batches of 8."""
    return Config(
        data=DataConfig(dataset="synthetic_pets", data_dir=str(data_dir), image_size="32", batch_size=8),
        model=ModelConfig(encoder="tiny", encoder_weights="none", encoder_alpha=0.35),
        schedule=ScheduleConfig(epochs=0, train_steps=4, summary_every=2, eval_every=4, checkpoint_every=2),
        distribution=DistributionConfig(strategy="one_device"),
        runtime=RuntimeConfig(workdir=str(tmp_path / "run"), deterministic=True),
    )


@pytest.fixture
def small_config(tiny_config: Config) -> Config:
    """The same with `SMALL_NETWORK`."""
    return tiny_config.changed(model=vars(SMALL_NETWORK))


def changed(config: Config, group: str, **values: object) -> Config:
    """A copy of a config with other values in one of its groups."""
    return config.changed(**{group: values})


def tiny_flags(data_dir: Path, workdir: Path) -> list[str]:
    """The flags of `tiny_config`, without the length of the run."""
    return [
        "--dataset=synthetic_pets",
        f"--data_dir={data_dir}",
        f"--workdir={workdir}",
        "--image_size=32",
        "--batch_size=8",
        "--encoder=tiny",
        "--encoder_weights=none",
        "--encoder_alpha=0.35",
        "--deterministic",
    ]


def small_flags(data_dir: Path, workdir: Path) -> list[str]:
    """The same with `SMALL_NETWORK`."""
    flags = [flag for flag in tiny_flags(data_dir, workdir) if not flag.startswith("--encoder")]
    return [*flags, f"--network={SMALL_NETWORK.network}"]


_strategies = itertools.count(1)
_make_strategy = tf.distribute.MirroredStrategy.__init__


def _make_strategy_of_its_own(self: Any, *arguments: Any, **options: Any) -> None:
    """Gives each strategy its own range of group keys for collective operations.

    TensorFlow's strategies share keys within a process, and a group of another size under a used key breaks all
    collective operations of the process.
    """
    type(self)._collective_key_base = 1000 * next(_strategies)
    _make_strategy(self, *arguments, **options)


tf.distribute.MirroredStrategy.__init__ = _make_strategy_of_its_own


def replicas(number: int) -> tf.distribute.Strategy:
    """A strategy over a number of virtual CPUs."""
    if number == 1:
        return tf.distribute.OneDeviceStrategy("/cpu:0")
    return tf.distribute.MirroredStrategy([f"cpu:{i}" for i in range(number)])


def run_program(script: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs an entry script in a new process."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


def own_lines(stderr: str) -> list[str]:
    """The lines that petseg wrote to stderr, without the start-up messages of TensorFlow's C++."""
    greetings = ("WARNING: All log messages before absl", "I0000 ", "W0000 ", "E0000 ", "To enable the following")
    return [line for line in stderr.splitlines() if line.strip() and not line.startswith(greetings)]


def events(folder: Path) -> dict[str, list[int]]:
    """The steps of each tag in the event files of a folder, in their order."""
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0}, purge_orphaned_data=False)
    accumulator.Reload()
    return {tag: [event.step for event in accumulator.Tensors(tag)] for tag in accumulator.Tags()["tensors"]}


def data_config(dataset, size, data_dir, **more):
    """A data config for images of a size."""
    return DataConfig(dataset=dataset, image_size=str(size), data_dir=str(data_dir), **more)


def as_array_records(dataset: str, data_dir: Path, target: Path) -> Path:
    """Converts a data set to array_record files in another folder, which it returns."""
    to_array_record.main(ConversionConfig(dataset=dataset, data_dir=str(data_dir), output_dir=str(target)))
    return target


def load_examples(dataset, split, size, data_dir, **more):
    """The examples of a split, with the classes of pets."""
    return loading.load(data_config(dataset, size, data_dir, **more), split, PETS)


def random_examples(count: int, size: int = 32, seed: int = 0) -> MemoryExamples:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    masks = rng.integers(0, 3, (count, size, size, 1), np.uint8)
    return MemoryExamples(images, masks, PETS)
