"""Trains what a config describes: builds it, runs the outer loop, keeps the work directory."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm.contrib.logging import logging_redirect_tqdm

from petseg import config as config_lib
from petseg.config import Config
from petseg.data import catalog, decoding, example_order, input_pipeline, sample, service_client
from petseg.data.decoding import Examples
from petseg.errors import ClusterError, DataError, StoppedError
from petseg.evaluation.evaluator import Evaluator
from petseg.files import naming_what_cannot_be_written
from petseg.reporting import model_diagram, pictures, summaries, telemetry
from petseg.reporting.report import SHEET_EXAMPLES, Introduction, NullReport, Report
from petseg.reporting.telemetry import Profiler, Stopwatch
from petseg.runs import building, checkpoints, early_stopping, run_groups, starting_point, training_data
from petseg.runs.checkpoints import BestCheckpoint, Checkpoints
from petseg.runs.evaluations import Evaluations
from petseg.runs.nonfinite_steps import NonFiniteSteps
from petseg.runs.schedule import Action, Alarm, Clock, Pause
from petseg.runs.starting_point import StartingPoint
from petseg.runs.training_data import TrainingData
from petseg.runs.unusable_input import UnusableInput
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime import process
from petseg.runtime.signals import StopSignals
from petseg.runtime.strategies import Placement
from petseg.training import sample_weights
from petseg.training.requests import Requests
from petseg.training.trainer import Trainer

logger = logging.getLogger(__name__)


def train(config: Config) -> dict[str, Any]:
    """Trains to the end of the schedule, from where the work directory stands.

    Returns:
      the scores of the last evaluation, as in its results file.

    Raises:
      PetsegError: if data, work directory or checkpoint cannot be used, the loss is not finite, or a signal came.
    """
    if config.runtime.quiet:
        logging.getLogger("petseg").setLevel(logging.WARNING)
    workdir = WorkDirectory.for_training(config.runtime.workdir, config.data.dataset)
    resumes = workdir.config_file.exists()
    config = config.changed(runtime={"workdir": str(workdir.path)})
    config = config_lib.with_kept(config, workdir.load_config() if resumes else None)
    if resumes:
        for name, (old, new) in workdir.reconcile(config).items():
            logger.info("changed: --%s was %r, is now %r", name, old, new)
    placement = process.set_up_runtime(config, config.distribution)
    with StopSignals() as signals:  # not before: in a cluster, TensorFlow puts a SIGTERM handler of its own in place
        lock = workdir.locked() if placement.is_chief else contextlib.nullcontext()
        with (
            placement.naming_lost_workers(),
            naming_what_cannot_be_written(workdir.path),
            lock,
            logging_redirect_tqdm(),
        ):
            return set_up(config, workdir, placement, signals).run()


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
      train_examples: the training split.
      eval_examples: the evaluation split.
      data: both as the work directory remembers them.
      class_weights: class weights in use, normalised, or None.
      clock: when things happen.
      steps_per_epoch: number of steps in an epoch.
      requests: what the loop is asked from outside.
      model: the network.
      trainer: trainer of the model.
      evaluator: evaluator of the model on the evaluation split.
    """

    train_examples: Examples
    eval_examples: Examples
    data: TrainingData
    class_weights: tuple[float, ...] | None
    clock: Clock
    steps_per_epoch: int
    requests: Requests
    model: keras.Model
    trainer: Trainer
    evaluator: Evaluator


def set_up(config: Config, workdir: WorkDirectory, placement: Placement, signals: StopSignals) -> "Experiment":
    """A run that stands where its work directory does, ready to go on.

    In the order in which things can fail: what needs neither data nor a model comes first.

    Raises:
      PetsegError: if something cannot be used.
    """
    building.check(config, placement.strategy)
    start = starting_point.find(config, workdir)
    service_client.wait_for(config.data.service_addresses(), config.distribution.cluster_timeout)
    data = _checked_data(config, workdir, start)
    train, evaluation = building.load_examples(config.data)
    evaluation = sample.sample(evaluation, config.schedule.eval_examples, config.runtime.seed)
    with input_pipeline.naming_lost_files(train, evaluation):
        decoding.check_labels(train, config.data, flag="--train_split=", split=config.data.train_split)
        decoding.check_labels(evaluation, config.data, flag="--eval_split=", split=config.data.eval_split)
        parts = _build(config, placement.strategy, start, train, evaluation, data)
    signals.call(lambda: parts.requests.stop.assign(1.0))
    experiment = Experiment(config, workdir, placement, signals, parts)
    experiment.restore(start)
    experiment.check_agreement()
    return experiment


def _checked_data(config: Config, workdir: WorkDirectory, start: StartingPoint) -> TrainingData:
    """The data that a run is trained and scored on, which must be what it began with.

    Raises:
      PetsegError: if it cannot be used, or is not.
    """
    data_set = catalog.open_data(config.data)
    workdir.check_classes(data_set.classes)
    data = TrainingData.of(data_set, config.data, starting_point.data_of_initial_weights(start))
    if start.checkpoint:
        training_data.check_unchanged(data, data_set, config.data, workdir)
    training_data.warn_of_seen_images(data, data_set, config.data, start.init_from)
    return data


def _build(
    config: Config,
    strategy: tf.distribute.Strategy,
    start: StartingPoint,
    train_examples: Examples,
    eval_examples: Examples,
    data: TrainingData,
) -> Parts:
    steps_per_epoch = example_order.steps_per_epoch(len(train_examples), config.data.batch_size)
    clock = Clock.of(config.schedule, steps_per_epoch)
    weights = sample_weights.resolve_class_weights(
        config.loss, train_examples.counted_masks, train_examples.classes.names
    )
    requests = Requests()
    with strategy.scope():
        model = starting_point.build_model(start, config, train_examples)
        trainer = building.build_trainer(config, strategy, model, weights, clock.total, requests)
        evaluator = building.build_evaluator(config, strategy, model, eval_examples, weights, requests)
    return Parts(
        train_examples, eval_examples, data, weights, clock, steps_per_epoch, requests, model, trainer, evaluator
    )


class Experiment:
    """One training run in its work directory.

    Args:
      config: config of the run.
      workdir: work directory of the run.
      placement: devices and cluster of the run.
      signals: signals that stop it.
      parts: what the run is made of.

    Attributes:
      trainer: the trainer, which makes the steps.
      checkpoints: checkpoints of all that the run is.
      evaluations: evaluations of the run.
    """

    def __init__(
        self, config: Config, workdir: WorkDirectory, placement: Placement, signals: StopSignals, parts: Parts
    ):
        self._config, self._workdir, self._placement, self._signals = config, workdir, placement, signals
        self._parts, self._clock, self._requests = parts, parts.clock, parts.requests
        self.trainer = parts.trainer
        saves = placement.is_chief
        self.checkpoints = Checkpoints(
            workdir.checkpoints, keep=config.schedule.keep_checkpoints, saves=saves, **self.trainer.state()
        )
        best = BestCheckpoint(workdir.best, saves=saves, **self.trainer.scored_state())
        self._stopwatch, self._alarm = Stopwatch(), Alarm(config.schedule.checkpoint_every_minutes)
        self.evaluations = Evaluations(
            config,
            workdir,
            placement,
            parts.evaluator,
            self.trainer.average,
            best,
            parts.eval_examples,
            self._stopwatch,
        )
        self._nonfinite_steps = NonFiniteSteps(config, placement, self.trainer, self.checkpoints, self._example_ids)
        self._unusable_input = UnusableInput(config, placement, parts.train_examples, self._newest)
        self._patience = early_stopping.Patience(config, workdir.metrics_file)
        self._report, self._results = NullReport(), dict[str, Any]()

    def restore(self, start: StartingPoint) -> None:
        """Goes to where the run stands, if it does not start anew."""
        if start.checkpoint:
            self.checkpoints.restore(start.checkpoint)
            logger.info("resumed from %s", start.checkpoint)

    def check_agreement(self) -> None:
        """Processes that train different things would train nonsense together, or wait for each other for ever."""
        step, name, gather = self._step(), self._placement.name, self._placement.gather
        if len(set(gather(step))) > 1:
            raise ClusterError(
                f"{name} stands at step {step}, another process elsewhere: "
                f"--workdir={self._workdir.path} must be the same folder for all of them"
            )
        if len(set(gather(config_lib.fingerprint(self._config)))) > 1:
            raise ClusterError(f"{name} was started with other flags than another process; they must be the same")
        if len(set(gather(checkpoints.checksum(self._parts.model)))) > 1:
            raise ClusterError(f"{name} begins with other weights than another process; the files must be the same")

    def run(self) -> dict[str, Any]:
        """Trains from where the run stands to the end; returns the scores of the last evaluation."""
        step = self._step()
        owes = self.evaluations.owes(step, self._clock)
        if not owes:
            self._end_if_patience_is_lost(step)
        self._say_where_it_stands(step)
        self._report = self._open_report(step, owes)
        with contextlib.closing(self._report):
            with self._signals.deferred(), self._naming_lost_input():
                if step < self._clock.total:
                    self._unusable_input.check(step)
                self._begin(step, owes)
                self._loop(step)
            self._report.finish(self._results)
        self._placement.leave_together()  # nobody ends while another one works
        return self._results

    def _say_where_it_stands(self, step: int) -> None:
        path, total = self._workdir.path, self._clock.total
        if step > total:
            logger.info("%s stands at step %d, beyond the last one, %d", path, step, total)
        elif step == total:
            logger.info("%s is complete: step %d of %d", path, step, total)
        else:
            logger.info("%s: steps %d to %d, %d an epoch", path, step, total, self._parts.steps_per_epoch)

    def _open_report(self, step: int, evaluates_first: bool) -> NullReport:
        """What tells the user of the run, after the config is written; of a cluster, only the chief tells."""
        if not self._placement.is_chief:
            return NullReport()
        workdir, devices = self._workdir, [device.name for device in tf.config.list_logical_devices()]
        classes = self._parts.train_examples.classes
        workdir.save_config(self._config, classes=classes, class_weights=self._parts.class_weights, devices=devices)
        if step == 0 or not workdir.data_file.exists():  # of an older version's run, what it goes on with
            self._parts.data.write(workdir.data_file)
        return Report(
            self._config,
            classes,
            directory=workdir.path,
            group=run_groups.group_folder(self._config),
            metrics_file=workdir.metrics_file,
            figures=workdir.figures,
            contents=workdir.contents(),
            description=workdir.describe(),
            first_step=step,
            last_step=self._clock.total,
            steps_per_epoch=self._parts.steps_per_epoch,
            evaluates_first=evaluates_first,
            evaluate_every=self._clock.evaluate_every,
        )

    @contextlib.contextmanager
    def _naming_lost_input(self) -> Iterator[None]:
        addresses, where = self._config.data.service_addresses(), self._workdir.checkpoints
        remains = f"the same command goes on from the newest checkpoint in {where}"
        lost_files = input_pipeline.naming_lost_files(self._parts.train_examples, self._parts.eval_examples)
        with lost_files, service_client.watched(addresses, remains):
            yield

    def _begin(self, step: int, owes_an_evaluation: bool) -> None:
        """Introduces a new run, and evaluates if an evaluation comes before the first step of this process."""
        if step == 0:
            self._report.begin(self._introduction)
            if not owes_an_evaluation:  # which will show them with their scores
                self._report.predictions(0, self._parts.eval_examples, self._parts.evaluator)
        results = self.evaluations.evaluate(step, self._report) if owes_an_evaluation else None
        if owes_an_evaluation and results is None:
            raise self._stopped(step)
        if owes_an_evaluation:
            self._end_if_patience_is_lost(step)
        self._results = results or self.evaluations.written(step)

    def _introduction(self) -> Introduction:
        return Introduction(
            card=catalog.open_data(self._config.data, self._parts.train_examples.classes).card(),
            model_diagram=model_diagram.draw(self._parts.model),
            graph=self._parts.evaluator.graph(),
            training_batch=pictures.training_batch(*self._first_batch(), self._parts.train_examples.classes),
        )

    def _first_batch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """The first examples of the run as the model sees them, so that a wrong augmentation is seen, not guessed."""
        examples, step = self._parts.train_examples, tf.constant(0, tf.int64)
        batch = input_pipeline.part_of_batch(
            examples,
            step,
            tf.range(min(SHEET_EXAMPLES, self._config.data.batch_size), dtype=tf.int64),
            batch_size=self._config.data.batch_size,
            seed=self._config.runtime.seed,
            order_version=self._config.runtime.example_order,
        )
        images, masks, weights, _ = self.trainer.prepare(batch, step)
        names = [examples.names[i] for i in batch["example_id"].numpy()]
        return images.numpy(), masks.numpy()[..., 0], weights.numpy(), names

    def _loop(self, step: int) -> None:
        """The outer loop: trains a while, then does what is due; again and again, to the end of the run."""
        stopwatch = self._stopwatch
        if step >= self._clock.total:
            return
        steps, skipped = range(step, self._clock.total), self._unusable_input.skipped
        batches = building.training_batches(
            self._config, self._placement.strategy, self._parts.train_examples, steps=steps, skipped=skipped
        )
        actions = self._actions()
        self.trainer.compile(batches)  # here, so that speed does not contain it
        profiled = self._clock.profile if self._placement.is_chief else (0, 0)
        profiler = Profiler(self._workdir.path / summaries.TRAIN, profiled)
        self._alarm.reset()
        stopwatch.reset()
        self._report.start()
        with contextlib.closing(profiler):
            while step < self._clock.total:  # which an evaluation may bring forward
                if self._alarm.rings():
                    self._requests.save.assign(1.0)
                with profiler.step(step):
                    stopwatch.steps(self.trainer.run(batches, self._clock.steps_to_next(step)))
                self._nonfinite_steps.check()
                step = self._step()
                pause = Pause(step, *self.trainer.requested())
                pause.stop |= self._unusable_input.log_skipped(step) and step < self._clock.total
                for action in actions:
                    if action.due(pause):
                        action.do(pause)
                if pause.stop:
                    if step < self._clock.total:
                        self._unusable_input.explain(step, stopped_by=self._signals.received)
                    raise self._stopped(step)

    def _actions(self) -> tuple[Action, ...]:
        """What is done between calls of the compiled loop, in this order.

        Saving comes last, so that all that belongs to a step precedes its checkpoint.
        """
        every = self._clock
        return (
            Action(lambda pause: self._due(pause, every.summarize_every), self._summarize),
            Action(lambda pause: self._due(pause, every.histogram_every), self._log_histograms),
            Action(lambda pause: True, lambda pause: self._report.advance(pause.step)),
            Action(lambda pause: self._due(pause, every.evaluate_every) and not pause.stop, self._evaluate),
            Action(lambda pause: self._due(pause, every.save_every) or pause.save or pause.stop, self._save),
        )

    def _due(self, pause: Pause, every: int) -> bool:
        return self._clock.due(pause.step, every)

    def _summarize(self, pause: Pause) -> None:
        """Tells what the steps since the last summary did; all processes read it together, for their sums meet here."""
        with self._stopwatch.timing("summaries"):
            sums = self.trainer.pop_measurements()
            took = self._stopwatch.pop_scalars(self._config.data.batch_size)
            self._report.summary(pause.step, sums, {**took, **telemetry.memory()})

    def _log_histograms(self, pause: Pause) -> None:
        with self._stopwatch.timing("summaries"):
            self._report.histograms(pause.step, self.trainer.weights(), self.trainer.gradients())

    def _evaluate(self, pause: Pause) -> None:
        try:
            results = self.evaluations.evaluate(pause.step, self._report)
        except DataError:  # an example cannot be used; the steps before are not lost
            if self._placement.cluster is None:  # where only the process that holds it knows, nobody can save
                self._save(pause)
            raise
        pause.stop, self._results = results is None, results or self._results
        if not pause.stop:
            self._end_if_patience_is_lost(pause.step)

    def _end_if_patience_is_lost(self, step: int) -> None:
        """Makes a step at which the run was evaluated the last one, if scores no longer get better; for all alike.

        The chief decides, for it is the one that wrote them.
        """
        found = None
        if self._placement.is_chief and step < self._clock.total:
            found = self._patience.standstill(step)
        if self._config.schedule.patience and any(self._placement.gather(int(found is not None))):
            self._clock = self._clock.ending_at(step)
        if found:
            logger.info("step %d: %s: the run ends here", step, found)

    def _save(self, pause: Pause) -> None:
        with self._stopwatch.timing("checkpoints"):
            self._report.flush()
            self.trainer.complete_state()
            self.checkpoints.save(pause.step)
        self._requests.save.assign(0.0)
        self._alarm.reset()

    def _step(self) -> int:
        return int(self.trainer.step.numpy())

    def _stopped(self, step: int) -> StoppedError:
        return self._signals.stopped(f"at step {step}; the same command goes on from {self._newest()}")

    def _newest(self) -> str:
        return self.checkpoints.newest() or "the start"

    def _example_ids(self, step: int, positions: np.ndarray) -> np.ndarray:
        with tf.device("cpu:0"):
            part = input_pipeline.part_of_batch(
                self._parts.train_examples,
                tf.constant(step, tf.int64),
                tf.constant(positions, tf.int64),
                batch_size=self._config.data.batch_size,
                seed=self._config.runtime.seed,
                order_version=self._config.runtime.example_order,
            )
        return part["example_id"].numpy()
