"""Contestants of --measure=time_to: petseg's whole loop and Keras's, each trained until it reaches a score."""

import contextlib
import functools
import math
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import keras
import tensorflow as tf

from petseg.benchmark.contestants import compile_as_tutorial, set_up_run, tutorial_batches
from petseg.benchmark.time_to_score import TimeToScoreConfig, holds, reached_at_end
from petseg.config import Config
from petseg.data import catalog, example_order, loading
from petseg.evaluation import metrics
from petseg.evaluation.evaluator import Evaluator
from petseg.reporting.report import Report
from petseg.runs import building, evaluations, model_selection, train
from petseg.runs.setup import Run
from petseg.training import flops
from petseg.training.stop_requests import StopRequests


class TargetReached(Exception):  # noqa: N818 (not an error)
    """The target score held at two evaluations in a row."""


class Timer:
    """Records a contestant's scores and its training time, which excludes scoring.

    Args:
      began: start of its process, in seconds of the system's monotonic clock.

    Attributes:
      scores: dictionaries with `seconds`, `images` and `mean_iou`.
    """

    def __init__(self, began: float, target: float, on_score: Callable[[dict[str, Any]], Any]):
        self._began, self._target, self._on_score, self._scoring = began, target, on_score, 0.0
        self.scores: list[dict[str, Any]] = []
        self.start_up: float | None = None
        self.first_images = 0

    def seconds(self) -> float:
        """Seconds of training so far, with start-up and without scoring."""
        return time.monotonic() - self._began - self._scoring

    def started(self, images: int) -> None:
        """Records the end of start-up: the first call, after so many images, counts."""
        if self.start_up is None:
            self.start_up, self.first_images = self.seconds(), images

    def score(self, images: int, evaluate: Callable[[], float]) -> None:
        """Scores after so many images."""
        seconds, began = self.seconds(), time.monotonic()
        self.scores.append({"seconds": seconds, "images": images, "mean_iou": evaluate()})
        self._on_score(self.scores[-1])
        self._scoring += time.monotonic() - began

    @property
    def reached(self) -> bool:
        """Whether the target held at the last two scores."""
        return holds(self.scores, self._target)

    def result(self, images: int, flops: float, **more: Any) -> dict[str, Any]:
        """The row of a run that has ended, as `time_to_score.race` describes it."""
        reached = reached_at_end(self.scores, self._target)
        last = self.scores[-1] if reached else {"seconds": self.seconds(), "images": images}
        return {
            "reached": reached,
            "seconds": last["seconds"],
            "start_up": self.start_up or 0.0,
            "images": last["images"],
            "operations": last["images"] * flops,
            "scores": self.scores,
            "whole_run": None,
            "computed": False,
            **more,
        }


def serve(connection: Connection, use_fit: bool, config: Config, time_to: TimeToScoreConfig, began: float) -> None:
    """Trains for another process, and sends it each score, then the result."""
    timer = Timer(began, time_to.target, connection.send)
    connection.send((keras_fit if use_fit else whole_loop)(config, time_to, timer))


def whole_loop(config: Config, time_to: TimeToScoreConfig, timer: Timer) -> dict[str, Any]:
    """`train.py`, from input to checkpoints, until the target is reached or the run ends."""
    size = config.data.batch_size
    if time_to.score_every:
        config = config.changed(schedule={"eval_every": max(1, time_to.score_every // size)})
    run = set_up_run(config)
    train_steps, evaluate = run.trainer.run, evaluations.evaluate

    def timed_steps(batches: Any, steps: int) -> Any:
        times = train_steps(batches, steps)
        timer.started(len(times) * size)
        return times

    def timed_evaluation(run: Run, step: int, report: Report) -> dict[str, Any] | None:
        results: dict[str, Any] = {}

        def mean_iou() -> float:
            results.update(evaluate(run, step, report) or {})
            return model_selection.selected_results(config, results)["mean_iou"]

        timer.score(step * size, mean_iou)
        if timer.reached:
            raise TargetReached
        return results

    run.trainer.run = timed_steps  # type: ignore[method-assign, assignment]
    with mock.patch.object(evaluations, "evaluate", timed_evaluation), contextlib.suppress(TargetReached):
        train.train_run(run)
    return timer.result(run.step * size, _flops(config))


def keras_fit(config: Config, time_to: TimeToScoreConfig, timer: Timer) -> dict[str, Any]:
    """`model.fit` with the tutorial's recipe and input, until the target is reached or the epochs are over.

    With --fit_steps: for these steps only, from whose speed the time of all epochs is extrapolated.
    """
    size, measured = config.data.batch_size, time_to.fit_steps
    keras.utils.set_random_seed(config.runtime.seed)
    model = building.build_model(config, catalog.classes_of(config.data), config.model.encoder_weights)
    compile_as_tutorial(model, config)
    batches, count = tutorial_batches(config)
    an_epoch = example_order.steps_per_epoch(count, size)
    total = config.schedule.train_steps or config.schedule.epochs * an_epoch
    every = max(1, time_to.score_every // size) if time_to.score_every else an_epoch
    callback = _Scoring(timer, config, every=0 if measured else every, last=measured + 1 if measured else total)
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
    """Scores at intervals, and ends the training when the target is reached, or after the last step."""

    def __init__(self, timer: Timer, config: Config, *, every: int, last: int):
        super().__init__()
        self._timer, self._config, self._every, self._last = timer, config, every, last
        self.steps, self.seconds = 0, 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        images = self.steps * self._config.data.batch_size
        self._timer.started(images)
        self.seconds = self._timer.seconds()
        if self._every and (self.steps % self._every == 0 or self.steps == self._last):
            self._timer.score(images, self._mean_iou)
        if self._timer.reached or self.steps >= self._last:
            self.model.stop_training = True

    def _mean_iou(self) -> float:
        evaluation = self._evaluator.evaluate()
        assert evaluation is not None  # None only after a stop request
        return float(metrics.mean_iou(evaluation.confusion_matrix))

    @functools.cached_property
    def _evaluator(self) -> Evaluator:
        examples = loading.load(self._config.data, self._config.data.eval_split)
        strategy = tf.distribute.get_strategy()
        return building.build_evaluator(self._config, strategy, self.model, examples, None, StopRequests())


def _flops(config: Config) -> float:
    """Floating-point operations of a training step, per image."""
    model = building.build_model(config, catalog.classes_of(config.data))

    @tf.function
    def step(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(images, training=True))
        return [loss, *tape.gradient(loss, [weight.value for weight in model.trainable_variables])]

    return flops.flops(step.get_concrete_function(tf.TensorSpec([1, *model.input_shape[1:]])).graph)
