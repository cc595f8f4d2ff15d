import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_examples

from petseg import augmentation, optimization, sample_weights, unet
from petseg.data import input_pipeline
from petseg.trainer import Trainer

SIZE, BATCH = 32, 4


def make_trainer(devices=1, *, class_weights=None, loss_normalization="pixels", learning_rate=1e-3, optimizer="adam"):
    strategy = (
        tf.distribute.OneDeviceStrategy("/cpu:0")
        if devices == 1
        else tf.distribute.MirroredStrategy([f"cpu:{i}" for i in range(devices)])
    )
    keras.utils.set_random_seed(0)
    with strategy.scope():
        encoder = unet.build_encoder(image_size=SIZE, alpha=0.35)
        model = unet.build_unet(
            image_size=SIZE,
            num_classes=3,
            encoder=encoder,
            train_encoder=False,
            input_scaling="unit",
            sync_batch_norm=devices > 1,
        )
        unet.calibrate_batch_norm(encoder, tf.random.stateless_uniform([16, SIZE, SIZE, 3], seed=[0, 0]))
        trainer = Trainer(
            strategy,
            model,
            optimization.make_optimizer(optimizer, model.trainable_variables),
            optimization.learning_rate_schedule("constant", learning_rate, 100),
            augmentation.augmentation("flip", seed=0, batch_size=BATCH),
            batch_size=BATCH,
            class_weights=class_weights,
            loss_normalization=loss_normalization,
        )
    return trainer, strategy


def batches(strategy, examples, steps=100):
    return iter(
        input_pipeline.distributed_training_batches(
            strategy, examples, batch_size=BATCH, seed=0, first_step=0, last_step=steps
        )
    )


def learnable_examples():
    """Masks that can be read off the image: bright is pet, dark is background."""
    examples = random_examples(8, SIZE)
    examples.masks[:] = 1
    examples.images[:] = 20
    for i in range(8):
        examples.masks[i, i : i + 16, :16] = 0
        examples.images[i, i : i + 16, :16] = 220
    return examples


def test_the_loop_learns_and_is_traced_once():
    trainer, strategy = make_trainer(learning_rate=3e-3)
    iterator = batches(strategy, learnable_examples())
    trainer.run(iterator, 0)
    assert int(trainer.step) == 0
    trainer.run(iterator, 1)
    first = trainer.read_sums()
    for steps in (5, 20, 3):
        trainer.run(iterator, steps)
    trainer.read_sums()
    trainer.run(iterator, 2)
    last = trainer.read_sums()
    assert trainer.traces == 1
    assert int(trainer.step) == 31
    assert first.steps == 1
    assert last.steps == 2
    assert last.loss < first.loss / 3
    assert last.confusion_matrix.sum() == 2 * BATCH * SIZE * SIZE
    assert np.trace(last.confusion_matrix) / last.confusion_matrix.sum() > 0.9


@pytest.mark.parametrize("loss_normalization", ["pixels", "weights"])
def test_the_loss_is_divided_once_by_what_was_asked(loss_normalization):
    class_weights = (0.4, 0.4, 0.2)
    trainer, strategy = make_trainer(class_weights=class_weights, loss_normalization=loss_normalization)
    examples = random_examples(BATCH, SIZE)
    examples.masks[0, :10] = sample_weights.IGNORED
    images, masks = examples.images.astype(np.float32), examples.masks
    draw = tf.random.stateless_uniform([BATCH], seed=[0, 0]).numpy()
    ids = input_pipeline.example_ids(
        tf.constant(0, tf.int64), tf.range(BATCH, dtype=tf.int64), num_examples=BATCH, batch_size=BATCH, seed=0
    ).numpy()
    order = [(i, draw[position] < 0.5) for position, i in enumerate(ids)]
    images = np.stack([images[i][:, ::-1] if flipped else images[i] for i, flipped in order])
    masks = np.stack([masks[i][:, ::-1] if flipped else masks[i] for i, flipped in order])[..., 0]
    log_probabilities = tf.nn.log_softmax(trainer.model(images, training=True)).numpy()
    valid = masks != sample_weights.IGNORED
    weights = np.where(valid, np.array([*class_weights, 0])[np.minimum(masks, 3)], 0)
    labels = np.where(valid, masks, 0)
    per_pixel = -np.take_along_axis(log_probabilities, labels[..., None].astype(int), -1)[..., 0]
    divisor = valid.sum() if loss_normalization == "pixels" else weights.sum()
    trainer.run(batches(strategy, examples), 1)
    assert trainer.read_sums().loss == pytest.approx((weights * per_pixel).sum() / divisor, rel=1e-5)


@pytest.mark.parametrize("loss_normalization", ["pixels", "weights"])
def test_two_replicas_compute_what_one_computes(loss_normalization):
    examples = random_examples(12, SIZE)
    examples.masks[3, :9] = sample_weights.IGNORED
    losses, matrices = [], []
    for devices in (1, 2):
        trainer, strategy = make_trainer(
            devices, class_weights=(0.4, 0.4, 0.2), loss_normalization=loss_normalization, optimizer="sgd"
        )
        iterator = batches(strategy, examples)
        sums = []
        for _ in range(4):
            trainer.run(iterator, 1)
            sums.append(trainer.read_sums())
        losses.append([part.loss for part in sums])
        matrices.append(sums[0].confusion_matrix)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert matrices[0].sum() == matrices[1].sum()


def test_the_first_step_that_is_not_finite_is_remembered():
    trainer, strategy = make_trainer(learning_rate=1e30, optimizer="sgd")
    trainer.run(batches(strategy, random_examples(8, SIZE)), 10)
    assert 0 < int(trainer.nonfinite_step) < 5
    assert int(trainer.step) == 10


def test_the_learning_rate_follows_the_clock():
    schedule = optimization.learning_rate_schedule("cosine", 0.5, 100)
    values = [float(schedule(tf.constant(step, tf.int64))) for step in (0, 50, 100)]
    np.testing.assert_allclose(values, [0.5, 0.25, 0.0], atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_are_built(name):
    variable = keras.Variable([1.0, 2.0])
    optimizer = optimization.make_optimizer(name, [variable])
    assert optimizer.built
    before = variable.numpy().copy()
    optimizer.apply_gradients([(tf.constant([1.0, -1.0]), variable)])
    assert ((variable.numpy() - before) * [1, -1] < 0).all()
