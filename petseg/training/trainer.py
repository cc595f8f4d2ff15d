"""One training step, and the compiled loop around it."""

import logging
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import config as tf_config  # the public API can only switch determinism on

from petseg.training import confusion_matrix, sample_weights
from petseg.training.augmentation import Augmentation
from petseg.training.loss_scale import LossScale
from petseg.training.losses import Loss
from petseg.training.measurements import MeasuredSums, Measurements
from petseg.training.optimizers import Optimizer
from petseg.training.sample_weights import WeightMap
from petseg.training.step_checks import check_step
from petseg.training.stop_requests import StopRequests
from petseg.training.variables import moving_statistics, replica_sum, step_variable
from petseg.training.weight_averaging import WeightAverage

logger = logging.getLogger(__name__)


class Trainer:
    """Runs steps of training under a strategy. Make it inside ``strategy.scope()``.

    A step has four phases, whose methods follow in this order. Accumulate: each replica adds up gradients, loss and
    counts over its micro-batches. Reduce: the one all-reduce. Decide: true gradients; are they finite? clip. Apply: all
    replicas update, or none does. Decisions are made outside the replicas, on numbers that have been reduced.

    Attributes:
      step: int64 variable, the clock: optimizer steps attempted.
      nonfinite_step: int64 variable, the step whose loss or gradients were not finite for another reason than the loss
        scale, and at which `run` stopped; -1 if there was none.
      nonfinite_steps: int64 variable, number of such steps since the start of the run; part of `state`.
      model: the network, float32 images in [0, 255] -> float32 logits.
      optimizer: optimizer of all trainable weights of the model.
      average: average of the weights, or None.
      loss_scale: loss scale of float16; 1 where nothing is in float16.
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
        requests: StopRequests,
        *,
        batch_size: int,
        average: WeightAverage | None = None,
        clip_norm: float = 0.0,
        micro_batches: int = 1,
        sync_batch_norm: bool = True,
        jit_compile: bool = False,
        all_reduce_dtype: str = "float32",
    ):
        """Prepares the variables of a step; compiles nothing yet.

        Args:
          strategy: the strategy whose replicas divide the batch.
          model: the network, float32 images in [0, 255] -> float32 logits.
          optimizer: optimizer of the model's trainable weights.
          augment: random changes to examples, as `augmentation.augmentation` returns them.
          weight_map: a function, masks -> the weight of each pixel.
          loss: the loss to minimise.
          loss_scale: loss scale of float16; 1 where nothing is in float16.
          requests: what is asked from outside: to stop, to save a checkpoint.
          batch_size: number of examples in a step over all replicas.
          average: average of the model's weights; None for none.
          clip_norm: largest global norm of the gradients; 0 for no clipping.
          micro_batches: number of slices of each replica's part of the batch.
          sync_batch_norm: whether the model's batch norms use statistics of all replicas. Where they do not, their
            moving statistics are averaged over the replicas, so that these stay copies of one model.
          jit_compile: whether to compile forward and backward pass with XLA.
          all_reduce_dtype: dtype in which gradients travel: "float32" or "float16".

        Raises:
          ConfigError: if `check_step` does.
        """
        check_step(
            strategy,
            batch_size=batch_size,
            micro_batches=micro_batches,
            sync_batch_norm=sync_batch_norm,
            jit_compile=jit_compile,
        )
        self.model, self.optimizer, self.average, self.loss_scale = model, optimizer, average, loss_scale
        self.traces, self._strategy, self._requests = 0, strategy, requests
        # A tf.function per instance: one on the class keeps the graphs and models of all instances. AutoGraph off: it
        # doubles the time of tracing.
        self._loop = tf.function(self._trace_loop, autograph=False)
        self._augment, self._weight_map, self._loss = augment, weight_map, loss
        self._clip_norm, self._micro_batches, self._all_reduce_dtype = clip_norm, micro_batches, all_reduce_dtype
        self._slice_size = batch_size // strategy.num_replicas_in_sync // micro_batches
        self._average_statistics = not sync_batch_norm and strategy.num_replicas_in_sync > 1
        self._differentiate: Any = self._forward_and_backward
        if jit_compile:
            self._differentiate = tf.function(self._forward_and_backward, jit_compile=True)
        _, height, width, self._num_classes = model.output_shape
        self._pixels_of_batch = float(batch_size * height * width)
        self.step, self.nonfinite_step = step_variable(0, tf.int64), step_variable(-1, tf.int64)
        self._measured_sums = MeasuredSums(self._num_classes)
        self.nonfinite_steps = self._measured_sums.nonfinite_steps
        self._requested, self._divisor = step_variable([0.0, 0.0], tf.float32), step_variable(1.0, tf.float32)
        self._replica_confusion, self._confusion_of_step = (
            replica_sum([self._num_classes] * 2, tf.int64) for _ in range(2)
        )
        self._nonfinite_replicas = replica_sum([strategy.num_replicas_in_sync], tf.int64)
        # What a replica has added up since the step began: gradients, loss, denominator.
        self._weights = optimizer.weights
        self._warned_of_unused = False
        self._accumulated = [replica_sum(v.shape, v.dtype) for v in self._weights]
        self._accumulated += [replica_sum([], tf.float32) for _ in range(2)]
        # What the forward pass changes by itself, and how it was when the step began.
        self._statistics = moving_statistics(model)
        self._statistics_before = [replica_sum(v.shape, v.dtype) for v in self._statistics]

    def run(self, iterator: Any, num_steps: int) -> np.ndarray:
        """Takes `num_steps` batches and makes a step with each.

        Stops earlier when asked to, and after a step that was not finite for another reason than the loss scale.

        Returns:
          float64 [steps made, 2]: seconds that each step waited for its batch, and took in all. With op determinism,
          which forbids clocks in compiled code, NaN, and the mean over the steps.
        """
        began = time.perf_counter()
        times = self._loop(iterator, tf.constant(num_steps, tf.int64)).numpy()
        if tf_config.is_op_determinism_enabled() and len(times):
            times[:] = np.nan, (time.perf_counter() - began) / len(times)
        return times

    def compile(self, iterator: Any) -> None:
        """Traces and compiles the loop for the batches of an iterator, of which it takes none."""
        self._loop(iterator, tf.constant(0, tf.int64))

    def graph(self, iterator: Any) -> tf.Graph:
        """The graph of the compiled loop, whose operations can be counted."""
        return self._loop.get_concrete_function(iterator, tf.constant(1, tf.int64)).graph

    def requested(self) -> tuple[bool, bool]:
        """Whether any process had asked, by the last step: to stop; for a checkpoint."""
        stop, save = self._requested.numpy() > 0
        return bool(stop), bool(save)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold for the run to go on as if it had not stopped, by name.

        All of it is up to date only after `complete_state`.
        """
        return {
            **self.scored_state(),
            "optimizer": self.optimizer,
            "loss_scale": self.loss_scale,
            "totals": self._measured_sums,
        }

    def scored_state(self) -> dict[str, Any]:
        """The part of `state` that scoring a checkpoint needs."""
        average = {} if self.average is None else {"average": self.average}
        return {"model": self.model, "step": self.step, **average}

    def complete_state(self) -> None:
        """Collects for `state` what each replica has counted by itself. All processes of a cluster do this together."""
        self._measured_sums.confusion.assign_add(self._replica_confusion.numpy())
        self._replica_confusion.assign(tf.zeros_like(self._replica_confusion))

    def pop_measurements(self) -> Measurements:
        """What happened since the last call; starts anew. All processes of a cluster call this together."""
        self.complete_state()
        sums = self._measured_sums
        state = {
            "learning_rate": float(self.optimizer.learning_rate(tf.maximum(self.step - 1, 0))),
            "weight_norm": float(tf.linalg.global_norm([tf.convert_to_tensor(weight) for weight in self._weights])),
            "loss_scale": float(self.loss_scale.value()),
            "skipped_steps": int(self.loss_scale.skipped_steps.numpy()),
        }
        found = Measurements(int(sums.steps.numpy()), {**sums.means(), **state}, sums.confusion.numpy())
        sums.clear()
        return found

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of the last step by weight: reduced and unscaled, not clipped. Called by all processes.

        They are 0 where no pixel of the batch counted, as for the update.
        """
        totals = zip(self._weights, self._accumulated, strict=False)  # loss and denominator follow the gradients
        divisor = self._divisor.numpy()
        return {weight.path: tf.math.divide_no_nan(total.numpy(), divisor).numpy() for weight, total in totals}

    def weights(self) -> dict[str, np.ndarray]:
        """The trained weights, by the same names."""
        return {weight.path: weight.numpy() for weight in self._weights}

    def prepare(
        self, batch: dict[str, tf.Tensor], step: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """What the model is trained with, from what the input ships.

        Args:
          batch: `image`, `mask` and `position` of examples, as `input_pipeline` makes them.
          step: step of the batch, int64 scalar.

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

    def _trace_loop(self, iterator: Any, num_steps: tf.Tensor) -> tf.Tensor:
        self.traces += 1

        def goes_on(done: tf.Tensor, *_: Any) -> tf.Tensor:
            return (done < num_steps) & (self._requested[0] == 0) & (self.nonfinite_step < 0)

        def step(
            done: tf.Tensor, began: tf.Tensor, times: tf.TensorArray
        ) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
            batch = next(iterator)
            arrived = _time_after(batch["position"])  # a batch's tensors arrive together, and this one is small
            ended = _time_after(self._step(batch))
            times = times.write(tf.cast(done, tf.int32), tf.stack([arrived - began, ended - began]))
            return done + 1, ended, times

        times = tf.TensorArray(tf.float64, size=0, dynamic_size=True, element_shape=[2])
        *_, times = tf.while_loop(goes_on, step, (tf.constant(0, tf.int64), _time_after([]), times))
        return times.stack()

    # A step, seen from outside the replicas.

    def _step(self, batch: Any) -> tf.Tensor:
        """Accumulate, reduce, decide, apply; returns what is known only when the gradients are."""
        self.optimizer.set_learning_rates(self.step)
        self._accumulate(batch)
        gradients, loss, denominator, norm, requested = self._reduce_and_decide()
        finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
        tf.cond(
            finite,
            lambda: self._apply(gradients, loss=loss, denominator=denominator, norm=norm),
            lambda: self._strategy.run(self._undo),
        )
        self._divisor.assign(denominator * self.loss_scale.value())
        accounted_for = self.loss_scale.update(finite)
        self.nonfinite_step.assign(tf.where(accounted_for, self.nonfinite_step, self.step))
        self.nonfinite_steps.assign_add(tf.cast(~accounted_for, tf.int64))
        self._requested.assign(requested)
        self._measured_sums.steps.assign_add(1)
        self.step.assign_add(1)
        return norm

    def _accumulate(self, batch: Any) -> None:
        def add_slice(part: Any) -> tuple[Any]:
            self._strategy.run(self._add_slice, args=(batch, self.step, part))
            return (part + 1,)

        self._strategy.run(self._begin)
        if self._micro_batches > 1:
            tf.while_loop(lambda part: part < self._micro_batches, add_slice, (tf.constant(0),))
        else:
            add_slice(0)  # a loop in the graph costs a few percent of speed, and memory

    def _reduce_and_decide(self) -> tuple[Any, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Each replica's gradients, all alike; loss, denominator, norm of the gradients and requests."""
        gradients, *results = self._strategy.run(lambda: self._decide(self.reduce()))
        # Every replica returns the same numbers, for they were computed from reduced sums.
        loss, denominator, norm, requested = (self._of_first_replica(value) for value in results)
        return gradients, loss, denominator, norm, requested

    def _apply(self, gradients: Any, **measured: tf.Tensor) -> None:
        ratio = self._of_first_replica(self._strategy.run(self._update, args=(gradients, self.step)))
        self._measured_sums.add(self._measure(**measured, update_ratio=ratio))

    def _measure(
        self, *, loss: tf.Tensor, denominator: tf.Tensor, norm: tf.Tensor, update_ratio: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """What a step that changed the weights adds to the sums; `measurements.MEANS` describes each."""
        return {"loss": loss, "denominator": denominator, "gradient_norm": norm, "update_ratio": update_ratio}

    def _of_first_replica(self, value: Any) -> tf.Tensor:
        return self._strategy.experimental_local_results(value)[0]

    # A step, seen from a replica.

    def _begin(self) -> None:
        for total in (*self._accumulated, self._confusion_of_step):
            total.assign(tf.zeros_like(total))
        for before, variable in zip(self._statistics_before, self._statistics, strict=True):
            before.assign(variable)

    def _add_slice(self, batch: dict[str, tf.Tensor], step: tf.Tensor, part: tf.Tensor) -> None:
        """Adds gradients, loss, denominator and confusion matrix of a slice to what the replica has."""
        batch = {key: self._slice(value, part) for key, value in batch.items()}
        images, masks, weights, valid = self.prepare(batch, step)
        gradients, *sums, predictions = self._differentiate(images, masks, weights, valid, self.loss_scale.value())
        for total, value in zip(self._accumulated, (*gradients, *sums), strict=True):
            total.assign_add(value)
        matrices = confusion_matrix.confusion_matrices(masks[..., 0], predictions, valid, self._num_classes)
        self._confusion_of_step.assign_add(tf.reduce_sum(matrices, axis=0))

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
            # Divided by a constant, the pixels of the global batch, to keep sums near 1; `_decide` divides truly.
            loss, denominator = loss / self._pixels_of_batch, denominator / self._pixels_of_batch
            scaled = loss * scale
        gradients = self._zero_where_none(tape.gradient(scaled, self._weights))
        return gradients, loss, denominator, tf.argmax(logits, axis=-1, output_type=tf.int32)

    def _zero_where_none(self, gradients: list[tf.Tensor | None]) -> list[tf.Tensor]:
        """Gradients, zero for weights on which the loss does not depend; warns of these once, when they are found."""
        unused = [weight.path for weight, gradient in zip(self._weights, gradients, strict=True) if gradient is None]
        if unused and not self._warned_of_unused:  # each replica traces this
            self._warned_of_unused = True
            logger.warning("the loss does not depend on these weights, whose gradients are 0: %s", ", ".join(unused))
        return [
            tf.zeros(weight.shape, weight.dtype) if gradient is None else gradient
            for weight, gradient in zip(self._weights, gradients, strict=True)
        ]

    def reduce(self) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The one all-reduce: accumulated sums, and requests, over all replicas."""
        reduced: dict[str, Any] = {}
        for part in self.to_reduce():
            reduced |= tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, part)
        for variable, total in zip(self._statistics, reduced["averages"], strict=False):
            variable.assign(total / self._strategy.num_replicas_in_sync)
        return [*(tf.cast(total, tf.float32) for total in reduced["gradients"]), *reduced["sums"]], reduced["asked"]

    def to_reduce(self) -> list[dict[str, Any]]:
        """What a replica gives to the one all-reduce. In float16, two parts, for TensorFlow packs only one dtype."""
        values, count = [tf.identity(total) for total in self._accumulated], len(self._weights)
        # TensorFlow packs in alphabetical order, and sums over three replicas or more round by what lies where.
        gradients = {"gradients": [tf.cast(value, self._all_reduce_dtype) for value in values[:count]]}
        others = {
            "asked": tf.stack([self._requests.stop, self._requests.save]),
            "averages": [tf.identity(v.value) for v in self._statistics if self._average_statistics],
            "sums": values[count:],  # of them what divides gradients, which must not be rounded
        }
        return [gradients | others] if self._all_reduce_dtype == "float32" else [gradients, others]

    def _decide(
        self, reduced: tuple[list[tf.Tensor], tf.Tensor]
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """True gradients, clipped; loss and denominator; the norm before clipping, by which all decide; requests."""
        (*gradients, loss, denominator), requests = reduced
        divisor = denominator * self.loss_scale.value()
        gradients = [tf.math.divide_no_nan(gradient, divisor) for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        if self._clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self._clip_norm, use_norm=norm)
        return gradients, loss, denominator, norm, requests

    def _update(self, gradients: list[tf.Tensor], step: tf.Tensor) -> tf.Tensor:
        """Makes the update; returns its norm over that of the weights."""
        before = [tf.identity(weight.value) for weight in self._weights]
        self.optimizer.apply(gradients)
        # Not before: what a skipped step predicted counts as little as its loss.
        self._replica_confusion.assign_add(tf.identity(self._confusion_of_step))
        if self.average is not None:
            self.average.update(step)
        updates = [weight.value - old for weight, old in zip(self._weights, before, strict=True)]
        return tf.linalg.global_norm(updates) / tf.linalg.global_norm(before)

    def _undo(self) -> None:
        for before, variable in zip(self._statistics_before, self._statistics, strict=True):
            variable.assign(tf.identity(before))
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(tf.identity(total))) for total in self._accumulated])
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        number = self._strategy.num_replicas_in_sync
        self._nonfinite_replicas.assign(tf.one_hot(replica, number, dtype=tf.int64) * tf.cast(~finite, tf.int64))


def _time_after(value: Any) -> tf.Tensor:
    """Seconds since 1970, float64, read on the host once tensors are there; 0 where op determinism forbids clocks.

    One number of each tensor is copied to the host.
    """
    if tf_config.is_op_determinism_enabled():
        return tf.constant(0.0, tf.float64)
    first = [tf.reshape(part, [-1])[0] for part in tf.nest.flatten(value, expand_composites=True)]
    with tf.device("cpu:0"), tf.control_dependencies([tf.identity(part) for part in first]):
        return tf.timestamp()
