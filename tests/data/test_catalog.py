"""Finding and preparing data sets, in one process or several, and what is logged meanwhile; overlap of splits."""

import random

import programs_in_forks
import pytest
import tensorflow_datasets as tfds
from conftest import NUM_TRAIN, data_config

from petseg.config import DataConfig
from petseg.data import catalog, overlaps, tfds_builders
from petseg.data.synthetic_pets import SyntheticPets
from petseg.errors import ConfigError, DataError

AT_ONCE = """
import os, sys, traceback
import keras
from petseg.config import DataConfig
from petseg.data import loading
from petseg.data.synthetic_pets import SyntheticPets
SyntheticPets.__init__.__kwdefaults__.update(num_train=60, num_test=4)

def train():
    keras.utils.set_random_seed(0)  # as every run does; TFDS draws the name of its temporary folder from it
    data = DataConfig(dataset="synthetic_pets", image_size="32", data_dir=sys.argv[1])
    print(len(loading.load(data, "train")))

processes = []
for _ in range(3):
    process = os.fork()  # before TensorFlow has computed anything; so it is loaded but once
    if not process:
        try:
            train()
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    processes.append(process)
sys.exit(sum(os.waitpid(process, 0)[1] for process in processes))
"""


@pytest.mark.slow
def test_processes_with_one_seed_that_prepare_one_data_set_at_once_all_get_it(tmp_path):
    result = programs_in_forks.run("-c", AT_ONCE, tmp_path, timeout=120)
    assert (result.returncode, result.stdout) == (0, "60\n" * 3), result.stderr
    assert not list(tmp_path.glob(".*"))  # the lock is gone


@pytest.fixture
def few_drawings(monkeypatch):
    monkeypatch.setitem(SyntheticPets.__init__.__kwdefaults__, "num_train", 3)
    monkeypatch.setitem(SyntheticPets.__init__.__kwdefaults__, "num_test", 2)


def test_drawing_the_embedded_data_set_mentions_no_download(few_drawings, tmp_path, capfd, caplog):
    with caplog.at_level("INFO", logger="petseg"):
        tfds_builders.prepare("synthetic_pets", str(tmp_path))
    assert caplog.messages == [f"drawing synthetic_pets into {tmp_path}/synthetic_pets/2.0.0"]
    assert capfd.readouterr().out == ""
    assert capfd.readouterr().err == ""


def test_a_run_that_prepares_its_data_draws_the_same_random_numbers_as_one_that_finds_it(few_drawings, tmp_path):
    numbers = []
    for _ in range(2):
        random.seed(0)  # from which Keras draws the seeds of initial weights, and TFDS the name of a folder
        tfds_builders.prepare("synthetic_pets", str(tmp_path))
        numbers.append(random.random())
    assert numbers[0] == numbers[1]


def test_an_unwritable_embedded_data_set_is_not_reported_as_a_failed_download(few_drawings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=rf"^synthetic_pets cannot be drawn into {tmp_path}/file/synthetic_pets/2.0.0 "):
        tfds_builders.prepare("synthetic_pets", str(tmp_path / "file"))


@pytest.mark.parametrize(
    "name",
    ["huggingface:owner/name", "huggingface:name", "kaggle:pets", "pets/a=True", "pets:1.0.0/seed=3", "a.b", "pets:1",
     "../pets", "gs://pets", "pets/../other"],
)  # fmt: skip
def test_names_for_which_tfds_would_run_code_are_refused(monkeypatch, name, tmp_path):
    monkeypatch.setattr(tfds, "builder", None)
    with pytest.raises(ConfigError, match=r"^--dataset=.*: must be ") as caught:
        tfds_builders.prepare(name, str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^--dataset=.*: must be "):
        DataConfig(dataset=name)


@pytest.mark.parametrize(
    "name", ["pets", "pets:1.0.0", "pets:3.*.*", "my_pets2/2017", "pets/20230601.en-x:1.2.3", "PascalVoc"]
)
def test_names_with_config_and_version_are_accepted(name):
    assert DataConfig(dataset=name).dataset == name


def test_splits_that_share_examples_are_warned_of_with_their_number(data_dir, caplog):
    data_set = catalog.open_data(data_config("synthetic_pets", 32, data_dir))
    overlaps.warn_of_shared_examples(data_set, "train", "test")
    assert not caplog.messages
    overlaps.warn_of_shared_examples(data_set, "train[:10]", "train[8:]")
    (message,) = caplog.messages
    assert message.startswith(
        f"--eval_split=train[8:]: 2 of its {NUM_TRAIN - 8} examples are in --train_split=train[:10] too"
    )
