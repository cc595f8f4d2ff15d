"""Builds everything that a training run consists of, and restores its latest checkpoint."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import keras

from petseg import config as config_lib, custom_code
from petseg.config import Config
from petseg.data import catalog, example_order, image_flags, input_pipeline, loading, service_client, subsampling
from petseg.data.examples import Examples
from petseg.errors import ClusterError, ConfigError, StoppedError
from petseg.evaluation import metrics
from petseg.evaluation.evaluator import Evaluator
from petseg.reporting.telemetry import Stopwatch
from petseg.runs import building, checkpoint_files, checkpoints, resume_or_init, training_data_record
from petseg.runs.async_checkpoints import CheckpointWriter
from petseg.runs.bad_examples import BadExamples
from petseg.runs.checkpoints import BestCheckpoint, Checkpoints
from petseg.runs.early_stopping import EarlyStopping
from petseg.runs.resume_or_init import StartingPoint
from petseg.runs.schedule import Schedule
from petseg.runs.training_data_record import TrainingData
from petseg.runs.work_directory import Counts, WorkDirectory
from petseg.runtime.signals import StopSignals
from petseg.runtime.strategies import Placement
from petseg.training import sample_weights
from petseg.training.stop_requests import StopRequests
from petseg.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a training run."""

    config: Config
    workdir: WorkDirectory
    placement: Placement
    signals: StopSignals
    requests: StopRequests
    train_examples: Examples
    eval_examples: Examples  # the evaluation split, or a sample of it
    data: TrainingData  # both as the work directory records them
    class_weights: tuple[float, ...] | None  # class weights in use, normalised, or None
    rare_classes: tuple[int, ...] | None  # ids of the classes on which --crop_focus centres crops, or None
    schedule: Schedule
    model: keras.Model
    trainer: Trainer
    evaluator: Evaluator  # scores the model on the evaluation split
    own_scores: metrics.OwnScores | None  # user code of --scores
    after_evaluation: Callable[..., Any] | None  # user code of --after_evaluation
    early_stopping: EarlyStopping
    checkpoints: Checkpoints  # its latest checkpoints
    best: BestCheckpoint  # the one with the highest score of model selection
    writer: CheckpointWriter  # writes both, in a thread
    bad_examples: BadExamples  # handles examples that cannot be used
    stopwatch: Stopwatch  # measures where the time goes

    @property
    def step(self) -> int:
        """Number of optimizer steps attempted so far."""
        return int(self.trainer.step.numpy())

    def stopped(self) -> StoppedError:
        """The error that ends a run after a stop request."""
        self.writer.wait()
        start = checkpoint_files.path_of(self.workdir.checkpoints, self.step) if self.step else "the start"
        return self.signals.stopped(f"at step {self.step}; rerun to resume from {start}")


def set_up(config: Config, workdir: WorkDirectory, placement: Placement, signals: StopSignals) -> Run:
    """Builds a run and restores its latest checkpoint.

    Checks that need neither data nor a model come first. Raises PetsegError if something cannot be used.
    """
    building.check_replicas(config, placement.strategy)
    code_before = config_lib.code_hashes(config)
    for flag, reference in config_lib.code_references(config).items():
        custom_code.load(flag, reference)
    start = resume_or_init.find_starting_point(config, workdir)
    service_client.wait_for_services(config.data.service_addresses(), config.distribution.cluster_timeout)
    data, config = _checked_data(config, workdir, start)
    train_examples, eval_examples = building.load_splits(config.data)
    eval_examples = subsampling.subsample(eval_examples, config.schedule.eval_examples, config.runtime.seed)
    with input_pipeline.naming_lost_files(train_examples, eval_examples):
        loading.check_labels(train_examples, config.data, flag="--train_split=", split=config.data.train_split)
        loading.check_labels(eval_examples, config.data, flag="--eval_split=", split=config.data.eval_split)
        run = _build(config, workdir, placement, signals, start, train_examples, eval_examples, data)
    signals.call(lambda: run.requests.stop.assign(1.0))
    if start.checkpoint:
        run.checkpoints.restore(start.checkpoint)
        logger.info("resumed from %s", start.checkpoint)
    check_agreement(config, run.step, run.model, workdir, placement)
    _check_same_code(config, code_before)
    return run


def _check_same_code(config: Config, before: Mapping[str, str]) -> None:
    """Raises ConfigError if user code changed while the run was set up: parts of both versions may be in use."""
    now = config_lib.code_hashes(config)
    for flag, reference in config_lib.code_references(config).items():
        if now[flag] != before[flag]:
            raise ConfigError(f"--{flag}={reference}: its file was changed while the run was set up; rerun to use it")


def _checked_data(config: Config, workdir: WorkDirectory, start: StartingPoint) -> tuple[TrainingData, Config]:
    """The data of a run, checked to be unchanged since its start; and the config with its open values resolved.

    Raises PetsegError if it cannot be used, or has changed.
    """
    data_set = catalog.open_with_splits(config.data)
    workdir.check_classes(data_set.classes)
    config = dataclasses.replace(config, data=image_flags.resolved(config.data, data_set))
    building.check_code(config, data_set.classes)
    data = TrainingData.of(data_set, config.data, resume_or_init.initial_training_data(start))
    if start.checkpoint:
        training_data_record.check_unchanged(data, data_set, config.data, workdir)
    training_data_record.warn_of_seen_images(data, data_set, config.data, start.init_from)
    return data, config


def _build(
    config: Config,
    workdir: WorkDirectory,
    placement: Placement,
    signals: StopSignals,
    start: StartingPoint,
    train_examples: Examples,
    eval_examples: Examples,
    data: TrainingData,
) -> Run:
    schedule = Schedule.of(config.schedule, example_order.steps_per_epoch(len(train_examples), config.data.batch_size))
    counted = workdir.load_counts(config) if start.checkpoint else Counts()
    class_weights = counted.class_weights or sample_weights.resolve_class_weights(
        config.loss, train_examples.masks_to_count, train_examples.classes.names
    )
    train_examples, focus = building.focused_crops(config, train_examples, counted.rare_classes)
    requests, strategy = StopRequests(), placement.strategy
    with strategy.scope():
        model = resume_or_init.build_initial_model(start, config, train_examples)
        trainer = building.build_trainer(config, strategy, model, class_weights, schedule.last_step, requests, focus)
        evaluator = building.build_evaluator(config, strategy, model, eval_examples, class_weights, requests)
    # One writer for both, so that a step's best checkpoint is written before its latest one.
    writer = CheckpointWriter(in_thread=not config.schedule.sync_checkpoints)
    latest = Checkpoints(
        workdir.checkpoints,
        keep=config.schedule.keep_checkpoints,
        saves=placement.is_chief,
        writer=writer,
        **trainer.state(),
    )
    best = BestCheckpoint(workdir.best, saves=placement.is_chief, writer=writer, **trainer.scored_state())
    return Run(
        config=config,
        workdir=workdir,
        placement=placement,
        signals=signals,
        requests=requests,
        train_examples=train_examples,
        eval_examples=eval_examples,
        data=data,
        class_weights=class_weights,
        rare_classes=focus.rare if focus else None,
        schedule=schedule,
        model=model,
        trainer=trainer,
        evaluator=evaluator,
        own_scores=metrics.own(config.extension.scores),
        after_evaluation=custom_code.function_of("after_evaluation", config.extension.after_evaluation),
        early_stopping=EarlyStopping(config, workdir.metrics_file),
        checkpoints=latest,
        best=best,
        writer=writer,
        bad_examples=BadExamples(config, placement, train_examples, lambda: latest.newest() or "the start"),
        stopwatch=Stopwatch(),
    )


def check_agreement(
    config: Config, step: int, model: keras.Model, workdir: WorkDirectory, placement: Placement
) -> None:
    """Raises ClusterError if processes of a cluster differ in step, flags or weights.

    They would train different models, or wait for each other indefinitely.
    """
    folder = f"--workdir={workdir.path} must be the same folder for all of them"
    for value, problem in (
        (step, f"is at step {step}, another process elsewhere: {folder}"),
        (config_lib.fingerprint(config), "was started with other flags than another process; they must be the same"),
        (checkpoints.checksum(model), "begins with other weights than another process; the files must be the same"),
    ):
        if len(set(placement.gather(value))) > 1:
            raise ClusterError(f"{placement.name} {problem}")
