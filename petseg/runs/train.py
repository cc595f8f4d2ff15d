"""Trains a model: the outer loop around the compiled training steps.

The steps themselves are in `petseg.training.trainer`; what a run consists of is built in `petseg.runs.setup`.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from petseg import config as config_lib, custom_code
from petseg.config import Config
from petseg.data import input_pipeline, service_client
from petseg.errors import DataError
from petseg.files import explain_write_errors
from petseg.reporting import summaries, telemetry
from petseg.reporting.report import Report
from petseg.reporting.telemetry import Profiler
from petseg.runs import building, evaluations, nonfinite_steps, run_report, setup
from petseg.runs.schedule import Schedule
from petseg.runs.setup import Run
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime import gpu_peaks, process_setup
from petseg.runtime.signals import StopSignals

logger = logging.getLogger(__name__)


def train(config: Config) -> dict[str, Any]:
    """Trains to the end of the schedule, resuming from the latest checkpoint in the work directory.

    Returns the scores of the last evaluation, as in its results file. Raises PetsegError if data, work directory or
    checkpoint cannot be used, the loss is not finite, or a signal came.
    """
    if config.runtime.quiet:
        logging.getLogger("petseg").setLevel(logging.WARNING)
    workdir = WorkDirectory.for_training(config.runtime.workdir, config.data.dataset)
    resumes = workdir.config_file.exists()
    config = config.changed(runtime={"workdir": str(workdir.path)})
    config = config_lib.with_run_defaults(config, workdir.load_config() if resumes else None)
    if resumes:
        for name, (old, new) in workdir.reconcile(config).items():
            logger.info("changed: --%s was %r, is now %r", name, old, new)
    placement = process_setup.set_up_runtime(config, config.distribution, trains=True)
    with StopSignals() as signals:  # after TensorFlow, which installs a SIGTERM handler of its own in a cluster
        lock = workdir.locked() if placement.is_chief else contextlib.nullcontext()
        with placement.together(), explain_write_errors(workdir.path), lock, logging_redirect_tqdm():
            return train_run(setup.set_up(config, workdir, placement, signals))


def train_run(run: Run) -> dict[str, Any]:
    """Trains a run from its current step to the last one; returns the scores of the last evaluation."""
    step, schedule = run.step, run.schedule
    evaluates_first = evaluations.due_before_training(run, step, schedule)
    if not evaluates_first and evaluations.ends_early(run, step, schedule):
        schedule = schedule.ending_at(step)
    _log_position(run, step, schedule)
    report = run_report.open_report(run, step, schedule, evaluates_first=evaluates_first)
    with contextlib.closing(report):
        with run.signals.deferred(), _naming_lost_input(run), run.writer:
            if step == 0:
                run_report.log_introduction(run, report, evaluates_first=evaluates_first)
            results = evaluations.earlier_results(run, step)
            if evaluates_first:
                evaluated = evaluations.evaluate(run, step, report)
                if evaluated is None:
                    raise run.stopped()
                results = evaluated
                if evaluations.ends_early(run, step, schedule):
                    schedule = schedule.ending_at(step)
            if step < schedule.last_step:
                results = train_loop(run, report, step, schedule, results)
        report.finish(results)
    return results


def train_loop(run: Run, report: Report, step: int, schedule: Schedule, results: dict[str, Any]) -> dict[str, Any]:
    """The outer loop: trains up to the next due step, then summarises, evaluates and saves.

    A checkpoint comes last, so that everything that belongs to a step is written before it. Returns the scores of the
    last evaluation. Raises PetsegError if a stop request came, a loss is not finite, or an example or a file cannot be
    used.
    """
    trainer, stopwatch = run.trainer, run.stopwatch
    batches = building.training_batches(
        run.config,
        run.placement.strategy,
        run.train_examples,
        steps=range(step, schedule.last_step),
        bad_examples=run.bad_examples.log,
    )
    with custom_code.explained("step", run.config.extension.step):
        trainer.compile(batches)  # now, so that the measured speed does not include it
    flops_per_image = trainer.flops_per_image(batches)
    peak_tflops = gpu_peaks.peak_of_visible_devices(run.config) * run.placement.num_processes
    profiler = Profiler(run.workdir.path / summaries.TRAIN, schedule.profile if run.placement.is_chief else (0, 0))
    last_save = time.monotonic()
    stopwatch.reset()
    report.start()
    with contextlib.closing(profiler):
        while step < schedule.last_step:
            # 1. Train up to the next step at which something is due.
            if 0 < run.config.schedule.checkpoint_every_minutes * 60 <= time.monotonic() - last_save:
                run.requests.save.assign(1.0)
            with profiler.step(step):
                stopwatch.steps(trainer.run(batches, schedule.steps_to_next(step)))
            step = run.step
            stop, save = trainer.requested()
            nonfinite_steps.check(run)  # these three raise errors of the steps, of a save, and of examples
            run.writer.check()
            run.bad_examples.check(step)

            # 2. Summaries.
            if schedule.due(step, schedule.summary_every):
                times = stopwatch.pop_scalars(run.config.data.batch_size)
                with stopwatch.timing("summaries"):
                    images_per_second = times.get("speed/images_per_second", 0.0)
                    times |= telemetry.model_speed(images_per_second, flops_per_image, peak_tflops)
                    report.summary(step, trainer.pop_measurements(), {**times, **telemetry.memory()})
            if schedule.due(step, schedule.histogram_every):
                with stopwatch.timing("summaries"):
                    report.histograms(step, trainer.weights(), trainer.gradients())
            report.advance(step)

            # 3. Evaluation, which keeps the best checkpoint and may end the run early.
            if schedule.due(step, schedule.eval_every) and not stop:
                try:
                    evaluated = evaluations.evaluate(run, step, report)
                except DataError:  # a bad example in the evaluation split must not cost the steps before it
                    if run.placement.cluster is None:  # else the other processes would not save with this one
                        _save(run, report, step)
                    raise
                if evaluated is None:  # a stop request ended it; the next process evaluates first
                    stop = True
                else:
                    results = evaluated
                    if evaluations.ends_early(run, step, schedule):
                        schedule = schedule.ending_at(step)

            # 4. Checkpoint.
            if schedule.due(step, schedule.checkpoint_every) or save or stop:
                _save(run, report, step)
                last_save = time.monotonic()
            if stop:
                raise run.stopped()
    return results


def _save(run: Run, report: Report, step: int) -> None:
    """Saves a checkpoint, whose thread first forces the logs up to its step onto the disk."""
    with run.stopwatch.timing("checkpoints"):
        report.flush()
        run.trainer.complete_state()
        run.checkpoints.save(step, before=report.sync)
    run.requests.save.assign(0.0)


def _log_position(run: Run, step: int, schedule: Schedule) -> None:
    path, last_step = run.workdir.path, schedule.last_step
    if step > last_step:
        logger.info("%s is at step %d, beyond the last one, %d", path, step, last_step)
    elif step == last_step:
        logger.info("%s is complete: step %d of %d", path, step, last_step)
    else:
        logger.info("%s: steps %d to %d, %d an epoch", path, step, last_step, schedule.steps_per_epoch)


@contextlib.contextmanager
def _naming_lost_input(run: Run) -> Iterator[None]:
    """Replaces TensorFlow's errors for lost files and data services by one line each."""
    remains = f"rerun to resume from the newest checkpoint in {run.workdir.checkpoints}"
    lost_files = input_pipeline.naming_lost_files(run.train_examples, run.eval_examples)
    with lost_files, service_client.watch_services(run.config.data.service_addresses(), remains):
        yield
