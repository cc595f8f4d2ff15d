import numpy as np
import pytest
import tensorflow as tf
from conftest import random_examples, replicas
from hypothesis import given, settings, strategies as st

from petseg.data import example_order, input_pipeline
from petseg.data.examples import BatchPosition, Subset
from petseg.data.random_crops import RandomCrops
from petseg.errors import ConfigError, DataError


def ids_of_step(step, *, num_examples, batch_size, seed, **options):
    positions = tf.range(batch_size, dtype=tf.int64)
    step = tf.constant(step, tf.int64)
    return example_order.example_ids(
        step, positions, num_examples=num_examples, batch_size=batch_size, seed=seed, **options
    ).numpy()


def orders_of_epochs(epochs, *, num_examples, seed, **options):
    """int64 [epochs, num_examples], each a permutation."""
    positions = tf.range(num_examples, dtype=tf.int64)
    order = {"num_examples": num_examples, "batch_size": num_examples, "seed": seed, **options}
    steps = tf.data.Dataset.range(epochs)
    return np.stack([*steps.map(lambda s: example_order.example_ids(s, positions, **order)).as_numpy_iterator()])


@settings(max_examples=25)
@given(num_examples=st.integers(1, 60), data=st.data(), epoch=st.integers(0, 5), seed=st.integers(0, 2**31))
def test_an_epoch_sees_no_example_twice(num_examples, data, epoch, seed):
    batch_size = data.draw(st.integers(1, num_examples))
    per_epoch = num_examples // batch_size
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    ids = [ids_of_step(step, num_examples=num_examples, batch_size=batch_size, seed=seed) for step in steps]
    seen = np.concatenate(ids)
    assert len(set(seen.tolist())) == len(seen) == per_epoch * batch_size
    assert set(seen.tolist()) <= set(range(num_examples))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        ids_of_step(step, num_examples=50, batch_size=50, seed=seed).tolist() for step in (0, 1) for seed in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_no_order_repeats_in_hundreds_of_epochs():
    orders = orders_of_epochs(800, num_examples=30, seed=5)
    assert len({order.tobytes() for order in orders}) == 800


def test_seeds_that_are_equal_modulo_a_power_of_2_have_orders_of_their_own():
    seeds = [0, 2**8, 2**10, 2**16, 2**24, 2**31, 2**8 + 2**16, 2**32 - 1, 2**32 - 1 - 2**8]
    orders = [orders_of_epochs(2, num_examples=30, seed=seed) for seed in seeds]
    assert len({order.tobytes() for pair in orders for order in pair}) == 2 * len(seeds)


def test_every_example_is_at_every_position_equally_often():
    epochs, count = 600, 5
    orders = orders_of_epochs(epochs, num_examples=count, seed=1)
    times = np.stack([(orders == i).sum(axis=0) for i in range(count)])
    deviation = np.sqrt(epochs / count * (1 - 1 / count))
    assert np.abs(times - epochs / count).max() < 5 * deviation


def test_earlier_order_versions_are_unchanged():
    size = {"num_examples": 20, "batch_size": 8, "seed": 3}
    assert [ids_of_step(step, **size, version=1).tolist() for step in (0, 1, 2)] == [
        [12, 10, 2, 13, 1, 3, 17, 8],
        [6, 19, 0, 18, 15, 9, 7, 11],
        [10, 12, 5, 1, 13, 11, 16, 4],
    ]
    old = orders_of_epochs(257, num_examples=30, seed=259, version=1)
    np.testing.assert_array_equal(old[0], old[256])
    np.testing.assert_array_equal(old, orders_of_epochs(257, num_examples=30, seed=3, version=1))


def test_batches_follow_the_requested_order_version():
    examples, options = random_examples(20), {"batch_size": 8, "seed": 3}
    context = tf.distribute.InputContext()
    found = {}
    for version in (1, 2, None):
        dataset = input_pipeline.training_batches_of_host(
            context, examples, **options, first_step=0, last_step=3, order_version=version
        )
        found[version] = [batch["example_id"].numpy().tolist() for batch in dataset]
        at = BatchPosition(tf.constant(2, tf.int64), tf.range(8, dtype=tf.int64), **options, order_version=version)
        part = input_pipeline.part_of_batch(examples, at)
        assert part["example_id"].numpy().tolist() == found[version][2]
        assert found[version] == [
            ids_of_step(step, num_examples=20, **options, version=version).tolist() for step in range(3)
        ]
    assert found[1] != found[2] == found[None]


def test_batches_of_examples_that_were_decoded_before_training_are_not_checked_again():
    examples, at = random_examples(8), BatchPosition(tf.constant(0, tf.int64), tf.range(4, dtype=tf.int64), 4, 0)
    half = Subset(examples, np.arange(4))
    crops = RandomCrops(examples, (16, 16), np.full([8, 2], 32, np.int32))
    for checked in (examples, half, crops):
        assert checked.checked
        assert "usable" not in input_pipeline.part_of_batch(checked, at)
    examples.checked = False
    assert "usable" in input_pipeline.part_of_batch(Subset(examples, np.arange(4)), at)


def batches(strategy, examples, *, first_step, last_step, batch_size=8, seed=3):
    """Per step, what all replicas get, put together in the order of the replicas."""
    dataset = input_pipeline.distributed_training_batches(
        strategy, examples, batch_size=batch_size, seed=seed, first_step=first_step, last_step=last_step
    )
    return [
        {key: np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)])
         for key, value in batch.items()}
        for batch in dataset
    ]  # fmt: skip


def test_batches_hold_the_examples_of_their_step():
    examples = random_examples(20)
    for step, batch in enumerate(batches(tf.distribute.get_strategy(), examples, first_step=0, last_step=5)):
        ids = ids_of_step(step, num_examples=20, batch_size=8, seed=3)
        np.testing.assert_array_equal(batch["example_id"], ids)
        np.testing.assert_array_equal(batch["image"], examples.images[ids])
        np.testing.assert_array_equal(batch["mask"], examples.masks[ids])
        assert batch["image"].dtype == batch["mask"].dtype == np.uint8


@pytest.mark.parametrize("first_step", [0, 3])
def test_replicas_share_the_same_global_batches(first_step):
    examples = random_examples(20)
    one, *others = (batches(replicas(n), examples, first_step=first_step, last_step=5) for n in (1, 2, 4))
    assert len(one) == 5 - first_step
    for other in others:
        for a, b in zip(one, other, strict=True):
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize(("workers", "replicas_of_each"), [(1, 1), (2, 1), (2, 2), (4, 1), (1, 4)])
def test_each_worker_reads_its_own_share_of_the_same_epoch(workers, replicas_of_each):
    examples, seen = random_examples(21), []
    for worker in range(workers):
        context = tf.distribute.InputContext(workers, worker, workers * replicas_of_each)
        dataset = input_pipeline.training_batches_of_host(
            context, examples, batch_size=8, seed=3, first_step=2, last_step=4
        )
        parts = [batch["example_id"].numpy() for batch in dataset]
        assert {len(part) for part in parts} == {8 // (workers * replicas_of_each)}
        seen.append(np.concatenate(parts).reshape(2, -1))
    whole = np.concatenate([ids_of_step(step, num_examples=21, batch_size=8, seed=3) for step in (2, 3)])
    np.testing.assert_array_equal(np.concatenate(seen, axis=1).reshape(-1), whole)
    assert len(set(whole)) == 16


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
@pytest.mark.parametrize(("count", "batch_size"), [(10, 1), (10, 3), (10, 4), (10, 10), (10, 64), (1, 8)])
def test_evaluation_sees_every_example_once(devices, count, batch_size):
    strategy = replicas(devices)
    dataset, steps = input_pipeline.distributed_evaluation_batches(
        strategy, random_examples(count), batch_size=batch_size
    )
    seen, elements, filled_up = [], 0, 0
    for batch in dataset:
        elements += 1
        for ids, valid in zip(
            strategy.experimental_local_results(batch["example_id"]),
            strategy.experimental_local_results(batch["valid"]),
            strict=True,
        ):
            seen += ids.numpy()[valid.numpy()].tolist()
            filled_up += np.sum(~valid.numpy())
    assert sorted(seen) == list(range(count))
    assert elements == steps
    assert filled_up < elements * devices


def test_a_batch_larger_than_the_split_is_refused():
    with pytest.raises(DataError, match=r"--batch_size=8: must be at most 5, the number of training examples"):
        batches(tf.distribute.get_strategy(), random_examples(5), first_step=0, last_step=1)


def test_a_batch_size_that_the_replicas_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"--batch_size=7: must be a multiple of the 2 replicas"):
        batches(replicas(2), random_examples(9), first_step=0, last_step=1, batch_size=7)
