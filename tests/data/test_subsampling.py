"""A sample of a split: the same examples wherever they lie, and a function of the seed alone."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import NUM_TEST, data_config, load_examples, random_examples, replicas

from petseg.data import input_pipeline, loading, subsampling


def test_positions_are_drawn_without_replacement_by_the_seed():
    found = {seed: subsampling.positions(1_000_000, 1000, seed) for seed in (0, 1, 256)}
    for ids in found.values():
        assert (np.diff(ids) > 0).all()  # rising, so none is there twice
        assert ids[0] >= 0
        assert ids[-1] < 1_000_000
        # The mean of 1,000 draws has the standard error 1e6 / sqrt(12 * 1000): five of them.
        assert abs(ids.mean() - 5e5) < 5 * 1e6 / np.sqrt(12_000)
    np.testing.assert_array_equal(found[0], subsampling.positions(1_000_000, 1000, 0))
    assert len({tuple(ids) for ids in found.values()}) == 3
    np.testing.assert_array_equal(subsampling.positions(7, 7, 3), np.arange(7))


def test_over_seeds_each_example_is_drawn_as_often_as_any_other():
    drawn = np.bincount(np.concatenate([subsampling.positions(12, 3, seed) for seed in range(400)]), minlength=12)
    # Binomial, of 400 with chance 1/4: five standard deviations of each count.
    assert np.abs(drawn - 100).max() < 5 * np.sqrt(400 * 3 / 16)


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_a_sample_holds_the_same_examples_in_every_cache(data_dir, array_record_dir, tmp_path, cache):
    whole = load_examples("synthetic_pets", "test", 32, data_dir)
    ids = subsampling.positions(NUM_TEST, 4, seed=3)
    config = {"cache": cache, "cache_dir": str(tmp_path)}
    examples = subsampling.subsample(load_examples("synthetic_pets", "test", 32, array_record_dir, **config), 4, seed=3)
    assert len(examples) == 4
    np.testing.assert_array_equal(examples.read(np.arange(4))[0], whole.images[ids])
    np.testing.assert_array_equal(examples.read([2, 0])[1], whole.masks[ids[[2, 0]]])
    np.testing.assert_array_equal(np.concatenate([*examples.masks_to_count()]), whole.masks[ids])
    assert examples.sampling == {"seed": 3, "of": NUM_TEST}
    assert examples.names[1] == whole.names[ids[1]]
    assert list(examples.names) == examples.names_of(range(4)) == [whole.names[i] for i in ids]
    assert list(examples.groups) == list(whole.groups)
    assert list(examples.groups["label"]) == [whole.groups["label"][i] for i in ids]
    assert examples.origin == f"{whole.origin}, 4 of {NUM_TEST} by seed 3"
    for devices in (1, 2):
        batches, _ = input_pipeline.distributed_evaluation_batches(replicas(devices), examples, batch_size=4)
        parts = [
            part["image"].numpy()[part["valid"].numpy()]
            for batch in batches
            for part in zip_parts(batch, devices)
        ]  # fmt: skip
        np.testing.assert_array_equal(np.concatenate(parts), whole.images[ids])


def zip_parts(batch, devices):
    """A dictionary for each replica."""
    if devices == 1:
        return [batch]
    return [{name: values.values[i] for name, values in batch.items()} for i in range(devices)]


def test_a_sample_of_zero_or_too_many_examples_is_the_whole_split():
    examples = random_examples(5)
    assert all(subsampling.subsample(examples, count, 0) is examples for count in (0, 5, 6))


def test_samples_are_reproducible_and_differ_by_seed_and_size():
    examples = random_examples(30)
    first, again, other = (subsampling.subsample(examples, 5, seed).names for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first != subsampling.subsample(examples, 6, 1).names


def test_elements_at_positions_are_selected_and_nothing_after_the_last_is_read():
    def read(i):
        with tf.control_dependencies([tf.debugging.assert_less(i, tf.constant(8, tf.int64))]):
            return tf.identity(i) * 10

    numbers = tf.data.Dataset.range(100).map(read)
    assert list(subsampling.elements_at(numbers, np.array([0, 3, 4, 7])).as_numpy_iterator()) == [0, 30, 40, 70]


def test_native_pairs_are_those_of_the_sample(data_dir):
    config, ids = data_config("synthetic_pets", 32, data_dir), np.array([1, 2, 8])
    whole = list(loading.native_pairs(config, "test"))
    for i, (image, mask) in zip(ids, loading.native_pairs(config, "test", ids=ids), strict=True):
        np.testing.assert_array_equal(image, whole[i][0])
        np.testing.assert_array_equal(mask, whole[i][1])
