"""Bad examples that are found when they are read: what the input pipeline makes of them."""

import io

import numpy as np
import pytest
import tensorflow as tf
from conftest import as_array_records, data_config, load_examples, replicas
from test_loading import picture, png, write_data_set

from petseg.classes import PETS
from petseg.data import example_order, input_pipeline, loading
from petseg.data.bad_example_log import BadExampleLog
from petseg.errors import DataError

COUNT, BAD = 12, (4, 7)


def mask(value=2):
    return png(np.full((40, 30), value, np.uint8))


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """A folder with a data set in two files; one picture is no picture, and one mask has a value in no class."""
    examples = [(png(np.full((40, 30, 3), 10 * i, np.uint8)), mask()) for i in range(COUNT)]
    examples[BAD[0]] = (io.BytesIO(b"this is no image"), mask())
    examples[BAD[1]] = (png(picture()), mask(4))
    folder = tmp_path_factory.mktemp("spoiled")
    write_data_set(folder / "data", examples, shards=2)
    return as_array_records("handmade_pets", folder / "data", folder / "converted")


def loaded(folder, policy):
    config = data_config("handmade_pets", 32, folder, cache="none", on_bad_example=policy)
    return loading.load(config, "train", PETS, for_training=True)


def batches(examples, devices=1, *, first_step=0, last_step=6, log=None):
    """Per step, the parts of all replicas, concatenated."""
    strategy = replicas(devices)
    dataset = input_pipeline.distributed_training_batches(
        strategy, examples, batch_size=4, seed=3, first_step=first_step, last_step=last_step, bad_examples=log
    )
    return [
        {key: np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)])
         for key, value in batch.items()}
        for batch in dataset
    ]  # fmt: skip


def planned(step):
    """The example ids of a step."""
    step, positions = tf.constant(step, tf.int64), tf.range(4, dtype=tf.int64)
    return example_order.example_ids(step, positions, num_examples=COUNT, batch_size=4, seed=3).numpy()


@pytest.mark.parametrize("devices", [1, 2])
def test_a_bad_example_is_a_grey_image_without_a_labelled_pixel_and_is_recorded_with_its_step(spoiled, devices):
    log = BadExampleLog()
    found = batches(loaded(spoiled, "stop"), devices, log=log)
    for step, batch in enumerate(found):
        assert set(batch) == {"image", "mask", "example_id", "position"}
        np.testing.assert_array_equal(batch["example_id"], planned(step))
        good = ~np.isin(batch["example_id"], BAD)
        assert (batch["image"][good] == 10 * batch["example_id"][good][:, None, None, None]).all()
        assert (batch["mask"][good] == 1).all()
        assert (batch["image"][~good] == 128).all()
        assert (batch["mask"][~good] == 255).all()
    expected = [(step, i) for step in range(6) for i in sorted(planned(step)) if i in BAD]
    assert len(expected) == 4  # two epochs
    early = [entry for entry in expected if entry[0] < 3]
    assert log.pop(3) == early
    assert log.pop(3) == []
    assert log.pop(6) == expected[len(early) :]


def test_batches_are_the_same_on_replicas_and_after_a_resume(spoiled):
    examples = loaded(spoiled, "ignore")
    one, two, resumed = batches(examples), batches(examples, 2), batches(examples, first_step=3)
    for step, batch in enumerate(one):
        for other in (two[step], resumed[step - 3] if step >= 3 else batch):
            for key in batch:
                np.testing.assert_array_equal(batch[key], other[key])


@pytest.mark.parametrize(("bad", "what"), [(4, "cannot be decoded"), (7, r"holds value 4 in no class")])
def test_a_bad_example_that_is_read_is_named_with_its_file(spoiled, bad, what):
    examples = load_examples("handmade_pets", "train", 32, str(spoiled), cache="none")
    name = rf"handmade_pets, split train, example {bad} \(train/{bad}, record \d of .*array_record-0000\d-of-00002\)"
    with pytest.raises(DataError, match=rf"{name}: .*{what}.*python -m petseg.data.check") as caught:
        examples.read([3, bad])
    assert "\n" not in str(caught.value)
    assert examples.read([3])[0].mean() == 30


def test_an_evaluation_stops_at_a_bad_example_with_any_flag(spoiled):
    examples, log = loaded(spoiled, "ignore"), BadExampleLog()
    dataset, _ = input_pipeline.distributed_evaluation_batches(replicas(2), examples, batch_size=4, bad_examples=log)
    list(dataset)
    with pytest.raises(DataError, match=r"split train, example 4 .*cannot be decoded"):
        log.raise_first(examples)


def test_where_bad_examples_are_ignored_they_can_be_read(spoiled):
    images, masks = loaded(spoiled, "ignore").read([3, 4, 5, 7, 8])
    assert images[:3].mean(axis=(1, 2, 3)).tolist() == [30, 128, 50]
    assert masks[3:].max(axis=(1, 2, 3)).tolist() == [255, 1]
