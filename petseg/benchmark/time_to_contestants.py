"""What trains until a score is reached, in a process of its own: petseg's whole loop, or Keras's."""

import contextlib
import math
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import keras
import tensorflow as tf

from petseg.benchmark import arithmetic
from petseg.benchmark.contestants import tutorials_batches
from petseg.benchmark.time_to_config import TimeToConfig
from petseg.config import Config
from petseg.data import catalog, example_order, loading
from petseg.errors import PetsegError, one_line
from petseg.evaluation import metrics
from petseg.evaluation.evaluator import Evaluator
from petseg.reporting.report import NullReport
from petseg.runs import building, model_selection, train
from petseg.runs.setup import set_up
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime import process
from petseg.runtime.signals import StopSignals
from petseg.training.stop_requests import StopRequests


class Reached(Exception):  # noqa: N818 (no error)
    """The target held twice in a row."""


class Timer:
    """Follows a contestant: its seconds, but for those of scoring, and its scores.

    Args:
      began: when its process was started, on the system's monotonic clock.
      target: the mean IoU to reach.
      tell: a function that is told each score.

    Attributes:
      scores: what was scored: `seconds`, `images` and `mean_iou`.
      start_up: seconds until the first steps were made; None before.
      first_images: number of images in those steps.
    """

    def __init__(self, began: float, target: float, tell: Callable[[dict[str, Any]], Any]):
        self._began, self._target, self._tell, self._scoring = began, target, tell, 0.0
        self.scores: list[dict[str, Any]] = []
        self.start_up: float | None = None
        self.first_images = 0

    def seconds(self) -> float:
        """The seconds that count."""
        return time.monotonic() - self._began - self._scoring

    def started(self, images: int) -> None:
        """Says that so many images were seen, for which all was compiled; counts the first time."""
        if self.start_up is None:
            self.start_up, self.first_images = self.seconds(), images

    def score(self, images: int, evaluate: Callable[[], float]) -> None:
        """Scores after so many images."""
        seconds, began = self.seconds(), time.monotonic()
        self.scores.append({"seconds": seconds, "images": images, "mean_iou": evaluate()})
        self._tell(self.scores[-1])
        self._scoring += time.monotonic() - began

    @property
    def reached(self) -> bool:
        """Whether the target held at the last two scores."""
        last = [score["mean_iou"] for score in self.scores[-2:]]
        return len(last) == 2 and min(last) >= self._target

    def result(self, images: int, flops: float, **more: Any) -> dict[str, Any]:
        """What is told at the end, after so many images of so many floating-point operations each."""
        last = self.scores[-1] if self.reached else {"seconds": self.seconds(), "images": images}
        return {
            "reached": self.reached,
            "seconds": last["seconds"],
            "start_up": self.start_up or 0.0,
            "images": last["images"],
            "operations": last["images"] * flops,
            "scores": self.scores,
            "whole_run": None,
            "computed": False,
            **more,
        }


def serve(connection: Connection, is_fit: bool, config: Config, time_to: TimeToConfig, began: float) -> None:
    """Trains for another process, and tells it each score, and the result.

    Args:
      connection: what leads to that process.
      is_fit: whether Keras's loop trains, and not petseg's.
      config: what to train.
      time_to: what is measured.
      began: when this process was started, on the system's monotonic clock.
    """
    timer = Timer(began, time_to.target, connection.send)
    try:
        connection.send((keras_fit if is_fit else whole_loop)(config, time_to, timer))
    except PetsegError as error:
        connection.send({"failed": str(error)})
    except Exception as error:
        connection.send({"failed": one_line(error)})


def whole_loop(config: Config, time_to: TimeToConfig, timer: Timer) -> dict[str, Any]:
    """`train.py`, from input to checkpoints, until the target is reached or the run ends."""
    size = config.data.batch_size
    if time_to.score_every:
        config = config.changed(schedule={"eval_every": max(1, time_to.score_every // size)})
    workdir = WorkDirectory.for_training(config.runtime.workdir, config.data.dataset)
    placement = process.set_up_runtime(config, config.distribution)
    experiment = set_up(config, workdir, placement, StopSignals())
    run, evaluate = experiment.trainer.run, experiment.evaluations.evaluate

    def timed_run(batches: Any, steps: int) -> Any:
        times = run(batches, steps)
        timer.started(len(times) * size)
        return times

    def scored(step: int, report: NullReport) -> dict[str, Any] | None:
        results: dict[str, Any] = {}

        def mean_iou() -> float:
            results.update(evaluate(step, report) or {})
            return model_selection.selected_results(config, results)["mean_iou"]

        timer.score(step * size, mean_iou)
        if timer.reached:
            raise Reached
        return results

    experiment.trainer.run = timed_run  # type: ignore[method-assign, assignment]
    experiment.evaluations.evaluate = scored  # type: ignore[method-assign]
    with contextlib.suppress(Reached):
        train.train_run(experiment)
    images = int(experiment.trainer.step.numpy()) * size
    return timer.result(images, _flops(config))


def keras_fit(config: Config, time_to: TimeToConfig, timer: Timer) -> dict[str, Any]:
    """`model.fit` with the tutorial's recipe and input, until the target is reached or the epochs are over.

    Or for a few steps only, which tell how long all epochs would take.
    """
    size, measured = config.data.batch_size, time_to.fit_steps
    keras.utils.set_random_seed(config.runtime.seed)
    model = building.build_model(config, catalog.classes_of(config.data), config.model.encoder_weights)
    model.compile(
        optimizer=keras.optimizers.Adam(config.optimizer.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    batches, count = tutorials_batches(config)
    an_epoch = example_order.steps_per_epoch(count, size)
    total = config.schedule.train_steps or config.schedule.epochs * an_epoch
    every = max(1, time_to.score_every // size) if time_to.score_every else an_epoch
    callback = _Scoring(timer, size, every=0 if measured else every, last=measured + 1 if measured else total)
    callback.evaluator = lambda: _evaluator(config, model)
    epochs = math.ceil(total / an_epoch)
    model.fit(batches, epochs=epochs, steps_per_epoch=an_epoch, callbacks=[callback], verbose=0)
    seconds, images = callback.seconds, callback.steps * size
    speed = (images - timer.first_images) / (seconds - (timer.start_up or 0.0))
    whole_run = (timer.start_up or 0.0) + (total * size - timer.first_images) / speed
    result = timer.result(images, _flops(config), whole_run=whole_run)
    if measured:
        operations = result["operations"] / result["images"] * total * size
        computed = {"reached": True, "seconds": whole_run, "images": total * size, "computed": True}
        result |= {**computed, "operations": operations}
    return result


class _Scoring(keras.callbacks.Callback):
    """Scores every so many steps, and ends the training when the target is reached, or after the last step."""

    evaluator: Callable[[], Evaluator]

    def __init__(self, timer: Timer, batch_size: int, *, every: int, last: int):
        super().__init__()
        self._timer, self._batch_size, self._every, self._last = timer, batch_size, every, last
        self._made: Evaluator | None = None
        self.steps, self.seconds = 0, 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        self._timer.started(self.steps * self._batch_size)
        self.seconds = self._timer.seconds()
        if self._every and (self.steps % self._every == 0 or self.steps == self._last):
            self._timer.score(self.steps * self._batch_size, self._mean_iou)
        if self._timer.reached or self.steps >= self._last:
            self.model.stop_training = True

    def _mean_iou(self) -> float:
        self._made = self._made or self.evaluator()
        evaluation = self._made.evaluate()
        assert evaluation is not None  # nobody asks it to stop
        return float(metrics.mean_iou(evaluation.confusion_matrix))


def _evaluator(config: Config, model: keras.Model) -> Evaluator:
    examples = loading.load(config.data, config.data.eval_split)
    return building.build_evaluator(config, tf.distribute.get_strategy(), model, examples, None, StopRequests())


def _flops(config: Config) -> float:
    """Floating-point operations of a training step, per image."""
    return arithmetic.of_training_step(building.build_model(config, catalog.classes_of(config.data)), 2)[0]
