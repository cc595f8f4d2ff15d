"""Handles steps whose loss or gradients are not finite, as --on_nonfinite says: stop, skip or restore."""

import logging

import numpy as np
import tensorflow as tf

from petseg.data import example_order
from petseg.errors import NonFiniteLossError
from petseg.runs.setup import Run

logger = logging.getLogger(__name__)


def check(run: Run) -> None:
    """Ends a run, or prepares it to continue, if the last step was not finite.

    All processes of a cluster call this together. Raises NonFiniteLossError if the run must end.
    """
    trainer, runtime = run.trainer, run.config.runtime
    step, mode = int(trainer.nonfinite_step.numpy()), runtime.on_nonfinite
    if step < 0:
        return
    count, limit = int(trainer.nonfinite_steps.numpy()), runtime.nonfinite_limit
    newest = run.checkpoints.newest_common(run.placement.gather)
    what = f"the loss or its gradient is not finite at step {step}{_origin(run, step)}"
    too_often = mode != "halt" and count > limit
    if mode == "halt" or too_often or (mode == "restore" and newest is None):
        times = f", number {count} of the run, above --nonfinite_limit={limit}" if too_often else ""
        raise NonFiniteLossError(f"{what}{times}; the last good checkpoint is {newest or '(none yet)'}")
    if mode == "restore" and newest is not None:
        logger.warning("%s; back to the weights of %s", what, newest)
        _restore(run, newest)
    else:
        logger.warning("%s; skipped", what)
    trainer.clear_nonfinite_step()


def _restore(run: Run, checkpoint: str) -> None:
    """Restores a checkpoint, except the step and the count of non-finite steps.

    Otherwise the same batch would come again, and --nonfinite_limit would never be reached.
    """
    kept = (run.trainer.step, run.trainer.nonfinite_steps)
    now = [variable.numpy() for variable in kept]
    run.checkpoints.restore(checkpoint)
    for variable, value in zip(kept, now, strict=True):
        variable.assign(value)
    run.trainer.pop_measurements()  # restored sums, of steps that were logged already


def _origin(run: Run, step: int) -> str:
    """The replicas at fault and their examples, as text."""
    replicas, batch_size = run.trainer.nonfinite_replicas(), run.config.data.batch_size
    if not replicas:
        return " (in the sum over all replicas)"
    size = batch_size // run.placement.strategy.num_replicas_in_sync
    positions = np.concatenate([np.arange(size) + replica * size for replica in replicas])
    with tf.device("cpu:0"):
        ids = example_order.example_ids(
            tf.constant(step, tf.int64),
            tf.constant(positions, tf.int64),
            num_examples=len(run.train_examples),
            batch_size=batch_size,
            seed=run.config.runtime.seed,
            version=run.config.runtime.example_order,
        ).numpy()
    return f" on replica {', '.join(map(str, replicas))} (examples {', '.join(map(str, ids))})"
