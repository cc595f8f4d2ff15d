"""eval.py --watch: waits for new checkpoints of a run that is training."""

import logging
import time
from collections.abc import Iterator

from petseg.config.eval_config import ScoreConfig
from petseg.data import catalog, example_order
from petseg.runs import checkpoint_files, early_stopping
from petseg.runs.schedule import Schedule
from petseg.runs.trained_run import TrainedRun
from petseg.runs.work_directory import WorkDirectory

logger = logging.getLogger(__name__)


def wait_for_config(workdir: WorkDirectory, score: ScoreConfig) -> None:
    """Waits until a run has written its config.json."""
    deadline = time.monotonic() + score.watch_timeout
    while not workdir.config_file.is_file() and time.monotonic() < deadline:
        time.sleep(score.watch_interval)


def new_checkpoints(run: TrainedRun, score: ScoreConfig) -> Iterator[str]:
    """Paths of a run's checkpoints as they appear, oldest first, each once, until the run is complete."""
    seen: set[int] = set()
    deadline = time.monotonic() + score.watch_timeout
    while True:
        for step in reversed(checkpoint_files.steps(run.workdir.checkpoints)):
            if step not in seen:
                seen.add(step)
                yield run.path_of(step)
                deadline = time.monotonic() + score.watch_timeout
        if seen and (max(seen) >= last_step(run) or _stops_early(run, max(seen))):
            logger.info("%s is complete", run.workdir.path)
            return
        if time.monotonic() >= deadline:
            logger.warning("%s: no new checkpoint for %g s", run.workdir.path, score.watch_timeout)
            return
        time.sleep(score.watch_interval)


def _stops_early(run: TrainedRun, step: int) -> bool:
    return early_stopping.no_improvement(run.workdir.load_config(), run.workdir.metrics_file, step) is not None


def last_step(run: TrainedRun) -> int:
    """Last step of a run, by the config with which it was last started."""
    data, schedule, record = run.config.data, run.workdir.load_config().schedule, run.training_data
    count = (
        record.examples["train_split"]
        if record
        else catalog.open_data(data, run.classes).num_examples(data.train_split)
    )
    return Schedule.of(schedule, example_order.steps_per_epoch(count, data.batch_size)).last_step
