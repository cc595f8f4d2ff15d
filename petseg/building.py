"""Config -> the objects that a run is made of."""

import logging

import keras
import tensorflow as tf

from petseg import augmentation, distribution, host_allocator, optimization, sample_weights, unet
from petseg.config import CLASS_NAMES, Config, DistributionConfig
from petseg.data.datasets import Examples
from petseg.distribution import Placement
from petseg.evaluator import Evaluator
from petseg.trainer import Requests, Trainer

logger = logging.getLogger(__name__)


def set_up_runtime(config: Config, devices: DistributionConfig) -> Placement:
    """Memory, seeds, determinism and devices of the process; before anything is built."""
    host_allocator.keep_freed_memory()
    keras.utils.set_random_seed(config.runtime.seed)
    if config.runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    placement = distribution.set_up(devices)
    if not placement.is_chief:  # what they all would say, one says
        logging.getLogger("petseg").setLevel(logging.WARNING)
    return placement


def build_model(config: Config, examples: Examples | None) -> keras.Model:
    """The network of a config; inside ``strategy.scope()``.

    Args:
      config: the run's.
      examples: what to initialise a new network's encoder with; None if a checkpoint will fill it.
    """
    size, model = config.data.image_size, config.model
    with unet.dtype_policy(config.compute.precision):
        encoder = unet.build_encoder(image_size=size, alpha=model.encoder_alpha)
        network = unet.build_unet(
            image_size=size,
            num_classes=len(CLASS_NAMES),
            encoder=encoder,
            train_encoder=model.train_encoder,
            input_scaling=model.input_scaling,
            batch_norm_momentum=model.batch_norm_momentum,
            sync_batch_norm=model.sync_batch_norm,  # on one replica too, for then the arithmetic is that of several
        )
    if examples is not None and model.encoder_weights != "none":
        unet.load_encoder_weights(encoder, model.encoder_weights, image_size=size, alpha=model.encoder_alpha)
    elif examples is not None:
        some = tf.cast(examples.images[:64], tf.float32)
        unet.calibrate_batch_norm(encoder, network.get_layer("scaling")(some))
    return network


def build_trainer(
    config: Config,
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    class_weights: tuple[float, ...] | None,
    total_steps: int,
    requests: Requests,
) -> Trainer:
    """The loop of a config; inside ``strategy.scope()``."""
    optimizer, compute, batch_size = config.optimizer, config.compute, config.data.batch_size
    return Trainer(
        strategy,
        model,
        optimization.make_optimizer(optimizer.optimizer, model.trainable_variables),
        optimization.learning_rate_schedule(optimizer.learning_rate_schedule, optimizer.learning_rate, total_steps),
        augmentation.augmentation(config.data.augment, seed=config.runtime.seed, batch_size=batch_size),
        optimization.LossScale(
            initial=compute.initial_loss_scale,
            growth_interval=compute.loss_scale_growth_interval,
            dynamic=compute.precision == "mixed_float16",
        ),
        requests,
        batch_size=batch_size,
        class_weights=class_weights,
        loss_normalization=config.loss.loss_normalization,
        clip_norm=optimizer.clip_norm,
        micro_batches=compute.micro_batches,
        sync_batch_norm=config.model.sync_batch_norm,
        jit_compile=compute.jit_compile,
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
        batch_size=batch_size or config.data.batch_size,
        class_weights=class_weights,
        loss_normalization=config.loss.loss_normalization,
        stop=requests.stop,
        flip_tta=flip_tta,
        details=details,
    )


def resolve_class_weights(config: Config, examples: Examples) -> tuple[float, ...] | None:
    """The class weights of a config, normalised to sum to 1."""
    given = config.loss.class_weight_values()
    weights = given and sample_weights.normalized(given)
    if config.loss.class_weights == "balanced":
        weights = sample_weights.balanced(examples.masks, len(CLASS_NAMES))
    if weights is not None:
        shown = ", ".join(f"{name} {weight:.3f}" for name, weight in zip(CLASS_NAMES, weights, strict=True))
        logger.info("class weights: %s", shown)
    return weights
