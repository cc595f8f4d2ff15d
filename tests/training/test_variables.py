"""Variables that a forward pass updates, also in layers that are no models: averaged, undone, equal on all replicas."""

import keras
import numpy as np
import tensorflow as tf
from conftest import random_examples, replicas

from petseg.config import AugmentationConfig, ComputeConfig, Config, LossConfig, OptimizerConfig
from petseg.data import input_pipeline
from petseg.models import encoders, unet
from petseg.models.layers import InferenceMode
from petseg.training import augmentation, learning_rates, loss_scale, optimizers, sample_weights
from petseg.training.losses import Loss
from petseg.training.stop_requests import StopRequests
from petseg.training.trainer import Trainer
from petseg.training.variables import moving_statistics
from petseg.training.weight_averaging import WeightAverage


class Block(keras.layers.Layer):
    """A user's layer that contains layers and a statistic."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.convolution = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)
        self.norm = keras.layers.BatchNormalization(momentum=0.5)
        self.drop = keras.layers.Dropout(0.1, seed=0)

    def build(self, shape):
        self.convolution.build(shape)
        self.norm.build((*shape[:-1], self.convolution.filters))
        self.largest = self.add_weight(shape=[], initializer="zeros", trainable=False, name="largest")

    def call(self, x, training=False):
        if training:
            self.largest.assign(tf.maximum(self.largest, tf.reduce_max(tf.cast(x, tf.float32))))
        return keras.ops.relu(self.norm(self.drop(self.convolution(x), training=training), training=training))


def model_of_blocks():
    images = keras.Input([8, 8, 3])
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.Sequential([Block(4, name="first"), Block(4, name="second")], name="both")(x)
    return keras.Model(images, keras.layers.Conv2D(3, 1, dtype="float32")(x))


def trainer_of_blocks(number, *, learning_rate=0.01, ema_decay=0.0, sync_batch_norm=True):
    strategy, examples = replicas(number), random_examples(8, 8)
    keras.utils.set_random_seed(0)
    requests = StopRequests()
    with strategy.scope():
        model = model_of_blocks()
        sgd = OptimizerConfig(optimizer="sgd", learning_rate=learning_rate)
        rate = learning_rates.learning_rate_schedule(sgd, 100)
        trainer = Trainer(
            Config().changed(data={"batch_size": 4}, model={"sync_batch_norm": sync_batch_norm}),
            strategy,
            model,
            optimizers.Optimizer(sgd, [optimizers.Group(model.trainable_variables, rate)]),
            augmentation.build_augmentation(AugmentationConfig(augment="flip"), seed=0, batch_size=4),
            sample_weights.weight_map(LossConfig()),
            Loss(LossConfig()),
            loss_scale.LossScale(ComputeConfig()),
            requests,
            WeightAverage(model, ema_decay) if ema_decay else None,
        )
    batches = input_pipeline.distributed_training_batches(
        strategy, examples, batch_size=4, seed=0, first_step=0, last_step=100
    )
    return trainer, strategy, iter(batches)


def test_statistics_are_found_in_layers_of_layers_each_once():
    model = model_of_blocks()
    found = [variable.path for variable in moving_statistics(model)]
    assert len(found) == len(set(found)) == 6
    for block in ("first", "second"):
        assert sum(block in path for path in found) == 3
    model.get_layer("both").layers[0].norm.trainable = False  # then it no longer changes
    assert sum("moving" in variable.path for variable in moving_statistics(model)) == 2


def test_layers_in_inference_mode_have_no_moving_statistics():
    size = (32, 32)
    encoder = encoders.build_encoder("tiny", image_size=size)
    assert moving_statistics(InferenceMode(encoder, trainable=True)) == []
    model = unet.build_unet(
        image_size=(32, 32), num_classes=3, encoder=encoder, train_encoder=True, input_scaling="unit"
    )
    assert [variable.path for variable in moving_statistics(model)] == [
        f"batch_norm_{filters}/{name}" for filters in (512, 256, 128, 64) for name in ("moving_mean", "moving_variance")
    ]  # in this order, for a checkpoint keeps averages by their place


def test_the_vector_of_a_spectral_normalisation_is_a_statistic():
    layer = keras.layers.SpectralNormalization(keras.layers.Dense(3))
    layer.build([2, 3])
    assert [variable.path.split("/")[-1] for variable in moving_statistics(layer)] == ["vector_u"]


def test_a_layers_own_statistics_are_averaged_with_the_weights():
    trainer, _, batches = trainer_of_blocks(1, ema_decay=0.9)
    block = trainer.model.get_layer("both").layers[1]
    statistics = [block.norm.moving_mean, block.norm.moving_variance, block.largest]
    trainer.run(batches, 3)
    now = [variable.numpy() for variable in statistics]
    with trainer.average.in_place():
        for variable, value in zip(statistics, now, strict=True):
            assert (variable.numpy() != value).all()
    for variable, value in zip(statistics, now, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_a_layers_own_statistics_are_as_before_after_a_step_that_is_not_finite():
    trainer, _, batches = trainer_of_blocks(1)
    trainer.run(batches, 2)
    block = trainer.model.get_layer("both").layers[1]
    statistics = [block.norm.moving_mean, block.norm.moving_variance, block.largest]
    before = [variable.numpy() for variable in statistics]
    kernel = trainer.model.layers[-1].kernel
    kernel.assign(tf.fill(kernel.shape, np.inf))
    trainer.run(batches, 1)
    assert int(trainer.nonfinite_step.numpy()) == 2
    for variable, value in zip(statistics, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_a_layers_own_statistics_are_averaged_over_the_replicas():
    trainer, strategy, batches = trainer_of_blocks(2, sync_batch_norm=False)
    trainer.run(batches, 3)
    for block in trainer.model.get_layer("both").layers:
        for variable in (block.norm.moving_mean, block.norm.moving_variance):
            first, *others = (each.numpy() for each in strategy.experimental_local_results(variable.value))
            assert np.ptp(first) > 0
            for other in others:
                np.testing.assert_array_equal(first, other)
