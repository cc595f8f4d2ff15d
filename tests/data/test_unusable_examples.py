"""Examples that cannot be used and are found when their turn comes: what the input makes of them."""

import io

import numpy as np
import pytest
import tensorflow as tf
from conftest import data_config, load_examples, replicas
from test_decoding import picture, png, write_data_set

from petseg.classes import PETS
from petseg.data import decoding, example_order, input_pipeline
from petseg.data.unusable_examples import Skipped
from petseg.errors import DataError

COUNT, BAD = 12, (4, 7)
ORDER = {"num_examples": COUNT, "batch_size": 4, "seed": 3}


def mask(value=2):
    return png(np.full((40, 30), value, np.uint8))


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """A folder with a data set in two files, one of whose pictures is none, and one mask has a value in no class."""
    examples = [(png(np.full((40, 30, 3), 10 * i, np.uint8)), mask()) for i in range(COUNT)]
    examples[BAD[0]] = (io.BytesIO(b"this is no image"), mask())
    examples[BAD[1]] = (png(picture()), mask(4))
    folder = tmp_path_factory.mktemp("spoiled")
    write_data_set(folder, examples, shards=2)
    return folder


def loaded(folder, *, skip):

    policy = "skip" if skip else "stop"
    config = data_config("handmade_pets", 32, folder, cache="none", on_bad_example=policy)
    return decoding.load(config, "train", PETS, for_training=True)


def batches(examples, devices=1, *, first_step=0, last_step=6, skipped=None):
    """Per step, what all replicas get, put together."""
    strategy = replicas(devices)
    dataset = input_pipeline.distributed_training_batches(
        strategy, examples, batch_size=4, seed=3, first_step=first_step, last_step=last_step, skipped=skipped
    )
    return [
        {key: np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)])
         for key, value in batch.items()}
        for batch in dataset
    ]  # fmt: skip


def planned(step, attempt=0):
    """The examples whose turn it is, or those that are tried instead."""
    step, positions = tf.constant(step, tf.int64), tf.range(4, dtype=tf.int64)
    if not attempt:
        return example_order.example_ids(step, positions, **ORDER).numpy()
    return example_order.substitute_ids(step, positions, tf.constant(attempt, tf.int64), **ORDER).numpy()


@pytest.mark.parametrize("devices", [1, 2])
def test_the_batch_before_one_that_cannot_be_made_is_marked_as_the_last(spoiled, devices):
    bad = [bool(set(planned(step)) & set(BAD)) for step in range(7)]
    assert any(bad[1:6])
    assert not all(bad[1:6])
    for step, batch in enumerate(batches(loaded(spoiled, skip=False), devices)):
        assert batch["last"].any() == (bad[step + 1] and step < 5)
        good = ~np.isin(batch["example_id"], BAD)
        assert (batch["image"][good] == 10 * batch["example_id"][good][:, None, None, None]).all()
        assert (batch["mask"][good] == 1).all()
        assert (batch["image"][~good] == 128).all()
        assert (batch["mask"][~good] == 255).all()


def test_others_take_their_place_the_same_on_any_number_of_replicas_and_after_a_resume(spoiled):
    examples, skipped = loaded(spoiled, skip=True), Skipped()
    one, two = batches(examples, skipped=skipped), batches(examples, 2)
    resumed = batches(examples, first_step=3)
    for step, batch in enumerate(one):
        expected, attempt = planned(step), 0
        while set(expected) & set(BAD):
            attempt += 1
            expected = np.where(np.isin(expected, BAD), planned(step, attempt), expected)
        np.testing.assert_array_equal(batch["example_id"], expected)
        assert (batch["image"] == 10 * expected[:, None, None, None]).all()
        assert not batch["last"].any()
        for other in (two[step], resumed[step - 3] if step >= 3 else batch):
            for key in batch:
                np.testing.assert_array_equal(batch[key], other[key])
    assert sorted(skipped.pop()) == list(BAD)
    assert (skipped.pop(), len(skipped)) == ([], 2)


def test_substitutes_are_other_examples_in_every_attempt():
    orders = {tuple(planned(0, attempt)) for attempt in range(9)}
    assert len(orders) == 9


def test_substitutes_of_seeds_that_are_equal_modulo_256_are_others():
    where = tf.constant(0, tf.int64), tf.range(64, dtype=tf.int64), tf.constant(1, tf.int64)
    sizes = {"num_examples": 1000, "batch_size": 64}
    drawn = {example_order.substitute_ids(*where, **sizes, seed=seed).numpy().tobytes() for seed in (3, 259, 2**31 + 3)}
    assert len(drawn) == 3


@pytest.mark.parametrize(("bad", "what"), [(4, "cannot be decoded"), (7, r"holds value 4, which is in no class")])
def test_an_example_that_is_looked_at_is_named_with_its_file(spoiled, bad, what):
    examples = load_examples("handmade_pets", "train", 32, str(spoiled), cache="none")
    name = rf"handmade_pets, split train, example {bad} \(train/{bad}, record \d of .*tfrecord-0000\d-of-00002\)"
    with pytest.raises(DataError, match=rf"{name}: .*{what}.*python -m petseg.data.check") as caught:
        examples.images[bad]
    assert "\n" not in str(caught.value)
    assert examples.images[3].mean() == 30


def test_an_evaluation_stops_whatever_the_flag_says(spoiled):
    examples = loaded(spoiled, skip=True)
    strategy = replicas(2)
    dataset, _ = input_pipeline.distributed_evaluation_batches(strategy, examples, batch_size=4)
    named = pytest.raises(DataError, match=r"split train, example 4 .*cannot be decoded")
    with named, input_pipeline.naming_lost_files(examples):
        list(dataset)


def test_where_it_is_skipped_an_example_is_grey_and_in_no_class(spoiled):
    examples = loaded(spoiled, skip=True)
    assert (examples.images[3:6].mean(axis=(1, 2, 3)) == [30, 128, 50]).all()
    assert (examples.masks[np.array([7, 8])].max(axis=(1, 2, 3)) == [255, 1]).all()


def test_few_may_be_skipped():
    assert (Skipped.most(100), Skipped.most(100_000)) == (10, 1000)
