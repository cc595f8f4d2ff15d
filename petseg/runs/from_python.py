"""petseg.train: training as a Python call, which restores the state of the process afterwards."""

import contextlib
import dataclasses
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.framework.config import is_op_determinism_enabled  # which has no public name

from petseg import config as config_lib
from petseg.config import Config
from petseg.errors import ConfigError, StoppedError
from petseg.reporting import summaries
from petseg.runs import train as training
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime import startup

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """A complete run.

    Attributes:
      workdir: its work directory, for `petseg.load`, `eval.py` and TensorBoard.
      scores: scores of its last evaluation, as in its results file.
    """

    workdir: Path
    scores: dict[str, Any]

    @property
    def history(self) -> list[dict[str, float]]:
        """All logged numbers, as rows for `pandas.DataFrame`.

        A row holds `step` and what was logged at that step, by names such as `train/loss` and `eval/mean_iou`.
        """
        rows: dict[int, dict[str, float]] = {}
        for step, run, tag, value in summaries.read_csv(WorkDirectory(self.workdir).metrics_file):
            rows.setdefault(step, {"step": step})[f"{run}/{tag}"] = value
        return [rows[step] for step in sorted(rows)]


def train(config: Config, **code: Callable[..., Any]) -> Run:
    """Trains to the end of the schedule, resuming in the config's work directory; creates one if none is named.

    Several trainings in one process give the same results as in processes of their own. The seeds of TensorFlow and
    Keras stay those of the last one. TensorFlow cannot undo op determinism or virtual devices; a warning says so.

    Args:
      **code: functions or classes for flags that take code, at the top level of a module, script or notebook:
        `petseg.train(config, loss=my_loss)`.

    Raises:
      PetsegError: if something cannot be used, or the loss is not finite; its text is one line.
      KeyboardInterrupt: on Ctrl-C or a notebook's stop button; the same call resumes the run.
    """
    if not isinstance(config, Config):
        raise ConfigError(
            f"config: got {config!r}; must be a petseg.Config, such as petseg.Config.preset('quickstart')"
        )
    config = config_lib.with_code(config, code)
    if is_op_determinism_enabled() and not config.runtime.deterministic:
        logger.warning("op determinism is on since an earlier training in this process; TensorFlow cannot turn it off")
    workdir = WorkDirectory.for_training(config.runtime.workdir, config.data.dataset)
    config = config.changed(runtime={"workdir": str(workdir.path)})
    with _restoring_process_state(), _graphs_freed(), startup.collecting_garbage_rarely():
        try:
            scores = training.train(config)
        except StoppedError as stopped:
            raise KeyboardInterrupt(str(stopped)) from None
    return Run(workdir.path, scores)


@contextlib.contextmanager
def _restoring_process_state() -> Iterator[None]:
    """Restores log level, random states and TensorFloat-32, which training sets for the whole process."""
    package = logging.getLogger("petseg")
    level, python_state, numpy_state = package.level, random.getstate(), np.random.get_state()
    tensor_float_32 = tf.config.experimental.tensor_float_32_execution_enabled()
    if level == logging.NOTSET:
        package.setLevel(logging.INFO)  # shows the progress bar; log lines appear only where logging is set up
    try:
        yield
    finally:
        package.setLevel(level)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        tf.config.experimental.enable_tensor_float_32_execution(tensor_float_32)


@contextlib.contextmanager
def _graphs_freed() -> Iterator[None]:
    """Unregisters the custom gradients that the block traced.

    TensorFlow never does. Each one refers to tensors of its graph and so keeps graph and model alive: 40 MiB and more
    per training.
    """
    gradients = ops.gradient_registry._registry  # the public API cannot unregister
    before = set(gradients)
    try:
        yield
    finally:
        for name in set(gradients) - before:
            if name.startswith("CustomGradient-"):
                del gradients[name]
