"""One training step, and the compiled loop around it."""

import dataclasses
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import config as tf_config  # the public API can only switch determinism on

from petseg.errors import ConfigError
from petseg.training import confusion_matrix, sample_weights
from petseg.training.augmentation import Augmentation
from petseg.training.loss_scale import LossScale
from petseg.training.losses import Loss
from petseg.training.optimizers import Optimizer
from petseg.training.sample_weights import WeightMap
from petseg.training.variables import moving_statistics, replica_sum, step_variable
from petseg.training.weight_averaging import WeightAverage


@dataclasses.dataclass(frozen=True)
class TrainingSums:
    """What the steps since the last `Trainer.read_sums` did.

    Attributes:
      steps: number of steps.
      loss: sum of weight x loss over all pixels, over the sum of denominators; skipped steps are left out.
      gradient_norm: mean over the steps of the global norm of the gradients, before clipping; likewise.
      update_ratio: mean over the steps of the global norm of the update over that of the weights; likewise.
      weight_norm: global norm of the trained weights, now.
      learning_rate: of the last step.
      loss_scale: of the next step; 1 without mixed_float16.
      skipped_steps: since the start of the run.
      confusion_matrix: int64 [C, C], rows true, columns predicted.
    """

    steps: int
    loss: float
    gradient_norm: float
    update_ratio: float
    weight_norm: float
    learning_rate: float
    loss_scale: float
    skipped_steps: int
    confusion_matrix: np.ndarray


class _Totals(tf.Module):
    """What `Trainer.read_sums` will tell, in variables that a checkpoint can hold."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.steps, self.finite_steps = step_variable(0, tf.int64), step_variable(0, tf.int64)
        self.loss, self.denominator = step_variable(0.0, tf.float32), step_variable(0.0, tf.float32)
        self.gradient_norm, self.update_ratio = step_variable(0.0, tf.float32), step_variable(0.0, tf.float32)
        self.confusion = step_variable(tf.zeros([num_classes] * 2, tf.int64), tf.int64)


class Requests:
    """What the loop is asked from outside, by any thread, in any process of a cluster. Make it outside the strategy.

    Attributes:
      stop: float32 variable; set to 1, the loop ends after the step it is at.
      save: float32 variable; set to 1, `Trainer.requested` tells all processes that one of them wants a checkpoint.
    """

    def __init__(self) -> None:
        with tf.device("cpu:0"):
            self.stop, self.save = tf.Variable(0.0), tf.Variable(0.0)


class Trainer:
    """Runs steps of training under a strategy.

    Make it inside ``strategy.scope()``.

    A step is a few calls of ``strategy.run``, with the decisions between them taken outside the replicas, on numbers
    that have been reduced: each replica adds up gradients over its micro-batches; one all-reduce; unscale, check,
    clip; then all replicas update, or none does.

    Attributes:
      step: int64 variable, the clock: optimizer steps attempted.
      nonfinite_step: int64 variable, the step whose loss or gradients were not finite for another reason than the loss
        scale, and at which `run` stopped; -1 if there was none.
      model: the network, float32 images in [0, 255] -> float32 logits.
      optimizer: of all trainable weights of the model.
      average: of the weights, or None.
      loss_scale: of mixed_float16.
      traces: how often the loop was traced; 1 is right.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        optimizer: Optimizer,
        augment: Augmentation,
        weight_map: WeightMap,
        loss: Loss,
        loss_scale: LossScale,
        requests: Requests,
        *,
        batch_size: int,
        average: WeightAverage | None = None,
        clip_norm: float = 0.0,
        micro_batches: int = 1,
        sync_batch_norm: bool = True,
        jit_compile: bool = False,
    ):
        """Makes one.

        Args:
          strategy: its replicas divide the batch.
          model: see above.
          optimizer: see above.
          augment: see `augmentation`.
          weight_map: masks -> the weight of each pixel.
          loss: what to minimise.
          loss_scale: in use or not.
          requests: to stop, and for a checkpoint.
          batch_size: examples of a step over all replicas.
          average: see above.
          clip_norm: largest global norm of the gradients; 0 for no clipping.
          micro_batches: slices of each replica's part of the batch.
          sync_batch_norm: whether the model's batch norms use statistics of all replicas. Where they do not, their
            moving statistics are averaged over the replicas, so that these stay copies of one model.
          jit_compile: compile forward and backward pass with XLA.

        Raises:
          ConfigError: as `check_step`.
        """
        check_step(
            strategy,
            batch_size=batch_size,
            micro_batches=micro_batches,
            sync_batch_norm=sync_batch_norm,
            jit_compile=jit_compile,
        )
        self.model, self.optimizer, self.average, self.loss_scale = model, optimizer, average, loss_scale
        self.traces = 0
        self._strategy, self._requests = strategy, requests
        self._augment, self._weight_map, self._loss = augment, weight_map, loss
        self._clip_norm, self._micro_batches = clip_norm, micro_batches
        self._slice_size = batch_size // strategy.num_replicas_in_sync // micro_batches
        self._average_statistics = not sync_batch_norm and strategy.num_replicas_in_sync > 1
        self._differentiate: Any = self._forward_and_backward
        if jit_compile:
            self._differentiate = tf.function(self._forward_and_backward, jit_compile=True)
        _, height, width, self._num_classes = model.output_shape
        self._pixels = float(batch_size * height * width)
        self.step, self.nonfinite_step = step_variable(0, tf.int64), step_variable(-1, tf.int64)
        self._requested = step_variable([0.0, 0.0], tf.float32)
        self._totals = _Totals(self._num_classes)
        self._divisor = step_variable(1.0, tf.float32)
        self._confusion = replica_sum([self._num_classes] * 2, tf.int64)
        self._nonfinite_replicas = replica_sum([strategy.num_replicas_in_sync], tf.int64)
        # What a replica has added up since the step began: gradients, loss, denominator.
        self._weights = optimizer.weights
        self._sums = [replica_sum(v.shape, v.dtype) for v in self._weights]
        self._sums += [replica_sum([], tf.float32) for _ in range(2)]
        # What the forward pass changes by itself, and how it was when the step began.
        self._statistics = moving_statistics(model)
        self._statistics_before = [replica_sum(v.shape, v.dtype) for v in self._statistics]

    def run(self, iterator: Any, num_steps: int) -> np.ndarray:
        """Takes `num_steps` batches and makes a step with each.

        Stops earlier when asked to, and after a step that was not finite for another reason than the loss scale.

        Returns:
          float64 [steps made, 2]: the seconds that each step waited for its batch, and took in all. With op
          determinism, which forbids clocks in compiled code, NaN, and the mean over the steps.
        """
        began = time.perf_counter()
        times = self._loop(iterator, tf.constant(num_steps, tf.int64)).numpy()
        if tf_config.is_op_determinism_enabled() and len(times):
            times[:] = np.nan, (time.perf_counter() - began) / len(times)
        return times

    def compile(self, iterator: Any) -> None:
        """Traces and compiles the loop for the batches of an iterator, of which it takes none."""
        self._loop(iterator, tf.constant(0, tf.int64))

    def requested(self) -> tuple[bool, bool]:
        """Whether any process had asked, by the last step: to stop; for a checkpoint."""
        stop, save = self._requested.numpy() > 0
        return bool(stop), bool(save)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold for the run to go on as if it had not stopped, by name; see `settle`."""
        return {
            **self.scored_state(),
            "optimizer": self.optimizer,
            "loss_scale": self.loss_scale,
            "totals": self._totals,
        }

    def scored_state(self) -> dict[str, Any]:
        """The part of `state` that scoring a checkpoint needs."""
        average = {} if self.average is None else {"average": self.average}
        return {"model": self.model, "step": self.step, **average}

    def read_sums(self) -> TrainingSums:
        """What happened since the last call; starts counting anew. All processes of a cluster call this together."""
        self.settle()
        totals = self._totals
        sums = TrainingSums(
            steps=int(totals.steps.numpy()),
            loss=_ratio(totals.loss, totals.denominator),
            gradient_norm=_ratio(totals.gradient_norm, totals.finite_steps),
            update_ratio=_ratio(totals.update_ratio, totals.finite_steps),
            weight_norm=float(tf.linalg.global_norm([tf.convert_to_tensor(weight) for weight in self._weights])),
            learning_rate=float(self.optimizer.learning_rate(tf.maximum(self.step - 1, 0))),
            loss_scale=float(self.loss_scale.value()),
            skipped_steps=int(self.loss_scale.skipped_steps.numpy()),
            confusion_matrix=totals.confusion.numpy(),
        )
        for variable in totals.variables:
            variable.assign(tf.zeros_like(variable))
        return sums

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of the last step by weight: reduced and unscaled, not clipped. Called by all processes."""
        totals = zip(self._weights, self._sums, strict=False)  # loss and denominator follow the gradients
        return {weight.path: total.numpy() / self._divisor.numpy() for weight, total in totals}

    def weights(self) -> dict[str, np.ndarray]:
        """The trained weights, by the same names."""
        return {weight.path: weight.numpy() for weight in self._weights}

    def prepare(
        self, batch: dict[str, tf.Tensor], step: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """What the model is trained with, from what the input ships.

        Args:
          batch: as the input pipeline makes it.
          step: int64 scalar.

        Returns:
          augmented images, float32 [B, H, W, 3] in [0, 255]; their masks, uint8 [B, H, W, 1]; the weights of the
          pixels, float32 [B, H, W]; and whether they have a class, bool [B, H, W].
        """
        images, masks = self._augment(tf.cast(batch["image"], tf.float32), batch["mask"], step, batch["position"])
        return images, masks, self._weight_map(masks), sample_weights.valid_pixels(masks)

    def nonfinite_replicas(self) -> list[int]:
        """The replicas whose own loss or gradients were not finite at the last step that was skipped."""
        return np.flatnonzero(self._nonfinite_replicas.numpy()).tolist()

    def go_on(self) -> None:
        """Lets `run` go past a step that was not finite."""
        self.nonfinite_step.assign(-1)

    def settle(self) -> None:
        """Makes `state` complete, before it is saved. All processes of a cluster call this together."""
        self._totals.confusion.assign_add(self._confusion.numpy())
        self._confusion.assign(tf.zeros_like(self._confusion))

    @tf.function(autograph=False)  # which would rewrite the sources of all that is called here, for as long as tracing
    def _loop(self, iterator: Any, num_steps: tf.Tensor) -> tf.Tensor:
        self.traces += 1

        def goes_on(done: tf.Tensor, *_: Any) -> tf.Tensor:
            return (done < num_steps) & (self._requested[0] == 0) & (self.nonfinite_step < 0)

        def step(
            done: tf.Tensor, began: tf.Tensor, times: tf.TensorArray
        ) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
            batch = next(iterator)
            arrived = _time_after(batch)
            ended = _time_after(self._step(batch))
            times = times.write(tf.cast(done, tf.int32), tf.stack([arrived - began, ended - began]))
            return done + 1, ended, times

        times = tf.TensorArray(tf.float64, size=0, dynamic_size=True, element_shape=[2])
        *_, times = tf.while_loop(goes_on, step, (tf.constant(0, tf.int64), _time_after([]), times))
        return times.stack()

    def _step(self, batch: Any) -> tf.Tensor:
        """One step, seen from outside the replicas; returns what is known only when its gradients are."""
        run = self._strategy.run

        def accumulate(part: Any) -> tuple[Any]:
            run(self._accumulate, args=(batch, self.step, part))
            return (part + 1,)

        def update() -> None:
            ratio = self._strategy.experimental_local_results(run(self._update, args=(gradients, self.step)))[0]
            self._totals.update_ratio.assign_add(ratio)
            self._totals.loss.assign_add(loss)
            self._totals.denominator.assign_add(denominator)
            self._totals.gradient_norm.assign_add(norm)
            self._totals.finite_steps.assign_add(1)

        self.optimizer.set_learning_rates(self.step)
        run(self._begin)
        if self._micro_batches > 1:
            tf.while_loop(lambda part: part < self._micro_batches, accumulate, (tf.constant(0),))
        else:
            accumulate(0)  # a loop in the graph costs a few percent of speed, and memory
        gradients, *results = run(self._reduce)
        # Every replica returns the same numbers, for they were computed from reduced sums.
        loss, denominator, norm, requested = (self._strategy.experimental_local_results(value)[0] for value in results)
        finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
        tf.cond(finite, update, lambda: run(self._undo))
        self._divisor.assign(denominator * self.loss_scale.value())
        explained = self.loss_scale.update(finite)
        self.nonfinite_step.assign(tf.where(explained, self.nonfinite_step, self.step))
        self._requested.assign(requested)
        self._totals.steps.assign_add(1)
        self.step.assign_add(1)
        return norm

    # The rest is seen from a replica.

    def _begin(self) -> None:
        for total in self._sums:
            total.assign(tf.zeros_like(total))
        for before, variable in zip(self._statistics_before, self._statistics, strict=True):
            before.assign(variable)

    def _accumulate(self, batch: dict[str, tf.Tensor], step: tf.Tensor, part: tf.Tensor) -> None:
        """Adds gradients, loss, denominator and confusion matrix of a slice to what the replica has."""
        batch = {key: self._slice(value, part) for key, value in batch.items()}
        images, masks, weights, valid = self.prepare(batch, step)
        gradients, *sums, predictions = self._differentiate(images, masks, weights, valid, self.loss_scale.value())
        for total, value in zip(self._sums, (*gradients, *sums), strict=True):
            total.assign_add(value)
        matrices = confusion_matrix.confusion_matrices(masks[..., 0], predictions, valid, self._num_classes)
        self._confusion.assign_add(tf.reduce_sum(matrices, axis=0))

    def _slice(self, values: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
        """Every K-th example: then a slice, over all replicas, holds the same examples on any number of them."""
        return tf.reshape(values, [self._slice_size, self._micro_batches, *values.shape[1:]])[:, part]

    def _forward_and_backward(
        self, images: tf.Tensor, masks: tf.Tensor, weights: tf.Tensor, valid: tf.Tensor, scale: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor, tf.Tensor]:
        """Gradients of the scaled loss, the summed loss, its denominator, and the predicted class ids."""
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True)
            loss, denominator = self._loss.sums(masks[..., 0], logits, weights, valid)
            # Divided by a constant, the pixels of the global batch, to keep sums near 1; `_reduce` divides truly.
            loss, denominator = loss / self._pixels, denominator / self._pixels
            scaled = loss * scale
        gradients = tape.gradient(scaled, self._weights)
        return gradients, loss, denominator, tf.argmax(logits, axis=-1, output_type=tf.int32)

    def _reduce(self) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """The one all-reduce; then true gradients, clipped, with loss, denominator, norm and requests."""
        values = {
            "sums": [tf.identity(total) for total in self._sums],
            "statistics": [tf.identity(v.value) for v in self._statistics if self._average_statistics],
            "requests": tf.stack([self._requests.stop, self._requests.save]),
        }
        reduced = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)
        for variable, total in zip(self._statistics, reduced["statistics"], strict=False):
            variable.assign(total / self._strategy.num_replicas_in_sync)
        *gradients, loss, denominator = reduced["sums"]
        divisor = denominator * self.loss_scale.value()
        gradients = [tf.math.divide_no_nan(gradient, divisor) for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        if self._clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self._clip_norm, use_norm=norm)
        return gradients, loss, denominator, norm, reduced["requests"]

    def _update(self, gradients: list[tf.Tensor], step: tf.Tensor) -> tf.Tensor:
        """Makes the update; returns its norm over that of the weights."""
        before = [tf.identity(weight.value) for weight in self._weights]
        self.optimizer.apply(gradients)
        if self.average is not None:
            self.average.update(step)
        updates = [weight.value - old for weight, old in zip(self._weights, before, strict=True)]
        return tf.linalg.global_norm(updates) / tf.linalg.global_norm(before)

    def _undo(self) -> None:
        for before, variable in zip(self._statistics_before, self._statistics, strict=True):
            variable.assign(tf.identity(before))
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(tf.identity(total))) for total in self._sums])
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        number = self._strategy.num_replicas_in_sync
        self._nonfinite_replicas.assign(tf.one_hot(replica, number, dtype=tf.int64) * tf.cast(~finite, tf.int64))


def check_step(
    strategy: tf.distribute.Strategy, *, batch_size: int, micro_batches: int, sync_batch_norm: bool, jit_compile: bool
) -> None:
    """Whether a step can be computed as asked; `Trainer` says what the arguments are.

    Raises:
      ConfigError: if the micro-batches do not divide a replica's part of the batch, or XLA cannot be used here.
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size % (replicas * micro_batches):
        raise ConfigError(
            f"--micro_batches={micro_batches}: takes a divisor of the {batch_size // replicas} examples that each "
            f"replica gets of --batch_size={batch_size}"
        )
    if jit_compile and sync_batch_norm and replicas > 1:
        raise ConfigError(
            f"--jit_compile: with {replicas} replicas takes --nosync_batch_norm: XLA cannot compile what replicas say "
            "to each other in the middle of a pass"
        )


def _time_after(value: Any) -> tf.Tensor:
    """Seconds since 1970, float64, read on the host once a value is there; 0 where op determinism forbids clocks."""
    if tf_config.is_op_determinism_enabled():
        return tf.constant(0.0, tf.float64)
    with tf.device("cpu:0"):
        there = [tf.identity(part) for part in tf.nest.flatten(value, expand_composites=True)]
        with tf.control_dependencies(there):
            return tf.timestamp()


def _ratio(total: tf.Variable, count: tf.Variable) -> float:
    return float(total.numpy()) / float(count.numpy()) if count.numpy() else float("nan")
