"""Runs what a config describes; the only module that knows all others."""

import contextlib
import dataclasses
import json
import logging
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from petseg import (
    building,
    checkpointing,
    config as config_lib,
    evaluator,
    metrics,
    summaries,
    trainer,
    unet,
    visualization,
)
from petseg.clock import Alarm, Clock, Timer
from petseg.config import CLASS_NAMES, Config, EvalConfig
from petseg.data import datasets, input_pipeline
from petseg.distribution import Placement
from petseg.errors import ClusterError, DataError, NonFiniteLossError, StoppedError, WorkDirectoryError
from petseg.signals import StopSignals
from petseg.work_directory import WorkDirectory, write_json

logger = logging.getLogger(__name__)
SHEET_EXAMPLES = 8


def train(config: Config) -> dict[str, Any]:
    """Trains to the end of the schedule, from where the work directory stands.

    Returns:
      the scores of the last evaluation, as in its results file.

    Raises:
      PetsegError: if data, work directory or checkpoint cannot be used, the loss is not finite, or a signal came.
    """
    workdir = WorkDirectory.for_training(config.runtime.workdir, config.data.dataset)
    config = dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, workdir=str(workdir.path)))
    if workdir.config_file.exists():
        for name, (old, new) in workdir.reconcile(config).items():
            logger.info("changed: --%s was %r, is now %r", name, old, new)
    placement = building.set_up_runtime(config, config.distribution)
    with StopSignals() as signals:  # not before: in a cluster, TensorFlow puts a SIGTERM handler of its own in place
        lock = workdir.locked() if placement.is_chief else contextlib.nullcontext()
        with lock, logging_redirect_tqdm(), placement.naming_lost_workers(), _naming_full_disks(workdir):
            return Experiment(config, workdir, placement, signals).run()


@contextlib.contextmanager
def _naming_full_disks(workdir: WorkDirectory) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorkDirectoryError(f"{error.filename or workdir.path}: cannot be written: {error.strerror}") from error


class Experiment:
    """One training run in its work directory."""

    def __init__(self, config: Config, workdir: WorkDirectory, placement: Placement, signals: StopSignals):
        self.config, self.workdir, self.placement, self.signals = config, workdir, placement, signals
        strategy, data = placement.strategy, config.data
        input_pipeline.check_divides(strategy, data.batch_size)
        trainer.check_step(
            strategy,
            batch_size=data.batch_size,
            micro_batches=config.compute.micro_batches,
            sync_batch_norm=config.model.sync_batch_norm,
            jit_compile=config.compute.jit_compile,
        )
        resume_from = checkpointing.newest_intact(workdir.checkpoints)
        if not resume_from:
            unet.check_encoder_weights(config.model.encoder_weights)
        self.train_examples = datasets.load(data.dataset, data.train_split, data.image_size, data.data_dir)
        self.eval_examples = datasets.load(data.dataset, data.eval_split, data.image_size, data.data_dir)
        self.steps_per_epoch = input_pipeline.steps_per_epoch(len(self.train_examples), data.batch_size)
        self.clock = Clock.of(config.schedule, self.steps_per_epoch)
        self.class_weights = building.resolve_class_weights(config, self.train_examples)
        self.requests = trainer.Requests()
        signals.call(lambda: self.requests.stop.assign(1.0))
        with strategy.scope():
            self.model = building.build_model(config, None if resume_from else self.train_examples)
            self.trainer = building.build_trainer(
                config, strategy, self.model, self.class_weights, self.clock.total, self.requests
            )
            self.evaluator = building.build_evaluator(config, strategy, self.model, self.class_weights, self.requests)
        saves = placement.is_chief
        self.checkpoints = checkpointing.Checkpoints(
            workdir.checkpoints, keep=config.schedule.keep_checkpoints, saves=saves, **self.trainer.state()
        )
        self.best = checkpointing.BestCheckpoint(workdir.best, saves=saves, model=self.model, step=self.trainer.step)
        self._nonfinite_events = 0
        if resume_from:
            self.checkpoints.restore(resume_from)
            logger.info("resumed from %s", resume_from)
        self._check_agreement()

    def _check_agreement(self) -> None:
        """Processes that train different things would train nonsense together, or wait for each other for ever."""
        step, name = self._step(), self.placement.name
        if len(set(self.placement.gather(step))) > 1:
            raise ClusterError(
                f"{name} stands at step {step}, another process elsewhere: "
                f"--workdir={self.workdir.path} must be the same folder for all of them"
            )
        if len(set(self.placement.gather(config_lib.fingerprint(self.config)))) > 1:
            raise ClusterError(f"{name} was started with other flags than another process; takes one set for all")

    def run(self) -> dict[str, Any]:
        """Trains from where the run stands to the end."""
        step, clock = self._step(), self.clock
        if step >= clock.total:
            logger.info("%s is complete: step %d of %d", self.workdir.path, step, clock.total)
        else:
            logger.info("%s: steps %d to %d, %d an epoch", self.workdir.path, step, clock.total, self.steps_per_epoch)
        log = None
        if self.placement.is_chief:
            devices = [device.name for device in tf.config.list_logical_devices()]
            self.workdir.save_config(self.config, class_weights=self.class_weights, devices=devices)
            log = summaries.Summaries(self.workdir.path, self.workdir.metrics_file, first_step=step)
        try:
            with self.signals.deferred():
                results = self._loop(step, log)
        finally:
            if log is not None:
                log.close()
        if self.placement.is_chief:
            self._finish(results)
        self.placement.gather(0)  # nobody leaves while another one works
        return results

    def _loop(self, step: int, log: summaries.Summaries | None) -> dict[str, Any]:
        """The outer loop: train a while, then summarise, evaluate and save when the clock says so."""
        clock = self.clock
        batches = self._batches(step)
        if step == 0 and log is not None:
            log.arrange()
            log.text(0, "config", config_lib.markdown_of(self.config))
            log.text(0, "run", self.workdir.describe())
            log.image(summaries.TRAIN, 0, "model", visualization.to_array(visualization.model_diagram(self.model)))
        results = self._catch_up(step, log)
        if step < clock.total:
            self.trainer.run(batches, 0)  # compiles, so that images/s does not contain it
        timer, alarm = Timer(), Alarm(self.config.schedule.checkpoint_every_minutes)
        hidden = None if self.placement.is_chief else True
        with tqdm.tqdm(total=clock.total, initial=step, unit="step", disable=hidden, dynamic_ncols=True) as bar:
            while step < clock.total:
                if alarm.rings():
                    self.requests.save.assign(1.0)
                with timer:
                    self.trainer.run(batches, clock.steps_to_next(step))
                    step = self._step()
                bar.update(step - bar.n)
                self._check_finite()
                stop, save = self.trainer.requested()
                if clock.due(step, clock.summary):
                    self._summarize(step, timer, log, bar)
                if clock.due(step, clock.evaluation) and not stop:
                    evaluated = self._evaluate(step, log)
                    stop, results = evaluated is None, evaluated or results
                if clock.due(step, clock.checkpoint) or save or stop:
                    self._save(step, log)  # last, so that all that belongs to a step precedes its checkpoint
                    self.requests.save.assign(0.0)
                    alarm.reset()
                if stop:
                    raise self._stopped(step)
        return results

    def _batches(self, step: int) -> Any:
        return iter(
            input_pipeline.distributed_training_batches(
                self.placement.strategy,
                self.train_examples,
                batch_size=self.config.data.batch_size,
                seed=self.config.runtime.seed,
                first_step=step,
                last_step=self.clock.total,
            )
        )

    def _catch_up(self, step: int, log: summaries.Summaries | None) -> dict[str, Any]:
        """Evaluates what a process that was stopped at this step could not; returns the results of this step.

        Raises:
          StoppedError: if a signal came meanwhile.
        """
        file = self.workdir.results_file(self.config.data.eval_split, step)
        missing = step == 0 or (self.clock.due(step, self.clock.evaluation) and not file.exists())
        if not any(self.placement.gather(int(missing))):
            return json.loads(file.read_text()) if file.exists() else {}
        results = self._evaluate(step, log)
        if results is None:
            raise self._stopped(step)
        return results

    def _save(self, step: int, log: summaries.Summaries | None) -> None:
        if log is not None:
            log.flush()
        self.trainer.settle()
        self.checkpoints.save(step)

    def _step(self) -> int:
        return int(self.trainer.step.numpy())

    def _stopped(self, step: int) -> StoppedError:
        where = self.checkpoints.newest() or "the start"
        sender = "" if self.signals.received else ", sent to another process,"
        number = self.signals.received or signal.SIGTERM
        return StoppedError(number, f"{sender} at step {step}; the same command goes on from {where}")

    def _check_finite(self) -> None:
        """Ends the run, or sees to it that it can go on, after a step that was not finite.

        Raises:
          NonFiniteLossError: if the run must end.
        """
        step, mode = int(self.trainer.nonfinite_step.numpy()), self.config.runtime.on_nonfinite
        if step < 0:
            return
        replicas = self.trainer.nonfinite_replicas()
        latest = self.checkpoints.newest()
        what = f"the loss or its gradient is not finite at step {step}{self._origin(step, replicas)}"
        self._nonfinite_events += 1
        too_often = self._nonfinite_events > self.config.runtime.nonfinite_limit
        if mode == "halt" or too_often or (mode == "restore" and latest is None):
            raise NonFiniteLossError(f"{what}; the last good checkpoint is {latest or '(none yet)'}")
        if mode == "restore" and latest is not None:
            logger.warning("%s; back to the weights of %s", what, latest)
            now = self._step()
            self.checkpoints.restore(latest)
            self.trainer.step.assign(now)  # else the same batch would come again
            self.trainer.read_sums()
        else:
            logger.warning("%s; skipped", what)
        self.trainer.go_on()

    def _origin(self, step: int, replicas: list[int]) -> str:
        """Which replicas, and which examples they had."""
        if not replicas:
            return " (in the sum over all replicas)"
        size = self.config.data.batch_size // self.placement.strategy.num_replicas_in_sync
        positions = np.concatenate([np.arange(size) + replica * size for replica in replicas])
        ids = input_pipeline.example_ids(
            tf.constant(step, tf.int64),
            tf.constant(positions, tf.int64),
            num_examples=len(self.train_examples),
            batch_size=self.config.data.batch_size,
            seed=self.config.runtime.seed,
        )
        return f" on replica {', '.join(map(str, replicas))} (examples {', '.join(map(str, ids.numpy()))})"

    def _summarize(self, step: int, timer: Timer, log: summaries.Summaries | None, bar: tqdm.tqdm) -> None:
        sums = self.trainer.read_sums()  # by all processes, for their sums meet here
        if log is None:
            return
        scores = metrics.from_confusion_matrix(sums.confusion_matrix, CLASS_NAMES)
        images_per_second = timer.rate(sums.steps * self.config.data.batch_size)
        scalars = {
            "loss": sums.loss,
            **summaries.scalars_of(scores),
            "learning_rate": sums.learning_rate,
            "gradient_norm": sums.gradient_norm,
            "weight_norm": sums.weight_norm,
            "update_ratio": sums.update_ratio,
            "loss_scale": sums.loss_scale,
            "skipped_steps": sums.skipped_steps,
            "images_per_second": images_per_second,
        }
        log.scalars(summaries.TRAIN, step, scalars)
        shown = f"loss {sums.loss:.4f}, mean IoU {scores['mean_iou']:.4f}, {images_per_second:.1f} images/s"
        bar.set_postfix_str(shown)
        if bar.disable:
            logger.info("step %d/%d: %s", step, self.clock.total, shown)

    def _evaluate(self, step: int, log: summaries.Summaries | None) -> dict[str, Any] | None:
        """Scores the evaluation split and keeps what is best; None if a signal ended it early."""
        evaluation = self.evaluator.evaluate(self.eval_examples, batch_size=self.config.data.batch_size)
        if evaluation.examples < len(self.eval_examples):
            return None
        split = self.config.data.eval_split
        results = evaluation.results(step, split)
        if log is None:
            return results
        if step:
            self.best.offer(results["mean_iou"], step)
        write_json(self.workdir.results_file(split, step), results)  # after this, nothing is left to catch up with
        logger.info(
            "step %d: %s: loss %.4f, accuracy %.4f, mean IoU %.4f (%s)",
            step, split, results["loss"], results["accuracy"], results["mean_iou"],
            ", ".join(f"{name} {value:.4f}" for name, value in results["iou"].items()),
        )  # fmt: skip
        log.scalars(summaries.EVAL, step, summaries.scalars_of(results))
        log.image(summaries.EVAL, step, "predictions", visualization.to_array(self._prediction_sheet()))
        return results

    def _prediction_sheet(self) -> Any:
        some = slice(0, SHEET_EXAMPLES)
        images = self.eval_examples.images[some]
        masks, names = self.eval_examples.masks[some, ..., 0], self.eval_examples.names[some]
        return visualization.prediction_sheet(images, masks, self.evaluator.predict(images), names)

    def _finish(self, results: Mapping[str, Any]) -> None:
        figures = self.workdir.figures
        rows = summaries.read_csv(self.workdir.metrics_file)
        visualization.save(visualization.training_curves(rows, self.steps_per_epoch), figures / "curves.png")
        visualization.save(self._prediction_sheet(), figures / "predictions.png")
        visualization.save(visualization.model_diagram(self.model), figures / "model.png")
        print(evaluator.table(results))
        print(f"\nwork directory: {self.workdir.path}")
        print(f"score it:       python eval.py --workdir={self.workdir.path} --checkpoint=best")
        print(f"watch it:       tensorboard --logdir={self.workdir.path}")


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Scores one checkpoint of a run on a split, writes the results file, prints the table.

    Raises:
      PetsegError: if work directory, checkpoint or split cannot be used, or a signal came.
    """
    score = config.score
    workdir = WorkDirectory(score.workdir)
    run = workdir.load_config()
    path = checkpointing.find(workdir.checkpoints, workdir.best, score.checkpoint)
    split, data_dir = score.split or run.data.eval_split, score.data_dir or run.data.data_dir
    shared = datasets.overlap(run.data.dataset, split, run.data.train_split, data_dir)
    if shared and not score.allow_training_images:
        raise DataError(
            f"--split={split}: {shared} of its images were trained on ({run.data.train_split}); "
            "a score on them says little; --allow_training_images scores them all the same"
        )
    placement = building.set_up_runtime(run, config.distribution)
    with StopSignals() as signals:
        requests = trainer.Requests()
        signals.call(lambda: requests.stop.assign(1.0))
        examples = datasets.load(run.data.dataset, split, run.data.image_size, data_dir)
        with placement.strategy.scope():
            model = building.build_model(run, None)
            scorer = building.build_evaluator(run, placement.strategy, model, workdir.load_class_weights(), requests)
        step = checkpointing.restore_model(path, model)
        evaluation = scorer.evaluate(examples, batch_size=score.batch_size or run.data.batch_size)
    results = evaluation.results(step, split)
    if placement.is_chief:
        results_file = workdir.results_file(split, step)
        write_json(results_file, results)
        print(evaluator.table(results))
        print(f"\ncheckpoint: {path}\nresults:    {results_file}")
    placement.gather(0)
    return results
