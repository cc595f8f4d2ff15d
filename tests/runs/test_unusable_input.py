"""Runs whose training split holds an example that cannot be used, and nobody looked before."""

import shutil
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import NUM_TRAIN, changed, tiny_flags
from programs_in_forks import Program

from petseg.data import decoding, example_order
from petseg.data.unusable_examples import NONE
from petseg.errors import DataError
from petseg.runs import experiment, starting_point
from petseg.runs.unusable_input import UnusableInput
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime.strategies import Placement

STEPS, BATCH = 4, 8
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # which has names in it that differ within one process


def in_step(step):
    """An example of the batch of a step that is in none before."""
    ids = [
        example_order.example_ids(
            tf.constant(i, tf.int64), tf.range(BATCH, dtype=tf.int64), num_examples=NUM_TRAIN, batch_size=BATCH, seed=0
        ).numpy()
        for i in range(step + 1)
    ]
    return int(np.setdiff1d(ids[step], np.concatenate(ids[:step]))[-1])


def spoil(folder, position):
    """Makes the picture of an example of the training split none."""
    (file,) = folder.glob("*/*/*-train.tfrecord*")
    records = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
    example = tf.train.Example.FromString(records[position])
    example.features.feature["image"].bytes_list.value[0] = b"no picture"
    records[position] = example.SerializeToString()
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(record)


def tensors(config, step=STEPS):
    path = str(WorkDirectory(config.runtime.workdir).checkpoints / f"ckpt-{step}")
    reader = tf.train.load_checkpoint(path)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if name != GRAPH}


def assert_equal(found, expected):
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture
def config(tiny_config, data_dir, tmp_path):
    """A run on a copy of the data set, without a cache."""
    shutil.copytree(data_dir, tmp_path / "data")
    return changed(tiny_config, "data", data_dir=str(tmp_path / "data"), cache="none")


@pytest.mark.slow
def test_the_run_ends_before_the_example_and_goes_on_when_that_is_mended(config, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(starting_point, "CALIBRATION_IMAGES", 1)  # the first ones, whose turn that is
    undisturbed = changed(config, "runtime", workdir=str(tmp_path / "undisturbed"))
    experiment.train(undisturbed)
    bad = in_step(2)
    spoil(tmp_path / "data", bad)
    for _ in range(2):  # the second time, it is in the very first batch
        with pytest.raises(DataError) as caught:
            experiment.train(config)
        message = str(caught.value)
        assert caught.value.exit_code == 2
        assert message.startswith(f"step 2: synthetic_pets, split train, example {bad} (")
        assert f"record {bad} of {tmp_path}/data/synthetic_pets" in message
        assert "cannot be decoded" in message
        assert message.endswith(f"the same command goes on from {config.runtime.workdir}/checkpoints/ckpt-2")
        assert "\n" not in message
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(data_dir, tmp_path / "data")
    experiment.train(config)
    assert_equal(tensors(config), tensors(undisturbed))


def test_what_is_skipped_is_told_and_bounded(config, tmp_path, caplog):
    spoil(tmp_path / "data", 5)
    config = changed(config, "data", on_bad_example="skip")
    examples = decoding.load(config.data, "train", for_training=True)
    told = UnusableInput(config, Placement(tf.distribute.get_strategy()), examples, lambda: "the start")
    told.skipped.add(np.array([5, NONE, 5]))
    with caplog.at_level("WARNING", logger="petseg"):
        assert not told.log_skipped(2)
        assert not told.log_skipped(4)
    (line,) = [message for message in caplog.messages if message.startswith("skipped")]
    assert line.startswith("skipped by step 2: synthetic_pets, split train, example 5 (")
    assert line.endswith("(1 of 10 so far)")
    told.check(4)
    told.skipped.add(np.arange(10, 20))
    assert told.log_skipped(6)
    with pytest.raises(DataError, match=r"step 6: 11 examples were skipped; must be at most 10 of .* the start"):
        told.explain(6, stopped_by=None)
    told.explain(6, stopped_by=15)  # by a signal


def test_an_example_that_can_be_used_by_now_is_no_signal(config):
    examples = decoding.load(config.data, "train", for_training=True)
    told = UnusableInput(config, Placement(tf.distribute.get_strategy()), examples, lambda: "the start")
    with pytest.raises(DataError, match=r"step 6: an example could not be used, and now can; .* the start"):
        told.explain(6, stopped_by=None)


def program(config, **flags):
    usual = {"train_steps": 8, "checkpoint_every": 2, "eval_every": 8, "cache": "none", "on_bad_example": "skip"}
    listed = [f"--{name}={value}" for name, value in (usual | flags).items()]
    return Program("train.py", *tiny_flags(config.data.data_dir, config.runtime.workdir), *listed)


@pytest.mark.slow
def test_killed_while_another_takes_its_place_a_run_ends_in_the_same_bits(config, tmp_path):
    bad = in_step(2)  # and once in every epoch of three steps
    spoil(tmp_path / "data", bad)
    undisturbed = changed(config, "runtime", workdir=str(tmp_path / "undisturbed"))
    whole, killed = program(undisturbed), program(config)
    checkpoints, deadline = WorkDirectory(config.runtime.workdir).checkpoints, time.monotonic() + 120
    while not (checkpoints / "ckpt-4.index").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    _, stderr = whole.communicate(timeout=120)
    assert whole.returncode == 0, stderr
    (line,) = [line for line in stderr.splitlines() if "skipped by step" in line]
    assert f"example {bad} (" in line
    resumed = program(config)
    _, stderr = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, stderr
    assert "resumed from" in stderr
    assert_equal(tensors(config, 8), tensors(undisturbed, 8))
