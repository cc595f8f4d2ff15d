"""Trainers without a run: on any number of replicas, with any part replaced."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from conftest import replicas

from petseg.config import AugmentationConfig, Config, LossConfig
from petseg.data import input_pipeline
from petseg.data.examples import Examples
from petseg.models import encoders, mixed_precision, unet
from petseg.models.batch_norm_calibration import calibrate_batch_norm
from petseg.training import augmentation, learning_rates, optimizers, sample_weights
from petseg.training.augmentation import Augmentation
from petseg.training.loss_scale import LossScale
from petseg.training.losses import Loss
from petseg.training.stop_requests import StopRequests
from petseg.training.trainer import Trainer
from petseg.training.weight_averaging import WeightAverage


def make_trainer(
    number: int = 1,
    *,
    examples: Examples,
    batch_size: int = 4,
    optimizer: str = "sgd",
    learning_rate: float = 0.01,
    augment: Augmentation | None = None,
    precision: str = "float32",
    initial_loss_scale: float = 1024.0,
    calibrated_on: np.ndarray | None = None,
    freeze_batch_norm: bool = False,
    class_weights: tuple[float, ...] | None = None,
    loss: Loss | None = None,
    train_encoder: bool = False,
    encoder: str = "tiny",
    decoder: str = "pix2pix",
    ema_decay: float = 0.0,
    weight_decay: float = 0.0,
    network: Callable[[int], keras.Model] | None = None,
    **options: Any,
) -> tuple[Trainer, tf.distribute.Strategy, Any]:
    """A trainer of the smallest model, or of a network, on replicas, its strategy, and the batches of 100 steps.

    `options` are those of `ComputeConfig`, `sync_batch_norm` and `clip_norm`.
    """
    size, strategy = examples.read([0])[0].shape[1], replicas(number)
    config = Config().changed(
        data={"batch_size": batch_size},
        model={"sync_batch_norm": options.pop("sync_batch_norm", True)},
        optimizer={
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "clip_norm": options.pop("clip_norm", 0.0),
        },
        compute={
            "precision": precision,
            "initial_loss_scale": initial_loss_scale,
            "loss_scale_growth_interval": 1000,
            **options,
        },
    )
    keras.utils.set_random_seed(0)
    requests = StopRequests()
    with strategy.scope():
        with mixed_precision.dtype_policy(precision):
            alpha = 1.0 if encoder == "tiny" else 0.35
            backbone = None if network else encoders.build_encoder(encoder, image_size=(size, size), alpha=alpha)
            model = (
                network(size)
                if network
                else unet.build_unet(
                    image_size=(size, size),
                    num_classes=3,
                    encoder=backbone,
                    train_encoder=train_encoder,
                    input_scaling="unit",
                    decoder=decoder,
                    sync_batch_norm=config.model.sync_batch_norm,
                )
            )
        for layer in model.layers:
            if freeze_batch_norm and isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False  # and so in inference mode
        noise = tf.random.stateless_uniform([16, size, size, 3], seed=[0, 0])
        if backbone is not None:
            calibrate_batch_norm(backbone, noise if calibrated_on is None else calibrated_on / np.float32(255))
        rate = learning_rates.learning_rate_schedule(config.optimizer, 100)
        parts = (model.trainable_variables[:4], model.trainable_variables[4:])
        groups = [optimizers.Group(part, rate) for part in parts]
        trainer = Trainer(
            config,
            strategy,
            model,
            optimizers.Optimizer(config.optimizer, groups, config.compute.bucket_bytes),
            augment or augmentation.build_augmentation(AugmentationConfig(), seed=0, batch_size=batch_size),
            sample_weights.weight_map(LossConfig(), class_weights),
            loss or Loss(LossConfig()),
            LossScale(config.compute),
            requests,
            WeightAverage(model, ema_decay) if ema_decay else None,
        )
    batches = input_pipeline.distributed_training_batches(
        strategy, examples, batch_size=batch_size, seed=0, first_step=0, last_step=100
    )
    return trainer, strategy, iter(batches)
