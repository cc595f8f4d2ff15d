"""Config -> the objects that a run is made of."""

import dataclasses
import logging

import keras
import tensorflow as tf

from petseg.classes import CLASS_NAMES
from petseg.config import Config, DataConfig
from petseg.data import catalog, decoding, input_pipeline
from petseg.data.decoding import Examples
from petseg.evaluation.evaluator import Evaluator
from petseg.models import encoders, unet
from petseg.runs import checkpoints
from petseg.training import augmentation, learning_rates, loss_scale, losses, optimizers, sample_weights, trainer
from petseg.training.losses import Loss
from petseg.training.requests import Requests
from petseg.training.sample_weights import WeightMap
from petseg.training.weight_averaging import WeightAverage

logger = logging.getLogger(__name__)


def check(config: Config, strategy: tf.distribute.Strategy) -> None:
    """Raises ConfigError if the replicas of a strategy cannot make the steps of a config."""
    input_pipeline.check_divides(strategy, config.data.batch_size)
    trainer.check_step(
        strategy,
        batch_size=config.data.batch_size,
        micro_batches=config.compute.micro_batches,
        sync_batch_norm=config.model.sync_batch_norm,
        jit_compile=config.compute.jit_compile,
    )


def load_examples(config: DataConfig) -> tuple[Examples, Examples]:
    """The training split and the evaluation split, decoded."""
    train, evaluation = (
        decoding.load(
            config.dataset, split, config.image_size, config.data_dir, cache=config.cache, cache_dir=config.cache_dir
        )
        for split in (config.train_split, config.eval_split)
    )
    catalog.warn_of_shared_examples(config.dataset, config.train_split, config.eval_split, config.data_dir)
    return train, evaluation


def build_model(config: Config, encoder_weights: str | None = None) -> keras.Model:
    """The network of a config; inside ``strategy.scope()``.

    Args:
      config: the run's.
      encoder_weights: as `encoders.build_encoder` takes them; None for random ones, which a checkpoint will fill.
    """
    size, model = config.data.image_size, config.model
    with unet.dtype_policy(config.compute.precision):
        encoder = encoders.build_encoder(
            model.encoder, image_size=size, alpha=model.encoder_alpha, weights=encoder_weights or "none"
        )
        return unet.build_unet(
            image_size=size,
            num_classes=len(CLASS_NAMES),
            encoder=encoder,
            train_encoder=model.train_encoder,
            input_scaling=model.input_scaling,
            batch_norm_momentum=model.batch_norm_momentum,
            sync_batch_norm=model.sync_batch_norm,  # on one replica too, for then the arithmetic is that of several
        )


def build_average(config: Config, model: keras.Model) -> WeightAverage | None:
    """The average of a model's weights, if the config asks for one; inside ``strategy.scope()``."""
    return WeightAverage(model, config.optimizer.ema_decay) if config.optimizer.ema_decay else None


def build_optimizer(config: Config, model: keras.Model, total_steps: int) -> optimizers.Optimizer:
    """The optimizer of a config; inside ``strategy.scope()``."""
    options = config.optimizer
    rate = learning_rates.learning_rate_schedule(
        options.learning_rate_schedule,
        options.learning_rate,
        total_steps,
        warmup_steps=options.warmup_steps,
        power=options.polynomial_power,
        drop_at=options.drop_shares(),
        drop_factor=options.drop_factor,
    )
    of_encoder = model.get_layer("encoder").trainable_variables
    known = {id(weight) for weight in of_encoder}
    groups = [optimizers.Group([w for w in model.trainable_variables if id(w) not in known], rate)]
    if of_encoder:
        encoder_rate = learning_rates.scaled(
            rate, options.encoder_learning_rate_factor, first_step=options.unfreeze_encoder_at
        )
        groups.append(optimizers.Group(of_encoder, encoder_rate))
    return optimizers.Optimizer(options.optimizer, groups, weight_decay=options.weight_decay, momentum=options.momentum)


def build_trainer(
    config: Config,
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    class_weights: tuple[float, ...] | None,
    total_steps: int,
    requests: Requests,
) -> trainer.Trainer:
    """The loop of a config; inside ``strategy.scope()``."""
    compute, batch_size = config.compute, config.data.batch_size
    parts = dataclasses.replace(augmentation.SETS[config.augmentation.augment], **config.augmentation.changed_parts())
    return trainer.Trainer(
        strategy,
        model,
        build_optimizer(config, model, total_steps),
        augmentation.augmentation(parts, seed=config.runtime.seed, batch_size=batch_size),
        build_weight_map(config, class_weights),
        build_loss(config),
        loss_scale.LossScale(
            initial=compute.initial_loss_scale,
            growth_interval=compute.loss_scale_growth_interval,
            dynamic=compute.precision == "mixed_float16",
        ),
        requests,
        batch_size=batch_size,
        average=build_average(config, model),
        clip_norm=config.optimizer.clip_norm,
        micro_batches=compute.micro_batches,
        sync_batch_norm=config.model.sync_batch_norm,
        jit_compile=compute.jit_compile,
    )


def build_weight_map(config: Config, class_weights: tuple[float, ...] | None) -> WeightMap:
    """How much each pixel counts, in training and in the loss of evaluations."""
    return sample_weights.weight_map(
        class_weights,
        boundary_weight=config.loss.boundary_weight,
        boundary_sigma=config.loss.boundary_sigma,
    )


def build_loss(config: Config) -> Loss:
    """What training minimises, and evaluations tell."""
    return losses.make_loss(
        config.loss.loss,
        focal_gamma=config.loss.focal_gamma,
        label_smoothing=config.loss.label_smoothing,
        dice_weight=config.loss.dice_weight,
        normalization=config.loss.loss_normalization,
    )


def build_evaluator(
    config: Config,
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    examples: Examples,
    class_weights: tuple[float, ...] | None,
    requests: Requests,
    *,
    batch_size: int = 0,
    flip_tta: bool = False,
    details: bool = False,
) -> Evaluator:
    """What scores a model on a split with the loss of a config; inside ``strategy.scope()``.

    Args:
      config: the run's.
      strategy: any number of replicas.
      model: the network of the config.
      examples: the split.
      class_weights: those that training uses, or None.
      requests: to stop.
      batch_size: 0 for the config's.
      flip_tta: average the probabilities of an image and of its mirror image.
      details: count outlines and calibration too.
    """
    return Evaluator(
        strategy,
        model,
        examples,
        build_weight_map(config, class_weights),
        build_loss(config),
        batch_size=batch_size or config.data.batch_size,
        stop=requests.stop,
        flip_tta=flip_tta,
        details=details,
    )


def resolve_class_weights(config: Config, examples: Examples) -> tuple[float, ...] | None:
    """The class weights of a config, normalised to sum to 1."""
    given = config.loss.class_weight_values()
    weights = given and sample_weights.normalized(given)
    counted = {"balanced": sample_weights.balanced, "median_frequency": sample_weights.median_frequency}
    if config.loss.class_weights in counted:
        weights = counted[config.loss.class_weights](examples.masks, len(CLASS_NAMES))
    if weights is not None:
        shown = ", ".join(f"{name} {weight:.3f}" for name, weight in zip(CLASS_NAMES, weights, strict=True))
        logger.info("class weights: %s", shown)
    return weights


def restore(path: str, config: Config, model: keras.Model, *, averaged: bool) -> int:
    """Restores a model's weights out of a checkpoint of a run, or their averages; returns the step they stood at.

    Raises:
      CheckpointError: if the checkpoint is damaged, or of another model, or without averages.
    """
    if not averaged:
        return checkpoints.restore_model(path, model=model)
    average = WeightAverage(model, config.optimizer.ema_decay)
    step = checkpoints.restore_model(path, model=model, average=average)
    average.swap()
    return step
