"""Builds what a config describes: data splits, network, trainer, evaluator."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from petseg import custom_code
from petseg.classes import Classes
from petseg.config import Config, DataConfig
from petseg.data import catalog, input_pipeline, loading, overlaps
from petseg.data.bad_example_log import BadExampleLog
from petseg.data.crop_focus import CropFocus
from petseg.data.examples import Examples
from petseg.data.random_crops import RandomCrops
from petseg.errors import ConfigError
from petseg.evaluation import metrics
from petseg.evaluation.evaluator import Evaluator
from petseg.models import custom_network, encoders, mixed_precision, unet
from petseg.runs import checkpoints
from petseg.training import augmentation, keras_optimizers, losses, optimizers, sample_weights, trainer
from petseg.training.loss_scale import LossScale
from petseg.training.sample_weights import WeightMap
from petseg.training.stop_requests import StopRequests
from petseg.training.weight_averaging import WeightAverage


def check_replicas(config: Config, strategy: tf.distribute.Strategy) -> None:
    """Raises ConfigError if a config's batch size, micro-batches, XLA or data types do not suit the replicas."""
    compute, batch_size, replicas = config.compute, config.data.batch_size, strategy.num_replicas_in_sync
    input_pipeline.check_batch_divides(strategy, batch_size)
    if batch_size % (replicas * compute.micro_batches):
        raise ConfigError(
            f"--micro_batches={compute.micro_batches}: must divide the {batch_size // replicas} examples that each "
            f"replica gets of --batch_size={batch_size}"
        )
    if compute.jit_compile and config.model.sync_batch_norm and replicas > 1:
        raise ConfigError(
            f"--jit_compile: with {replicas} replicas --nosync_batch_norm must be given too: XLA cannot compile "
            "synchronised batch norms"
        )
    # A cluster may shrink to one worker and grow again, so it keeps the flag.
    in_cluster = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if compute.all_reduce_dtype != "float32" and replicas == 1 and not in_cluster:
        raise ConfigError(
            f"--all_reduce_dtype={compute.all_reduce_dtype}: must be float32 with one replica, which has no all-reduce"
        )


def load_splits(config: DataConfig) -> tuple[Examples, Examples]:
    """Loads the training and the evaluation split into the backend of --cache; warns of examples that are in both."""
    classes = catalog.open_with_splits(config).classes
    train = loading.load(config, config.train_split, classes, for_training=True)
    evaluation = loading.load(config, config.eval_split, train.classes)
    overlaps.warn_of_shared_examples(catalog.open_data(config, train.classes), config.train_split, config.eval_split)
    return train, evaluation


def focused_crops(
    config: Config, examples: Examples, rare: tuple[int, ...] | None = None
) -> tuple[Examples, CropFocus | None]:
    """The training split with random crops focused on rare classes (--crop_focus), and the focus; None without it.

    `rare` are the ids of the rare classes; None: they are counted.
    """
    share = config.augmentation.strengths()["crop_focus"]
    if not share:
        return examples, None
    focus = CropFocus.of_split(share, examples, rare)
    return examples.focused(focus) if isinstance(examples, RandomCrops) else examples, focus


def training_batches(
    config: Config, strategy: tf.distribute.Strategy, examples: Examples, *, steps: range, bad_examples: BadExampleLog
) -> Iterator[Any]:
    """The batches of a range of steps, distributed over the replicas."""
    return iter(
        input_pipeline.distributed_training_batches(
            strategy,
            examples,
            batch_size=config.data.batch_size,
            seed=config.runtime.seed,
            first_step=steps.start,
            last_step=steps.stop,
            addresses=config.data.service_addresses(),
            bad_examples=bad_examples,
            order_version=config.runtime.example_order,
            example_bytes=config.data.example_bytes,
        )
    )


def build_model(config: Config, classes: Classes, encoder_weights: str | None = None) -> keras.Model:
    """Builds the network of a config; call it inside ``strategy.scope()``.

    `encoder_weights` are those of `encoders.build_encoder`; None for random weights, which a checkpoint will replace.
    Raises ConfigError if the weights are missing or do not fit, or the encoder lacks a named layer.
    """
    model, channels = config.model, config.data.image_spec.channels
    with mixed_precision.dtype_policy(config.compute.precision):
        if model.network:
            return custom_network.build(
                model.network,
                image_size=config.data.size,
                num_classes=len(classes),
                sync_batch_norm=model.sync_batch_norm,
                channels=channels,
            )
        return unet.build_unet(
            image_size=config.data.size,
            num_classes=len(classes),
            encoder=encoders.build_encoder(
                model.encoder,
                image_size=model.working_size(config.data.size),
                alpha=model.encoder_alpha,
                weights=encoder_weights or "none",
                channels=channels,
            ),
            train_encoder=model.first_trained != "none",
            first_trained=model.first_trained,
            input_scaling=encoders.scaling(model.encoder, model.input_scaling, channels),
            decoder=model.decoder,
            batch_norm_momentum=model.batch_norm_momentum,
            sync_batch_norm=model.sync_batch_norm,  # on one replica too, so that its arithmetic equals that of several
        )


def rebuild_for_export(config: Config, classes: Classes) -> Callable[[], keras.Model] | None:
    """A function that builds a network in float32 without synchronised batch norms, with random weights.

    It is for custom networks; None for others, which Keras can copy.
    """
    if not config.model.network:
        return None
    plain = config.changed(compute={"precision": "float32"}, model={"sync_batch_norm": False})
    return lambda: build_model(plain, classes)


def build_trainer(
    config: Config,
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    class_weights: tuple[float, ...] | None,
    total_steps: int,
    requests: StopRequests,
    focus: CropFocus | None = None,
) -> trainer.Trainer:
    """The trainer of a config, with the focus of `focused_crops`; call it inside ``strategy.scope()``."""
    if config.augmentation.crop_size:
        unet.accept_any_size(model)
    augment = augmentation.build_augmentation(
        config.augmentation, seed=config.runtime.seed, batch_size=config.data.batch_size, focus=focus
    )
    parts = (
        optimizers.build_optimizer(config.optimizer, model, total_steps, config.compute.bucket_bytes),
        augment,
        build_weight_map(config, class_weights),
        losses.Loss(config.loss),
        LossScale(config.compute),
        requests,
        WeightAverage(model, config.optimizer.ema_decay) if config.optimizer.keeps_averages else None,
    )
    with custom_code.explained("step", config.extension.step):
        return _trainer_class(config.extension.step)(config, strategy, model, *parts)


def _trainer_class(reference: str) -> type[trainer.Trainer]:
    """The class that --step names; `Trainer` if it is empty.

    Raises ConfigError if it is not a subclass of `Trainer`.
    """
    found: Any = custom_code.load("step", reference) if reference else trainer.Trainer
    if not isinstance(found, type) or not issubclass(found, trainer.Trainer):
        raise ConfigError(f"--step={reference}: must be a subclass of petseg.training.trainer.Trainer; is {found!r}")
    return found


def build_weight_map(config: Config, class_weights: tuple[float, ...] | None) -> WeightMap:
    """Per-pixel weights of the loss, in training and evaluation."""
    return sample_weights.weight_map(config.loss, class_weights, config.extension.weight_map)


def check_code(config: Config, classes: Classes) -> None:
    """Checks user code on dummy data before examples are loaded; all but networks and schedules.

    Raises ConfigError if one fails or returns something else than documented.
    """
    _trainer_class(config.extension.step)
    losses.Loss(config.loss).check(len(classes), config.data.size)
    keras_optimizers.named_optimizer(config.optimizer)
    sample_weights.check_factor(config.extension.weight_map, len(classes), config.data.size)
    if custom_code.is_reference(config.augmentation.augment):
        size = config.augmentation.training_size(config.data.size)
        shape = [config.data.batch_size // config.compute.micro_batches, *size, config.data.image_spec.channels]
        augmentation.check_own_augmentation(config.augmentation.augment, shape)
    for hook in ("after_evaluation", "every_summary"):  # which run late
        custom_code.check_arity(hook, getattr(config.extension, hook), 3)
    matrix = np.eye(len(classes), dtype=np.int64)
    metrics.from_confusion_matrix(matrix, classes, metrics.own(config.extension.scores), matrix[None])


def build_evaluator(
    config: Config,
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    examples: Examples,
    class_weights: tuple[float, ...] | None,
    requests: StopRequests,
    *,
    batch_size: int = 0,
    flip_tta: bool = False,
    threshold: float = 0.0,
    details: bool = False,
    loss: losses.Loss | None = None,
    weight_map: WeightMap | None = None,
) -> Evaluator:
    """The evaluator of a model on a split, with the loss of a config; call it inside ``strategy.scope()``.

    `loss` and `weight_map` are those of the config, where user code must not be loaded again; None: made here.
    """
    return Evaluator(
        strategy,
        model,
        examples,
        weight_map or build_weight_map(config, class_weights),
        loss or losses.Loss(config.loss),
        config.data if not batch_size else dataclasses.replace(config.data, batch_size=batch_size),
        stop=requests.stop,
        flip_tta=flip_tta,
        threshold=threshold,
        details=details,
    )


def restore(path: str, config: Config, model: keras.Model, *, averaged: bool) -> int:
    """Restores a model's weights, or their averages, from a checkpoint of a run; returns the step of the checkpoint.

    Raises CheckpointError if the checkpoint is damaged, belongs to another model, or has no averages.
    """
    if not averaged:
        return checkpoints.restore_model(path, model=model)
    average = WeightAverage(model, config.optimizer.ema_decay)
    step = checkpoints.restore_model(path, model=model, average=average)
    average.swap()
    return step
