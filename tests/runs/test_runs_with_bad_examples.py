"""Runs whose training split holds a bad example, found only when it is read (--cache=none)."""

import shutil
import time

import numpy as np
import pytest
import tensorflow as tf
from array_record.python import array_record_module
from conftest import NUM_TRAIN, changed, tiny_flags
from programs_in_forks import Program
from short_trainings import assert_equal, variables

from petseg.data import example_order, loading
from petseg.errors import DataError
from petseg.runs import resume_or_init, train
from petseg.runs.bad_examples import BadExamples
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime.strategies import Placement

STEPS, BATCH = 4, 8


def in_step(step):
    """An example of the batch of a step that is in no earlier one."""
    ids = [
        example_order.example_ids(
            tf.constant(i, tf.int64), tf.range(BATCH, dtype=tf.int64), num_examples=NUM_TRAIN, batch_size=BATCH, seed=0
        ).numpy()
        for i in range(step + 1)
    ]
    return int(np.setdiff1d(ids[step], np.concatenate(ids[:step]))[-1])


def spoil(folder, position):
    """Replaces the picture of an example of the training split by something else."""
    (file,) = folder.glob("*/*/*-train.array_record*")
    records = array_record_module.ArrayRecordReader(str(file)).read_all()
    example = tf.train.Example.FromString(records[position])
    example.features.feature["image"].bytes_list.value[0] = b"no picture"
    records[position] = example.SerializeToString()
    file.unlink()
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for each in records:
        writer.write(each)
    writer.close()


def tensors(config, step=STEPS):
    return variables(WorkDirectory(config.runtime.workdir).checkpoints / f"ckpt-{step}")


@pytest.fixture
def config(tiny_config, array_record_dir, tmp_path):
    """A run on a copy of the data set, without a cache."""
    shutil.copytree(array_record_dir, tmp_path / "data")
    return changed(tiny_config, "data", data_dir=str(tmp_path / "data"), cache="none")


@pytest.mark.slow
def test_a_run_ends_at_a_bad_example_and_resumes_to_the_same_bits_when_it_is_fixed(
    config, array_record_dir, same_build, tmp_path, monkeypatch
):
    monkeypatch.setattr(resume_or_init, "CALIBRATION_IMAGES", 1)
    undisturbed = changed(config, "runtime", workdir=str(tmp_path / "undisturbed"))
    train.train(undisturbed)
    bad = in_step(2)
    spoil(tmp_path / "data", bad)
    for _ in range(2):  # the second process meets it at once
        with pytest.raises(DataError) as caught:
            train.train(config)
        message = str(caught.value)
        assert caught.value.exit_code == 2
        assert message.startswith(f"step 3: synthetic_pets, split train, example {bad} (")
        assert f"record {bad} of {tmp_path}/data/synthetic_pets" in message
        assert "cannot be decoded" in message
        assert message.endswith(f"rerun to resume from {config.runtime.workdir}/checkpoints/ckpt-2")
        assert "\n" not in message
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(array_record_dir, tmp_path / "data")
    train.train(config)
    assert_equal(tensors(config), tensors(undisturbed))


def test_ignored_examples_are_logged_once_and_bounded(config, tmp_path, caplog):
    spoil(tmp_path / "data", 5)
    config = changed(config, "data", on_bad_example="ignore")
    examples = loading.load(config.data, "train", for_training=True)
    checked = BadExamples(config, Placement(tf.distribute.get_strategy()), examples, lambda: "the start")
    assert checked.limit == 10
    record(checked.log, {0: [5], 3: [5], 7: range(10, 20)})
    with caplog.at_level("WARNING", logger="petseg"):
        checked.check(2)
        checked.check(4)
    (line,) = [message for message in caplog.messages if "ignored" in message]
    assert line.startswith("step 0: ignored: synthetic_pets, split train, example 5 (")
    assert line.endswith("(1 of at most 10)")
    with pytest.raises(DataError, match=r"step 8: 11 bad examples were ignored; must be at most 10 of .* the start"):
        checked.check(8)


def test_a_bad_example_that_is_readable_again_is_still_named(config):
    examples = loading.load(config.data, "train", for_training=True)
    checked = BadExamples(config, Placement(tf.distribute.get_strategy()), examples, lambda: "the start")
    record(checked.log, {5: [3]})
    checked.check(5)  # the batch of step 5 is not trained on yet
    with pytest.raises(DataError, match=r"step 6: example 3 of synthetic_pets.* was unreadable but is readable now; "):
        checked.check(6)


def record(log, found):
    """Has the log record examples of steps, as the input pipeline does."""
    for step, ids in found.items():
        part = {
            "step": tf.constant(step, tf.int64),
            "example_id": tf.constant([*ids], tf.int64),
            "usable": tf.zeros([len(ids)], tf.bool),
        }
        assert len(list(log.recorded(tf.data.Dataset.from_tensors(part)))) == 1


def program(config, **flags):
    usual = {"train_steps": 8, "checkpoint_every": 2, "eval_every": 8, "cache": "none", "on_bad_example": "ignore"}
    listed = [f"--{name}={value}" for name, value in (usual | flags).items()]
    return Program("train.py", *tiny_flags(config.data.data_dir, config.runtime.workdir), *listed)


@pytest.mark.slow
def test_a_run_killed_around_an_ignored_example_ends_in_the_same_bits(config, tmp_path):
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
    (line,) = [line for line in stderr.splitlines() if "ignored: " in line]
    assert f"example {bad} (" in line
    resumed = program(config)
    _, stderr = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, stderr
    assert "resumed from" in stderr
    assert_equal(tensors(config, 8), tensors(undisturbed, 8))
