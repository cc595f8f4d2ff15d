import re

import numpy as np
import pytest
import tensorflow as tf
import two_convolutions
from conftest import random_examples
from trainers import make_trainer

from petseg.classes import IGNORED
from petseg.config import AugmentationConfig, LossConfig
from petseg.data import example_order
from petseg.errors import ConfigError
from petseg.training import augmentation
from petseg.training.losses import Loss

SIZE, BATCH = 32, 4


def small_trainer(number=1, **options):
    """A trainer of the smallest network, for tests in which any will do."""
    return make_trainer(number, network=two_convolutions.synchronized, **options)


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
    trainer, _, iterator = make_trainer(examples=learnable_examples(), optimizer="adam", learning_rate=3e-3)
    trainer.compile(iterator)
    assert int(trainer.step) == 0
    trainer.run(iterator, 1)
    first = trainer.pop_measurements()
    for steps in (5, 20, 3):
        trainer.run(iterator, steps)
    trainer.pop_measurements()
    trainer.run(iterator, 2)
    last = trainer.pop_measurements()
    assert trainer.loop.traces == 1
    assert int(trainer.step) == 31
    assert first.steps == 1
    assert last.steps == 2
    assert last.scalars["loss"] < first.scalars["loss"] / 3
    assert last.confusion_matrix.sum() == 2 * BATCH * SIZE * SIZE
    assert np.trace(last.confusion_matrix) / last.confusion_matrix.sum() > 0.9


def test_a_forward_pass_that_returns_something_else_is_refused_in_one_line(monkeypatch):
    trainer, _, batches = small_trainer(examples=random_examples(BATCH, SIZE))
    forward = trainer.forward
    for change, found in (
        (lambda logits, *sums: logits, "float32 [4, 32, 32, 3]"),
        (lambda logits, loss, _: (logits, loss), "(float32 [4, 32, 32, 3], float32 [])"),
        (lambda logits, *sums: (*sums, logits), "(float32 [], float32 [], float32 [4, 32, 32, 3])"),
        (lambda logits, *sums: (logits[..., :2], *sums), "(float32 [4, 32, 32, 2], float32 [], float32 [])"),
        (lambda logits, *_: (logits, logits[..., 0], 1), "(float32 [4, 32, 32, 3], float32 [4, 32, 32], int)"),
        (lambda *_: None, "NoneType"),
    ):
        monkeypatch.setattr(trainer, "forward", lambda *batch, change=change: change(*forward(*batch)))
        message = re.escape(f"forward returned {found}; must be (logits, loss, denominator): float32 [b, H, W, 3] and ")
        with pytest.raises(ConfigError, match=f"^--step=.*: {message}.*$"):
            trainer.compile(batches)
    pixels = BATCH * SIZE * SIZE
    monkeypatch.setattr(trainer, "forward", lambda *batch: (*forward(*batch)[:2], pixels))  # a number will do
    trainer.compile(batches)


@pytest.mark.parametrize("loss_normalization", ["pixels", "weights"])
def test_the_loss_is_divided_once_by_pixels_or_weights(loss_normalization):
    class_weights = (0.4, 0.4, 0.2)
    examples = random_examples(BATCH, SIZE)
    examples.masks[0, :10] = IGNORED
    trainer, _, batches = small_trainer(
        examples=examples, class_weights=class_weights, loss=Loss(LossConfig(loss_normalization=loss_normalization))
    )
    images, masks = examples.images.astype(np.float32), examples.masks
    positions = tf.range(BATCH, dtype=tf.int64)
    ids = example_order.example_ids(
        tf.constant(0, tf.int64), positions, num_examples=BATCH, batch_size=BATCH, seed=0
    ).numpy()
    augment = augmentation.build_augmentation(AugmentationConfig(augment="flip"), seed=0, batch_size=BATCH)
    images, masks = augment(tf.constant(images[ids]), tf.constant(masks[ids]), tf.constant(0, tf.int64), positions)
    masks = masks.numpy()[..., 0]
    log_probabilities = tf.nn.log_softmax(trainer.model(images, training=True)).numpy()
    valid = masks != IGNORED
    weights = np.where(valid, np.array([*class_weights, 0])[np.minimum(masks, 3)], 0)
    labels = np.where(valid, masks, 0)
    per_pixel = -np.take_along_axis(log_probabilities, labels[..., None].astype(int), -1)[..., 0]
    divisor = valid.sum() if loss_normalization == "pixels" else weights.sum()
    trainer.run(batches, 1)
    assert trainer.pop_measurements().scalars["loss"] == pytest.approx((weights * per_pixel).sum() / divisor, rel=1e-5)


def test_a_step_that_is_not_finite_changes_no_weight_and_stops_the_loop():
    trainer, _, batches = small_trainer(examples=random_examples(8, SIZE), learning_rate=1e30)
    trainer.run(batches, 10)
    first = int(trainer.nonfinite_step)
    assert 0 < first < 5
    assert int(trainer.step) == first + 1
    assert int(trainer.optimizer.iterations) == first
    trainer.run(batches, 10)
    assert int(trainer.step) == first + 1  # until it may go on
    trainer.clear_nonfinite_step()
    trainer.run(batches, 10)
    assert int(trainer.step) == first + 2
    for weight in trainer.model.get_weights():
        assert np.isfinite(weight).all()
    assert trainer.pop_measurements().scalars["skipped_steps"] == 2


def test_predictions_and_loss_of_a_skipped_step_are_not_measured():
    trainer, _, batches = small_trainer(2, examples=random_examples(8, SIZE), learning_rate=1e30)
    trainer.run(batches, 10)
    finite = int(trainer.nonfinite_step.numpy())
    measured = trainer.pop_measurements()
    assert measured.steps == finite + 1
    assert measured.confusion_matrix.sum() == finite * BATCH * SIZE * SIZE
    trainer.clear_nonfinite_step()
    trainer.run(batches, 10)
    measured = trainer.pop_measurements()  # of nothing but a skipped step
    assert measured.steps == 1
    assert np.isnan(measured.scalars["loss"])
    assert not measured.confusion_matrix.any()


@pytest.mark.slow
def test_predictions_of_a_step_that_overflows_in_float16_are_not_measured():
    trainer, _, batches = make_trainer(
        2, examples=random_examples(8, SIZE), all_reduce_dtype="float16", initial_loss_scale=2.0**100
    )
    trainer.run(batches, 2)
    measured = trainer.pop_measurements()
    assert (measured.steps, measured.scalars["skipped_steps"]) == (2, 2)
    assert not measured.confusion_matrix.any()


def test_micro_batches_add_up_to_the_batch():
    losses, norms = [], []
    for micro_batches in (1, 2, 4):
        trainer, _, batches = make_trainer(
            examples=random_examples(24, SIZE),
            batch_size=8,
            learning_rate=0.1,
            class_weights=(0.4, 0.4, 0.2),
            loss=Loss(LossConfig(loss_normalization="weights")),
            micro_batches=micro_batches,
            freeze_batch_norm=True,  # in training mode each slice would be normalised by its own statistics
        )
        sums = []
        for _ in range(5):
            trainer.run(batches, 1)
            sums.append(trainer.pop_measurements())
        losses.append([part.scalars["loss"] for part in sums])
        norms.append([part.scalars["gradient_norm"] for part in sums])
        assert sums[0].confusion_matrix.sum() == 8 * SIZE * SIZE
    for other in (1, 2):
        np.testing.assert_allclose(losses[other], losses[0], rtol=1e-5)
        np.testing.assert_allclose(norms[other], norms[0], rtol=1e-4)
    assert losses[0][-1] != losses[0][0]


@pytest.mark.slow
def test_jit_compile_does_not_change_the_loss():
    losses = []
    for jit_compile in (False, True):
        trainer, _, batches = make_trainer(examples=random_examples(8, SIZE), jit_compile=jit_compile)
        sums = []
        for _ in range(3):
            trainer.run(batches, 1)
            sums.append(trainer.pop_measurements().scalars["loss"])
        losses.append(sums)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.fixture(scope="module")
def in_float32():
    """Measurements of a step in float32."""
    trainer, _, batches = make_trainer(examples=random_examples(8, SIZE))
    trainer.run(batches, 1)
    return trainer.pop_measurements()


@pytest.mark.parametrize("precision", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
def test_mixed_precision_keeps_weights_logits_loss_and_statistics_in_float32(in_float32, precision):
    mixed, _, batches = make_trainer(examples=random_examples(8, SIZE), precision=precision)
    assert {variable.dtype for variable in mixed.model.weights} == {"float32"}
    assert mixed.model.get_layer("upsample_512").compute_dtype == precision.removeprefix("mixed_")
    assert mixed.model.output.dtype == "float32"
    mixed.run(batches, 1)
    sums, expected = mixed.pop_measurements(), in_float32
    assert sums.scalars["loss"] == pytest.approx(expected.scalars["loss"], rel=1e-2)
    assert sums.scalars["gradient_norm"] == pytest.approx(expected.scalars["gradient_norm"], rel=0.1)
    assert sums.scalars["loss_scale"] == (1024.0 if precision == "mixed_float16" else 1.0)
    assert sums.scalars["skipped_steps"] == 0


def test_gradients_of_a_batch_without_a_valid_pixel_are_0():
    examples = random_examples(8, SIZE)
    examples.masks[:] = IGNORED
    trainer, _, batches = small_trainer(examples=examples)
    trainer.run(batches, 1)
    assert all((gradient == 0).all() for gradient in trainer.gradients().values())
