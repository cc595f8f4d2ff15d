"""N replicas train as one: each claim of the README about several replicas, on virtual CPUs."""

import numpy as np
import pytest
import tensorflow as tf
import two_convolutions
from conftest import load_examples, random_examples
from trainers import make_trainer

from petseg.config import AugmentationConfig, LossConfig
from petseg.training import augmentation
from petseg.training.losses import Loss

SIZE, BATCH, STEPS = 64, 8, 20


@pytest.fixture(scope="module")
def pets(data_dir):
    return load_examples("synthetic_pets", "train", SIZE, str(data_dir))


def per_replica(strategy, variable):
    """The values that the replicas hold of a Keras variable."""
    return [value.numpy() for value in strategy.experimental_local_results(variable.value)]


@pytest.fixture(
    scope="module",
    params=[
        ((1, 4), "pixels", {"network": two_convolutions.synchronized}, 1),
        pytest.param(((1, 4), "pixels", {"encoder": "tiny", "decoder": "pix2pix"}, 4), marks=pytest.mark.slow),
        pytest.param(((1, 2), "weights", {"encoder": "mobilenet_v2", "decoder": "light"}, 4), marks=pytest.mark.slow),
    ],
    ids=["two convolutions", "tiny", "mobilenet_v2"],
)
def runs(request, pets):
    """Per number of replicas: the losses of 20 steps, the first gradient, the final moving statistics."""
    found, (numbers, normalization, network, batch_norms) = {}, request.param
    for number in numbers:
        trainer, strategy, batches = make_trainer(
            number,
            examples=pets,
            batch_size=BATCH,
            calibrated_on=pets.images,
            class_weights=(0.4, 0.4, 0.2),
            loss=Loss(LossConfig(loss_normalization=normalization)),
            **network,
        )
        losses = []
        for step in range(STEPS):
            trainer.run(batches, 1)
            losses.append(trainer.pop_measurements().scalars["loss"])
            if step == 0:  # the first momentum is the gradient times the learning rate
                slots = [variable for variable in trainer.optimizer.variables if "momentum" in variable.path]
                gradient = np.concatenate([per_replica(strategy, slot)[0].reshape(-1) for slot in slots])
        moving = [variable for variable in trainer.model.variables if "batch_norm" in variable.path]
        assert len(gradient) > 300_000 or batch_norms == 1
        assert len([v for v in moving if "moving" in v.path]) == 2 * batch_norms
        found[number] = losses, gradient, [per_replica(strategy, v) for v in moving if "moving" in v.path]
    return found


def test_losses_of_20_steps_are_those_of_one_replica(runs):
    losses = runs[1][0]
    for of_several, _, _ in runs.values():
        np.testing.assert_allclose(of_several, losses, rtol=1e-5)
    assert losses[-1] < losses[0]


def test_gradients_are_those_of_one_replica(runs):
    one = runs[1][1]
    assert np.linalg.norm(one) > 0
    for _, many, _ in runs.values():
        assert np.linalg.norm(many - one) <= 1e-5 * np.linalg.norm(one)


def test_moving_statistics_are_equal_on_every_replica(runs):
    for number, (_, _, statistics) in runs.items():
        for values, (alone,) in zip(statistics, runs[1][2], strict=True):
            assert len(values) == number
            for value in values[1:]:
                np.testing.assert_array_equal(value, values[0])
            assert np.linalg.norm(values[0] - alone) <= 2e-4 * np.linalg.norm(alone)


@pytest.mark.slow
def test_without_synchronised_batch_norm_replicas_stay_copies_also_under_xla(pets):
    losses = []
    for jit_compile in (False, True):
        trainer, strategy, batches = make_trainer(
            2, examples=pets, batch_size=BATCH, sync_batch_norm=False, jit_compile=jit_compile
        )
        trainer.run(batches, 3)
        losses.append(trainer.pop_measurements().scalars["loss"])
        moving = [v for v in trainer.model.variables if "batch_norm" in v.path and "moving" in v.path]
        assert len(moving) == 8
        for variable in moving:
            first, second = per_replica(strategy, variable)
            np.testing.assert_array_equal(first, second)
            assert np.ptp(first) > 0
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def collective_operations(trainer, batches):
    graph = trainer.loop.graph(batches).as_graph_def()
    nodes = [node.op for function in graph.library.function for node in function.node_def]
    return sum(op.startswith("CollectiveReduce") for op in nodes)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_graph_holds_one_all_reduce_a_step(micro_batches):
    trainer, _, batches = make_trainer(
        2, examples=random_examples(8), batch_size=8, sync_batch_norm=False, micro_batches=micro_batches
    )
    assert collective_operations(trainer, batches) == 2  # one of each replica


@pytest.mark.slow
def test_micro_batches_on_two_replicas_are_those_on_one():
    losses = []
    for number in (1, 2):
        trainer, _, batches = make_trainer(number, examples=random_examples(16), batch_size=8, micro_batches=2)
        sums = []
        for _ in range(4):
            trainer.run(batches, 1)
            sums.append(trainer.pop_measurements().scalars["loss"])
        losses.append(sums)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.slow
def test_clipping_uses_the_norm_of_the_reduced_gradient():
    norms, updates = [], []
    for number in (1, 3):
        trainer, strategy, batches = make_trainer(
            number, examples=random_examples(8), batch_size=6, class_weights=(90.0, 90.0, 20.0), clip_norm=1.0,
            learning_rate=1.0,
        )  # fmt: skip
        trainer.run(batches, 1)
        norms.append(trainer.pop_measurements().scalars["gradient_norm"])
        slots = [variable for variable in trainer.optimizer.variables if "momentum" in variable.path]
        update = np.concatenate([per_replica(strategy, slot)[0].reshape(-1) for slot in slots])
        updates.append(float(np.linalg.norm(update.astype(np.float64))))
    assert min(norms) > 2
    assert max(updates) <= 1 + 1e-6
    np.testing.assert_allclose(norms, norms[0], rtol=1e-5)
    np.testing.assert_allclose(updates, updates[0], rtol=1e-6)


def test_an_overflow_on_any_replica_leaves_everything_as_it_was_on_all():
    batch_size, poisoned = 6, tf.Variable(-1, dtype=tf.int64)

    def augment(images, masks, step, positions):
        hit = positions // 2 == poisoned
        return tf.where(hit[:, None, None, None], np.float32("inf"), images), masks

    trainer, strategy, batches = make_trainer(
        3, examples=random_examples(12), batch_size=batch_size, precision="mixed_float16", augment=augment,
        optimizer="adam", initial_loss_scale=1024.0, network=two_convolutions.synchronized,
    )  # fmt: skip

    def state():
        return [per_replica(strategy, v) for v in (*trainer.model.variables, *trainer.optimizer.variables)
                if "learning_rate" not in v.path]  # fmt: skip

    trainer.run(batches, 1)
    assert trainer.pop_measurements().scalars["skipped_steps"] == 0
    for k in range(3):
        before, iterations = state(), int(trainer.optimizer.iterations.numpy())
        poisoned.assign(k)
        trainer.run(batches, 1)
        sums = trainer.pop_measurements()
        assert sums.scalars["loss_scale"] == 1024.0 / 2 ** (k + 1)
        assert sums.scalars["skipped_steps"] == k + 1
        assert np.isnan(sums.scalars["loss"])
        assert int(trainer.step.numpy()) == 2 + k
        assert int(trainer.optimizer.iterations.numpy()) == iterations == 1
        for old, new in zip(before, state(), strict=True):
            np.testing.assert_array_equal(old, new)
    assert int(trainer.nonfinite_step.numpy()) == -1
    poisoned.assign(-1)
    trainer.run(batches, 1)
    assert int(trainer.optimizer.iterations.numpy()) == 2
    assert np.isfinite(trainer.pop_measurements().scalars["loss"])
    assert any((np.asarray(old) != np.asarray(new)).any() for old, new in zip(before, state(), strict=True))


@pytest.mark.slow
def test_augmentation_dice_and_averaged_weights_do_not_depend_on_the_number_of_replicas(pets):
    """Augmentation, Dice loss and averaged weights: sums are reduced and all replicas decide alike."""
    found = {}
    for number in (1, 2):
        trainer, strategy, batches = make_trainer(
            number,
            examples=pets,
            batch_size=BATCH,
            calibrated_on=pets.images,
            class_weights=(0.4, 0.4, 0.2),
            loss=Loss(LossConfig(loss="cross_entropy_dice", label_smoothing=0.1, loss_normalization="weights")),
            augment=augmentation.build_augmentation(AugmentationConfig(augment="strong"), seed=0, batch_size=BATCH),
            ema_decay=0.5,
            weight_decay=0.1,
            clip_norm=1.0,
        )
        trainer.run(batches, 5)
        averages = [[v.numpy() for v in strategy.experimental_local_results(a)] for a in trainer.average.variables]
        for first, *others in averages:
            for other in others:
                np.testing.assert_array_equal(first, other)
        found[number] = trainer.pop_measurements(), np.concatenate([first.reshape(-1) for first, *_ in averages])
    assert found[2][0].scalars["loss"] == pytest.approx(found[1][0].scalars["loss"], rel=1e-5)
    np.testing.assert_array_equal(found[2][0].confusion_matrix.sum(), found[1][0].confusion_matrix.sum())
    np.testing.assert_allclose(found[2][1], found[1][1], atol=2e-5)
