"""Config -> the objects that a run is made of."""

import dataclasses
import logging
from pathlib import Path

import keras
import tensorflow as tf

from petseg.classes import CLASS_NAMES
from petseg.config import Config
from petseg.data.decoding import Examples
from petseg.errors import CheckpointError, ConfigError
from petseg.evaluation.evaluator import Evaluator
from petseg.models import encoders, unet
from petseg.runs import checkpoints
from petseg.runs.work_directory import WorkDirectory
from petseg.training import augmentation, learning_rates, loss_scale, losses, optimizers, sample_weights
from petseg.training.losses import Loss
from petseg.training.requests import Requests
from petseg.training.sample_weights import WeightMap
from petseg.training.trainer import Trainer
from petseg.training.weight_averaging import WeightAverage

logger = logging.getLogger(__name__)


def build_model(config: Config, examples: Examples | None) -> keras.Model:
    """The network of a config; inside ``strategy.scope()``.

    Args:
      config: the run's.
      examples: what to initialise a new network's encoder with; None if a checkpoint will fill it.
    """
    size, model = config.data.image_size, config.model
    weights = model.encoder_weights if examples is not None else "none"
    with unet.dtype_policy(config.compute.precision):
        encoder = encoders.build_encoder(model.encoder, image_size=size, alpha=model.encoder_alpha, weights=weights)
        network = unet.build_unet(
            image_size=size,
            num_classes=len(CLASS_NAMES),
            encoder=encoder,
            train_encoder=model.train_encoder,
            input_scaling=model.input_scaling,
            batch_norm_momentum=model.batch_norm_momentum,
            sync_batch_norm=model.sync_batch_norm,  # on one replica too, for then the arithmetic is that of several
        )
    if examples is not None and weights == "none":
        some = tf.cast(examples.images[:64], tf.float32)
        encoders.calibrate_batch_norm(encoder, network.get_layer("scaling")(some))
    return network


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
) -> Trainer:
    """The loop of a config; inside ``strategy.scope()``."""
    compute, batch_size = config.compute, config.data.batch_size
    parts = dataclasses.replace(augmentation.SETS[config.augmentation.augment], **config.augmentation.changed_parts())
    return Trainer(
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
      strategy: see `Evaluator`; likewise the rest.
      model: see above.
      examples: see above.
      class_weights: see above.
      requests: to stop.
      batch_size: 0 for the config's.
      flip_tta: see above.
      details: see above.
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


def check_init_from(source: str) -> None:
    """Raises ConfigError if a source of initial weights is neither a work directory nor a checkpoint."""
    if source and not WorkDirectory(source).config_file.is_file() and not _checkpoint_file(source).is_file():
        raise ConfigError(f"--init_from={source}: is neither the work directory of a run nor a checkpoint")


def _checkpoint_file(path: str) -> Path:
    return Path(path.removesuffix(".index") + ".index")


def initialize_from(source: str, config: Config, model: keras.Model) -> None:
    """Fills a new model with the weights of another run, and says what that is and what it is not.

    Args:
      source: a work directory or the path of a checkpoint.
      config: the new run's.
      model: what to fill; inside ``strategy.scope()``.

    Raises:
      PetsegError: if the weights do not fit, or mean something else, or the run has none yet.
    """
    workdir, averaged = WorkDirectory(source), False
    if not workdir.config_file.is_file():
        path = source.removesuffix(".index")
        step = checkpoints.restore_model(path, model=model)
    else:
        theirs = workdir.load_config()
        for name in ("encoder_alpha", "input_scaling"):
            ours, its = getattr(config.model, name), getattr(theirs.model, name)
            if ours != its:
                raise ConfigError(f"--{name}={ours}: --init_from={source} was trained with {its}; takes the same")
        if not checkpoints.steps(workdir.best):
            raise CheckpointError(f"--init_from={source}: there is no checkpoint in {workdir.best} yet")
        path = checkpoints.find(workdir.checkpoints, workdir.best, "best")
        averaged = theirs.optimizer.ema_decay > 0
        original = build_model(theirs, None)  # averages are known by what was trained there
        step = restore(path, theirs, original, averaged=averaged)
        model.set_weights(original.get_weights())
    kind = "averaged weights" if averaged else "weights"
    logger.info("initialised with the %s of %s, step %d; this is a new run, from step 0", kind, path, step)
