"""Trains what a config describes: builds it, runs the outer loop, keeps the work directory."""

import contextlib
from petseg.data import example_order
from petseg.models import encoders
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from tqdm.contrib.logging import logging_redirect_tqdm

from petseg.evaluation import analysis
from petseg.runs import building, checkpoints
from petseg import config as config_lib
from petseg.reporting import report as report_lib, summaries, telemetry, pictures
from petseg.training import trainer
from petseg.models import unet
from petseg.runs.schedule import Alarm, Clock
from petseg.config import Config
from petseg.data import catalog, decoding, input_pipeline, service_client
from petseg.runtime.strategies import Placement
from petseg.errors import ClusterError, NonFiniteLossError, StoppedError
from petseg.evaluation.evaluator import Evaluation
from petseg.reporting.report import Report
from petseg.runs.signals import StopSignals
from petseg.reporting.summaries import EMA, EVAL
from petseg.reporting.telemetry import Profiler, Stopwatch
from petseg.runs.work_directory import WorkDirectory
from petseg.files import naming_what_cannot_be_written, read_json, write_json

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
    config = dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, workdir=str(workdir.path)))
    if workdir.config_file.exists():
        for name, (old, new) in workdir.reconcile(config).items():
            logger.info("changed: --%s was %r, is now %r", name, old, new)
    placement = building.set_up_runtime(config, config.distribution)
    with StopSignals() as signals:  # not before: in a cluster, TensorFlow puts a SIGTERM handler of its own in place
        lock = workdir.locked() if placement.is_chief else contextlib.nullcontext()
        with lock, logging_redirect_tqdm(), placement.naming_lost_workers(), naming_what_cannot_be_written(workdir.path):
            return Experiment(config, workdir, placement, signals).run()


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
        service_client.wait_for(data.service_addresses(), config.distribution.cluster_timeout)
        resume_from = checkpoints.newest_intact(workdir.checkpoints)
        if not resume_from:
            building.check_init_from(config.model.init_from)
            if not config.model.init_from:
                encoders.check_encoder_weights(config.model.encoder_weights)
        self.train_examples, self.eval_examples = (
            decoding.load(
                data.dataset, split, data.image_size, data.data_dir, cache=data.cache, cache_dir=data.cache_dir
            )
            for split in (data.train_split, data.eval_split)
        )
        self.steps_per_epoch = example_order.steps_per_epoch(len(self.train_examples), data.batch_size)
        self.clock = Clock.of(config.schedule, self.steps_per_epoch)
        self.class_weights = building.resolve_class_weights(config, self.train_examples)
        self.requests = trainer.Requests()
        signals.call(lambda: self.requests.stop.assign(1.0))
        with strategy.scope():
            given = resume_from or config.model.init_from
            self.model = building.build_model(config, None if given else self.train_examples)
            if config.model.init_from and not resume_from:
                building.initialize_from(config.model.init_from, config, self.model)
            self.trainer = building.build_trainer(
                config, strategy, self.model, self.class_weights, self.clock.total, self.requests
            )
            self.evaluator = building.build_evaluator(
                config, strategy, self.model, self.eval_examples, self.class_weights, self.requests
            )
        saves = placement.is_chief
        self.checkpoints = checkpoints.Checkpoints(
            workdir.checkpoints, keep=config.schedule.keep_checkpoints, saves=saves, **self.trainer.state()
        )
        self.best = checkpoints.BestCheckpoint(workdir.best, saves=saves, **self.trainer.scored_state())
        self._nonfinite_events = 0
        self._stopwatch = Stopwatch()
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
        if len(set(self.placement.gather(checkpoints.checksum(self.model)))) > 1:
            raise ClusterError(f"{name} begins with other weights than another process; takes the same files for all")

    def run(self) -> dict[str, Any]:
        """Trains from where the run stands to the end."""
        step, clock = self._step(), self.clock
        if step > clock.total:
            logger.info("%s stands at step %d, beyond the last one, %d", self.workdir.path, step, clock.total)
        elif step == clock.total:
            logger.info("%s is complete: step %d of %d", self.workdir.path, step, clock.total)
        else:
            logger.info("%s: steps %d to %d, %d an epoch", self.workdir.path, step, clock.total, self.steps_per_epoch)
        owes = self._owes_an_evaluation(step)
        report = None
        if self.placement.is_chief:
            devices = [device.name for device in tf.config.list_logical_devices()]
            self.workdir.save_config(self.config, class_weights=self.class_weights, devices=devices)
            report = Report(self.config, self.workdir, clock, self.steps_per_epoch, step, evaluates_first=owes)
        with contextlib.ExitStack() as stack:
            if report is not None:
                stack.callback(report.close)
            with self.signals.deferred(), self._naming_lost_input():
                results = self._loop(step, owes, report)
            if report is not None:
                report.finish(results)
        self.placement.gather(0)  # nobody leaves while another one works
        return results

    @contextlib.contextmanager
    def _naming_lost_input(self) -> Iterator[None]:
        addresses, where = self.config.data.service_addresses(), self.workdir.checkpoints
        remains = f"the same command goes on from the newest checkpoint in {where}"
        lost_files = input_pipeline.naming_lost_files(self.train_examples, self.eval_examples)
        with lost_files, service_client.watched(addresses, remains):
            yield

    def _loop(self, step: int, owes: bool, report: Report | None) -> dict[str, Any]:
        """The outer loop: train a while, then summarise, evaluate and save when the clock says so."""
        clock, stopwatch = self.clock, self._stopwatch
        batches = self._batches(step)
        if step == 0 and report is not None:
            self._begin(report)
        results = self._evaluate(step, report) if owes else self._written_results(step)
        if results is None:
            raise self._stopped(step)
        if step < clock.total:
            self.trainer.run(batches, 0)  # compiles, so that speed does not contain it
        alarm = Alarm(self.config.schedule.checkpoint_every_minutes)
        profiler = Profiler(self.workdir.path / summaries.TRAIN, clock.profile if report is not None else (0, 0))
        stopwatch.reset()
        if report is not None:
            report.progress.start()
        with contextlib.closing(profiler):
            while step < clock.total:
                if alarm.rings():
                    self.requests.save.assign(1.0)
                with profiler.step(step):
                    stopwatch.steps(self.trainer.run(batches, clock.steps_to_next(step)))
                step = self._step()
                self._check_finite()
                stop, save = self.trainer.requested()
                with stopwatch.timing("summaries"):
                    self._summarize(step, report)
                if clock.due(step, clock.evaluation) and not stop:
                    evaluated = self._evaluate(step, report)
                    stop, results = evaluated is None, evaluated or results
                if clock.due(step, clock.checkpoint) or save or stop:
                    with stopwatch.timing("checkpoints"):
                        self._save(step, report)  # last, so that all that belongs to a step precedes its checkpoint
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
                addresses=self.config.data.service_addresses(),
            )
        )

    def _begin(self, report: Report) -> None:
        data = self.config.data
        report.begin(
            card=catalog.card(data.dataset, data.data_dir),
            model_diagram=pictures.model_diagram(self.model),
            graph=self.evaluator.graph(),
            training_batch=self._drawing_of_first_batch(),
        )
        if not self.config.schedule.eval_at_start:  # which will show them with their scores
            report.predictions(0, self.eval_examples, self.evaluator)

    def _drawing_of_first_batch(self) -> Figure:
        """The first examples of the run as the model sees them, so that a wrong augmentation is seen, not guessed."""
        positions = np.arange(min(report_lib.SHEET_EXAMPLES, self.config.data.batch_size))
        ids = self._example_ids(0, positions)
        batch = {
            "image": tf.constant(self.train_examples.images[ids]),
            "mask": tf.constant(self.train_examples.masks[ids]),
            "position": tf.constant(positions, tf.int64),
        }
        images, masks, weights, _ = self.trainer.prepare(batch, tf.constant(0, tf.int64))
        names = [self.train_examples.names[i] for i in ids]
        return pictures.training_batch(images.numpy(), masks.numpy()[..., 0], weights.numpy(), names)

    def _owes_an_evaluation(self, step: int) -> bool:
        """Whether an evaluation comes first: at the start if asked for, else one that a stopped process has left undone.

        What was done is told by files that only training writes; results may be those of eval.py.
        """
        if step == 0:
            owes = self.config.schedule.eval_at_start
        else:
            done = summaries.was_evaluated(self.workdir.metrics_file, step) and self._results_file(step).exists()
            owes = self.clock.due(step, self.clock.evaluation) and not done
        return any(self.placement.gather(int(owes)))

    def _written_results(self, step: int) -> dict[str, Any]:
        """What `_evaluate` returned at a step, from its files; nothing if there are none."""
        results, averaged = (
            read_json(file) if file.exists() else {}
            for file in (self._results_file(step), self._results_file(step, EMA))
        )
        return {**results, EMA: averaged} if averaged else results

    def _results_file(self, step: int, run: str = EVAL) -> Path:
        return self.workdir.results_file(self.config.data.eval_split, step, "" if run == EVAL else run)

    def _save(self, step: int, report: Report | None) -> None:
        if report is not None:
            report.flush()
        self.trainer.settle()
        self.checkpoints.save(step)

    def _step(self) -> int:
        return int(self.trainer.step.numpy())

    def _stopped(self, step: int) -> StoppedError:
        where = self.checkpoints.newest() or "the start"
        return self.signals.stopped(f"at step {step}; the same command goes on from {where}")

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
        ids = self._example_ids(step, positions)
        return f" on replica {', '.join(map(str, replicas))} (examples {', '.join(map(str, ids))})"

    def _example_ids(self, step: int, positions: np.ndarray) -> np.ndarray:
        return example_order.example_ids(
            tf.constant(step, tf.int64),
            tf.constant(positions, tf.int64),
            num_examples=len(self.train_examples),
            batch_size=self.config.data.batch_size,
            seed=self.config.runtime.seed,
        ).numpy()

    def _summarize(self, step: int, report: Report | None) -> None:
        """Tells what is due; what it tells, all processes read together, for their sums meet there."""
        if self.clock.due(step, self.clock.summary):
            sums = self.trainer.read_sums()
            if report is not None:
                took = self._stopwatch.read(self.config.data.batch_size)
                report.summary(step, sums, {**took, **telemetry.memory()})
        if self.clock.due(step, self.clock.histogram):
            gradients = self.trainer.gradients()
            if report is not None:
                report.histograms(step, self.trainer.weights(), gradients)
        if report is not None:
            report.progress.advance(step)

    def _evaluate(self, step: int, report: Report | None) -> dict[str, Any] | None:
        """Scores the evaluation split and keeps what is best; None if a signal ended it early.

        Where weights are averaged, both are scored; the results of the averaged ones stand under "ema" in the others.
        """
        evaluations = self._score()
        if evaluations is None:
            return None
        split = self.config.data.eval_split
        by_run = {run: analysis.results(evaluation, step, split) for run, evaluation in evaluations.items()}
        results = {**by_run[EVAL], **{run: by_run[run] for run in by_run if run != EVAL}}
        if report is None:
            return results
        if step:
            with self._stopwatch.timing("checkpoints"):
                self.best.offer(by_run[report_lib.shown(by_run)]["mean_iou"], step)
        for run, scores in reversed(by_run.items()):
            write_json(self._results_file(step, run), scores)
            logger.info(
                "step %d: %s%s: loss %.4f, accuracy %.4f, mean IoU %.4f (%s)",
                step, split, "" if run == EVAL else f", {run}", scores["loss"], scores["accuracy"], scores["mean_iou"],
                ", ".join(f"{name} {value:.4f}" for name, value in scores["iou"].items()),
            )  # fmt: skip
        with self._stopwatch.timing("summaries"), self._averaged_weights():
            report.evaluation(step, evaluations, by_run, self.eval_examples, self.evaluator)
        return results

    def _score(self) -> dict[str, Evaluation] | None:
        """Evaluates the weights, and their averages where there are any; None if a signal ended it early."""
        with self._stopwatch.timing("evaluation"):
            found = {EVAL: self.evaluator.evaluate()}
            if self.trainer.average is not None:
                with self._averaged_weights():
                    found[EMA] = self.evaluator.evaluate()
        complete = {run: evaluation for run, evaluation in found.items() if evaluation is not None}
        return complete if len(complete) == len(found) else None

    def _averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Has the averages in the model for a while, where there are any."""
        average = self.trainer.average
        return contextlib.nullcontext() if average is None else average.in_place()
