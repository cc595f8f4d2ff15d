"""Handles steps whose loss or gradients are not finite, as --on_nonfinite says: stop, skip or restore."""

import logging

import numpy as np
import tensorflow as tf

from petseg.config import Config
from petseg.data import example_order
from petseg.errors import NonFiniteLossError
from petseg.runs.checkpoints import Checkpoints
from petseg.runtime.strategies import Placement
from petseg.training.trainer import Trainer

logger = logging.getLogger(__name__)


class NonFiniteSteps:
    """Checks, between calls of the training loop, whether a step was not finite.

    --on_nonfinite=restore restores the newest of `checkpoints`; `num_examples` is the size of the training split.
    """

    def __init__(
        self, config: Config, placement: Placement, trainer: Trainer, checkpoints: Checkpoints, num_examples: int
    ):
        self._config, self._placement, self._trainer = config, placement, trainer
        self._checkpoints, self._num_examples = checkpoints, num_examples

    def check(self) -> None:
        """Ends the run, or prepares it to continue, if the last step was not finite.

        All processes of a cluster call this together. Raises NonFiniteLossError if the run must end.
        """
        step, mode = int(self._trainer.nonfinite_step.numpy()), self._config.runtime.on_nonfinite
        if step < 0:
            return
        count, limit = int(self._trainer.nonfinite_steps.numpy()), self._config.runtime.nonfinite_limit
        newest = self._checkpoints.newest_common(self._placement.gather)
        what = f"the loss or its gradient is not finite at step {step}{self._origin(step)}"
        too_often = mode != "halt" and count > limit
        if mode == "halt" or too_often or (mode == "restore" and newest is None):
            times = f", number {count} of the run, above --nonfinite_limit={limit}" if too_often else ""
            raise NonFiniteLossError(f"{what}{times}; the last good checkpoint is {newest or '(none yet)'}")
        if mode == "restore" and newest is not None:
            logger.warning("%s; back to the weights of %s", what, newest)
            self._restore(newest)
        else:
            logger.warning("%s; skipped", what)
        self._trainer.clear_nonfinite_step()

    def _restore(self, checkpoint: str) -> None:
        """Restores a checkpoint, except the step and the count of non-finite steps.

        Otherwise the same batch would come again, and --nonfinite_limit would never be reached.
        """
        kept = (self._trainer.step, self._trainer.nonfinite_steps)
        now = [variable.numpy() for variable in kept]
        self._checkpoints.restore(checkpoint)
        for variable, value in zip(kept, now, strict=True):
            variable.assign(value)
        self._trainer.pop_measurements()  # restored sums, of steps that were logged already

    def _origin(self, step: int) -> str:
        """The replicas at fault and their examples, as text."""
        replicas = self._trainer.nonfinite_replicas()
        if not replicas:
            return " (in the sum over all replicas)"
        size = self._config.data.batch_size // self._placement.strategy.num_replicas_in_sync
        positions = np.concatenate([np.arange(size) + replica * size for replica in replicas])
        with tf.device("cpu:0"):
            ids = example_order.example_ids(
                tf.constant(step, tf.int64),
                tf.constant(positions, tf.int64),
                num_examples=self._num_examples,
                batch_size=self._config.data.batch_size,
                seed=self._config.runtime.seed,
                version=self._config.runtime.example_order,
            ).numpy()
        return f" on replica {', '.join(map(str, replicas))} (examples {', '.join(map(str, ids))})"
