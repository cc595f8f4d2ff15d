"""The training step, which `timed_loop` compiles into a loop."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from petseg import custom_code
from petseg.config import Config
from petseg.errors import ConfigError
from petseg.models.inference import to_floats
from petseg.training import confusion_matrix, flops, sample_weights
from petseg.training.augmentation import Augmentation
from petseg.training.loss_scale import LossScale
from petseg.training.losses import Loss
from petseg.training.measurements import MeasuredSums, Measurements
from petseg.training.optimizers import Optimizer
from petseg.training.sample_weights import WeightMap
from petseg.training.stop_requests import StopRequests
from petseg.training.timed_loop import TimedLoop
from petseg.training.variables import moving_statistics, replica_sum, step_variable
from petseg.training.weight_averaging import WeightAverage


class Trainer:
    """Runs training steps under a strategy. Create it inside ``strategy.scope()``.

    A step has four phases, and the methods follow in this order:

    1. Accumulate: each replica sums gradients, loss and denominator over its micro-batches.
    2. Reduce: one all-reduce sums all of that over the replicas.
    3. Decide: divide the sums, check that they are finite, clip.
    4. Apply: all replicas update their weights, or none does.

    Decisions are made outside the replicas, on reduced values, so that all replicas act alike.

    A custom trainer (--step) is a subclass that overrides `forward`, and `state` if it has variables of its own.

    Attributes:
      nonfinite_step: int64 variable, the step at which `run` stopped because the loss or a gradient was not finite for
        another reason than the loss scale; -1 if there was none.
      nonfinite_steps: int64 variable, number of such steps since the start of the run; part of `state`.
      model, loss, optimizer, average, loss_scale: as given; loop: the compiled loop over steps.
    """

    def __init__(
        self,
        config: Config,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        optimizer: Optimizer,
        augment: Augmentation,
        weight_map: WeightMap,
        loss: Loss,
        loss_scale: LossScale,
        requests: StopRequests,
        average: WeightAverage | None = None,
    ):
        """Creates the variables of a step; compiles nothing yet.

        Args:
          config: its batch size and micro-batches must suit the replicas, see `building.check_replicas`.
          loss_scale: loss scale of float16; constantly 1 in other precisions.
          requests: requests to stop or save, which other threads set.
          average: moving average of the model's weights, or None.
        """
        compute, batch_size, replicas = config.compute, config.data.batch_size, strategy.num_replicas_in_sync
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.loss_scale = loss_scale
        self.average = average
        self.loop = TimedLoop(self._step, self._goes_on)
        self._strategy = strategy
        self._requests = requests
        self._augment = augment
        self._weight_map = weight_map
        self._image_spec = config.data.image_spec
        self._weight_scale = config.data.weight_scale
        self._clip_norm = config.optimizer.clip_norm
        self._micro_batches = compute.micro_batches
        self._all_reduce_dtype = compute.all_reduce_dtype
        self._code = config.extension.step
        self._reduction = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=compute.bucket_bytes)
        self._slice_size = batch_size // replicas // compute.micro_batches
        # Statistics that are not synchronised in the forward pass are averaged, which keeps the replicas identical.
        self._average_statistics = not config.model.sync_batch_norm and replicas > 1
        self._differentiate: Any = self._forward_and_backward
        if compute.jit_compile:
            self._differentiate = tf.function(self._forward_and_backward, jit_compile=True, autograph=False)
        _, height, width, self._num_classes = model.output_shape
        self._pixels_of_batch = float(batch_size * height * width)
        self._weights = optimizer.weights

        self.step, self.nonfinite_step = step_variable(0, tf.int64), step_variable(-1, tf.int64)
        self._requested, self._divisor = step_variable([0.0, 0.0], tf.float32), step_variable(1.0, tf.float32)
        # Sums of the current step on each replica: gradients, joined by the optimizer; loss and denominator.
        self._gradients = [replica_sum(v.shape, v.dtype) for v in optimizer.join(self._weights)]
        self._loss_sums = replica_sum([2], tf.float32)
        self._confusion_of_step = replica_sum([self._num_classes] * 2, tf.int64)
        self._nonfinite_replicas = replica_sum([replicas], tf.int64)
        # Variables that the forward pass changes, and their values before the step.
        self._statistics = moving_statistics(model)
        self._statistics_before = [replica_sum(v.shape, v.dtype) for v in self._statistics]
        # Sums since `pop_measurements`; the confusion matrix stays on the replicas until it is read.
        self._measured_sums = MeasuredSums(self._names_of_measurements(), self._num_classes)
        self._replica_confusion = replica_sum([self._num_classes] * 2, tf.int64)
        self.nonfinite_steps = self._measured_sums.nonfinite_steps

    def run(self, iterator: Any, num_steps: int) -> np.ndarray:
        """Trains for `num_steps` batches, or until a stop request or a non-finite step that the loss scale can't fix.

        Returns the times of the steps made, as `TimedLoop.run` does.
        """
        return self.loop.run(iterator, num_steps)

    def compile(self, iterator: Any) -> None:
        """Traces and compiles the loop for the batches of an iterator, without taking one."""
        self.loop.run(iterator, 0)

    def flops_per_image(self, iterator: Any) -> float:
        """Floating-point operations of the convolutions and matrix products of a step, for each example.

        Counted from the graph, in which the body of the loop over micro-batches appears once.
        """
        return flops.flops(self.loop.graph(iterator)) / (self._slice_size * len(self._strategy.extended.worker_devices))

    def _goes_on(self) -> tf.Tensor:
        return (self._requested[0] == 0) & (self.nonfinite_step < 0)

    def _step(self, batch: Any, is_last: tf.Tensor) -> tf.Tensor:
        """Makes one step, outside the replicas: accumulate, reduce, decide, apply.

        Returns the gradient norm, which is available only once the gradients are. After the last step of a call of
        `run`, summaries may be due.
        """
        self.optimizer.set_learning_rates(self.step)
        self._accumulate(batch)
        gradients, loss, denominator, norm, requested = self._reduce_and_decide()
        finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
        tf.cond(
            finite,
            lambda: self._apply(gradients, loss=loss, denominator=denominator, norm=norm, is_last=is_last),
            lambda: self._strategy.run(self._undo),
        )
        self._divisor.assign(denominator * self.loss_scale.value())
        is_explained = self.loss_scale.update(finite)  # else no smaller loss scale would help, and `run` stops
        self.nonfinite_step.assign(tf.where(is_explained, self.nonfinite_step, self.step))
        self.nonfinite_steps.assign_add(tf.cast(~is_explained, tf.int64))
        self._requested.assign(requested)
        self._measured_sums.steps.assign_add(1)
        self.step.assign_add(1)
        return norm

    # Phase 1, accumulate: gradients, loss and denominator of each replica.

    def _accumulate(self, batch: Any) -> None:
        def add_slice(index: Any) -> tuple[Any]:
            self._strategy.run(self._add_slice, args=(batch, self.step, index))
            return (index + 1,)

        self._strategy.run(self._begin)
        if self._micro_batches > 1:
            tf.while_loop(lambda index: index < self._micro_batches, add_slice, (tf.constant(0),))
        else:
            add_slice(0)  # a loop in the graph costs memory and a few percent of speed

    def _begin(self) -> None:
        """Copies a replica's moving statistics, and clears its sums if there are several micro-batches."""
        for total in self._sums_of_step() if self._micro_batches > 1 else ():
            total.assign(tf.zeros_like(total))
        for before, variable in zip(self._statistics_before, self._statistics, strict=True):
            before.assign(variable)

    def _add_slice(self, batch: dict[str, tf.Tensor], step: tf.Tensor, index: tf.Tensor) -> None:
        """Adds gradients, loss, denominator and confusion matrix of one micro-batch to a replica's sums."""
        batch = {key: self._slice(value, index) for key, value in batch.items()}
        images, masks, weights, valid = self.prepare_batch(batch, step)
        gradients, sums, predictions = self._differentiate(images, masks, weights, valid, self.loss_scale.value())
        matrices = confusion_matrix.confusion_matrices(masks[..., 0], predictions, valid, self._num_classes)
        values = (*gradients, sums, tf.reduce_sum(matrices, axis=0))
        for total, value in zip(self._sums_of_step(), values, strict=True):
            total.assign(total + value if self._micro_batches > 1 else value)

    def _sums_of_step(self) -> tuple[tf.Variable, ...]:
        return *self._gradients, self._loss_sums, self._confusion_of_step

    def _slice(self, values: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """Every K-th example: a slice then holds the same examples on any number of replicas."""
        return tf.reshape(values, [self._slice_size, self._micro_batches, *values.shape[1:]])[:, index]

    def prepare_batch(
        self, batch: dict[str, tf.Tensor], step: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Augments a batch and computes its weight map.

        Args:
          batch: `image`, `mask`, `position` and perhaps `weight` of examples, from `input_pipeline`.

        Returns:
          augmented images, float32 [B, H, W, channels] in [0, 255]; masks, uint8 [B, H, W, 1]; pixel weights, float32
          [B, H, W]; valid pixels, bool [B, H, W], False where a pixel is ignored.
        """
        images, maps = to_floats(batch["image"], self._image_spec), sample_weights.given(batch, self._weight_scale)
        images, masks, *maps = self._augment(images, batch["mask"], step, batch["position"], *maps)
        return images, masks, self._weight_map(masks, *maps), sample_weights.valid_pixels(masks)

    def forward(
        self, images: tf.Tensor, masks: tf.Tensor, weights: tf.Tensor, valid: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Forward pass on a replica; a custom trainer (--step) overrides this, or adds terms to the loss.

        What it draws must be a function of its arguments and `step`, and what it sums must be sums over examples, so
        that the result depends neither on the number of replicas nor on restarts.

        Args:
          images, masks, weights, valid: as returned by `prepare_batch`.

        Returns:
          logits, float32 [b, H, W, C]; the summed loss and its denominator, float32 scalars.
        """
        logits = self.model(images, training=True)
        return logits, *self.loss.sums(masks[..., 0], logits, weights, valid)

    def _forward_and_backward(
        self, images: tf.Tensor, masks: tf.Tensor, weights: tf.Tensor, valid: tf.Tensor, scale: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """Joined gradients of the scaled loss; the summed loss and its denominator, [2]; the predicted class ids."""
        with tf.GradientTape() as tape:
            logits, loss, denominator = self._checked(self.forward(images, masks, weights, valid), masks)
            # A constant, the pixels of the global batch, keeps sums near 1; `_decide` divides by the denominator.
            loss, denominator = loss / self._pixels_of_batch, denominator / self._pixels_of_batch
            scaled = loss * scale
        gradients = self.optimizer.gradients(tape, scaled)
        return gradients, tf.stack([loss, denominator]), tf.argmax(logits, axis=-1)

    def _checked(self, made: Any, masks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """What `forward` returned for masks [b, H, W, 1]; raises ConfigError if it is not as documented there."""
        if isinstance(made, tuple) and len(made) == 3:
            logits, *sums = made
            shape = masks.shape[:-1].concatenate(self._num_classes)
            if tf.is_tensor(logits) and logits.shape.is_compatible_with(shape) and all(map(_is_scalar, sums)):
                return made
        raise ConfigError(
            f"--step={self._code}: forward returned {custom_code.described(made)}; must be (logits, loss, denominator):"
            f" float32 [b, H, W, {self._num_classes}] and two float32 scalars, the summed loss and its denominator"
        )

    # Phases 2 and 3, reduce and decide: the same values on all replicas.

    def _reduce_and_decide(self) -> tuple[Any, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Reduces and divides: per-replica gradients; loss, denominator, gradient norm and requests."""
        gradients, *results = self._strategy.run(lambda: self._decide(*self.reduce()))
        loss, denominator, norm, requested = (self._of_first_replica(value) for value in results)
        return gradients, loss, denominator, norm, requested

    def reduce(self) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """The step's one all-reduce, on a replica: joined gradients; loss and denominator; requests.

        With buckets (--all_reduce_bucket), it overlaps the backward pass.
        """
        reduced: dict[str, Any] = {}
        for part in self.to_reduce():
            context = tf.distribute.get_replica_context()
            reduced |= context.all_reduce(tf.distribute.ReduceOp.SUM, part, self._reduction)
        for variable, total in zip(self._statistics, reduced["averages"], strict=False):
            variable.assign(total / self._strategy.num_replicas_in_sync)
        return [tf.cast(total, tf.float32) for total in reduced["gradients"]], reduced["sums"], reduced["asked"]

    def to_reduce(self) -> list[dict[str, Any]]:
        """A replica's operands of the all-reduce; two parts in float16, because TensorFlow packs one dtype only."""
        # TensorFlow packs in the order of the keys, and sums over three or more replicas round by position: keep keys.
        gradients = {"gradients": [tf.cast(tf.identity(total), self._all_reduce_dtype) for total in self._gradients]}
        others = {
            "asked": tf.stack([self._requests.stop, self._requests.save]),
            "averages": [tf.identity(v.value) for v in self._statistics if self._average_statistics],
            "sums": tf.identity(self._loss_sums),  # float32 in any case: the denominator divides all gradients
        }
        return [gradients | others] if self._all_reduce_dtype == "float32" else [gradients, others]

    def _decide(
        self, gradients: list[tf.Tensor], sums: tf.Tensor, requests: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Normalises and clips the gradients; also returns loss, denominator, norm before clipping, and requests."""
        loss, denominator = tf.unstack(sums)
        divisor = denominator * self.loss_scale.value()
        norm = tf.math.divide_no_nan(tf.linalg.global_norm(gradients), divisor)
        if self._clip_norm:
            divisor *= tf.maximum(norm / self._clip_norm, 1.0)
        gradients = [tf.math.divide_no_nan(gradient, divisor) for gradient in gradients]
        return gradients, loss, denominator, norm, requests

    def _of_first_replica(self, value: Any) -> tf.Tensor:
        return self._strategy.experimental_local_results(value)[0]

    # Phase 4, apply: all replicas update their weights, or none does.

    def _apply(self, gradients: Any, *, is_last: tf.Tensor, **measured: tf.Tensor) -> None:
        ratio = self._of_first_replica(self._strategy.run(self._update, args=(gradients, self.step, is_last)))
        self._measured_sums.add(self._measure(**measured, update_ratio=ratio, is_last=is_last))

    def _update(self, gradients: list[tf.Tensor], step: tf.Tensor, is_last: tf.Tensor) -> tf.Tensor:
        """Updates a replica's weights; returns for the last step the norm of the update over that of the weights."""
        before, after = self.optimizer.apply(gradients, is_last)
        # Only here, so that predictions of skipped steps are not counted.
        self._replica_confusion.assign_add(tf.identity(self._confusion_of_step))
        if self.average is not None:
            self.average.update(step)

        def ratio() -> tf.Tensor:
            updates = [new - old for new, old in zip(after, before, strict=True)]
            return tf.linalg.global_norm(updates) / tf.linalg.global_norm(before)

        return tf.cond(is_last, ratio, lambda: tf.constant(0.0))

    def _undo(self) -> None:
        """Restores a replica's moving statistics, and records whether its own sums were finite."""
        for before, variable in zip(self._statistics_before, self._statistics, strict=True):
            variable.assign(tf.identity(before))
        totals = (*self._gradients, self._loss_sums)
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(tf.identity(total))) for total in totals])
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        number = self._strategy.num_replicas_in_sync
        self._nonfinite_replicas.assign(tf.one_hot(replica, number, dtype=tf.int64) * tf.cast(~finite, tf.int64))

    def _measure(
        self, *, loss: tf.Tensor, denominator: tf.Tensor, norm: tf.Tensor, update_ratio: tf.Tensor, is_last: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The scalars of a step that changed the weights, float32, to be summed by name. Add yours here."""
        updates = {"update_ratio": update_ratio, "measured_updates": tf.cast(is_last, tf.float32)}
        return {"loss": loss, "denominator": denominator, "gradient_norm": norm, **updates}

    def _names_of_measurements(self) -> list[str]:
        one = tf.constant(1.0)
        return list(self._measure(loss=one, denominator=one, norm=one, update_ratio=one, is_last=one))

    # The state of a run, and readings of it between calls of `run`.

    def state(self) -> dict[str, Any]:
        """The objects of a checkpoint from which a run resumes exactly, by name. Call `complete_state` before."""
        others = {"optimizer": self.optimizer, "loss_scale": self.loss_scale, "totals": self._measured_sums}
        return {**self.scored_state(), **others}

    def scored_state(self) -> dict[str, Any]:
        """The part of `state` that scoring a checkpoint needs."""
        average = {} if self.average is None else {"average": self.average}
        return {"model": self.model, "step": self.step, **average}

    def complete_state(self) -> None:
        """Collects the replicas' own counts into `state`. All processes of a cluster must call it together."""
        self._measured_sums.confusion.assign_add(self._replica_confusion.numpy())
        self._replica_confusion.assign(tf.zeros_like(self._replica_confusion))

    def pop_measurements(self) -> Measurements:
        """The measurements since the last call, which it resets. All processes of a cluster must call it together."""
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

    def requested(self) -> tuple[bool, bool]:
        """Whether any process had requested, by the last step, a stop; and a checkpoint."""
        stop, save = self._requested.numpy() > 0
        return bool(stop), bool(save)

    def weights(self) -> dict[str, np.ndarray]:
        """The trained weights by path."""
        return {weight.path: weight.numpy() for weight in self._weights}

    def gradients(self) -> dict[str, np.ndarray]:
        """The last step's gradients by path of the weight: reduced and unscaled, before clipping.

        They are 0 if no pixel of the batch counted, as in the update. All processes of a cluster must call it together.
        """
        divisor = self._divisor.numpy()
        totals = self.optimizer.split([tf.math.divide_no_nan(total.numpy(), divisor) for total in self._gradients])
        return {weight.path: total.numpy() for weight, total in zip(self._weights, totals, strict=True)}

    def nonfinite_replicas(self) -> list[int]:
        """The replicas whose own loss or gradients were not finite in the last skipped step."""
        return np.flatnonzero(self._nonfinite_replicas.numpy()).tolist()

    def clear_nonfinite_step(self) -> None:
        """Lets `run` continue after a non-finite step."""
        self.nonfinite_step.assign(-1)


def _is_scalar(value: Any) -> bool:
    """Whether a value is a number, or a float32 tensor without dimensions."""
    if tf.is_tensor(value):
        return value.dtype == tf.float32 and not value.shape.rank
    return isinstance(value, float | int | np.number)
