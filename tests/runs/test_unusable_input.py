"""Runs whose training split holds an example that cannot be used, and nobody looked before."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import NUM_TRAIN, changed

from petseg.data import example_order
from petseg.errors import DataError
from petseg.runs import experiment
from petseg.runs.work_directory import WorkDirectory

STEPS, BATCH = 4, 8


def in_step(step):
    """An example of the batch of a step that is in none before."""
    ids = [
        example_order.example_ids(
            tf.constant(i, tf.int64), tf.range(BATCH, dtype=tf.int64), num_examples=NUM_TRAIN, batch_size=BATCH, seed=0
        ).numpy()
        for i in range(step + 1)
    ]
    return int(np.setdiff1d(ids[step], np.concatenate(ids[:step]))[0])


def spoil(folder, position):
    """Makes the picture of an example of the training split none."""
    (file,) = folder.glob("**/*-train.tfrecord*")
    records = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
    example = tf.train.Example.FromString(records[position])
    example.features.feature["image"].bytes_list.value[0] = b"no picture"
    records[position] = example.SerializeToString()
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(record)


def tensors(config):
    path = str(WorkDirectory(config.runtime.workdir).checkpoints / f"ckpt-{STEPS}")
    reader = tf.train.load_checkpoint(path)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


@pytest.fixture
def config(tiny_config, data_dir, tmp_path):
    """A run on a copy of the data set, without a cache."""
    shutil.copytree(data_dir, tmp_path / "data")
    return changed(tiny_config, "data", data_dir=str(tmp_path / "data"), cache="none")


@pytest.mark.slow
def test_the_run_ends_before_the_example_and_goes_on_when_that_is_mended(config, data_dir, tmp_path):
    undisturbed = changed(config, "runtime", workdir=str(tmp_path / "undisturbed"))
    experiment.train(undisturbed)
    bad = in_step(2)
    spoil(tmp_path / "data", bad)
    for _ in range(2):  # the second time, it is in the very first batch
        with pytest.raises(DataError) as caught:
            experiment.train(config)
        message = str(caught.value)
        assert message.startswith(f"step 2: synthetic_pets, split train, example {bad} (")
        assert f"record {bad} of {tmp_path}/data/synthetic_pets" in message
        assert "cannot be decoded" in message
        assert message.endswith(f"the same command goes on from {config.runtime.workdir}/checkpoints/ckpt-2")
        assert "\n" not in message
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(data_dir, tmp_path / "data")
    experiment.train(config)
    expected, found = tensors(undisturbed), tensors(config)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_another_example_takes_its_place_and_the_log_names_it_once(config, tmp_path, caplog):
    bad = in_step(1)
    spoil(tmp_path / "data", bad)
    config = changed(changed(config, "data", on_bad_example="skip"), "schedule", train_steps=6, steps_per_loop=2)
    with caplog.at_level("WARNING", logger="petseg"):
        experiment.train(config)
    told = [line for line in caplog.messages if line.startswith("passed over")]
    assert len(told) == 1
    assert f"example {bad} (" in told[0]
    assert told[0].endswith("(1 of 10 so far)")
