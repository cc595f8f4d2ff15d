"""Whether a step can be computed as flags ask: told before anything is built."""

import tensorflow as tf

from petseg.errors import ConfigError


def check_step(
    strategy: tf.distribute.Strategy, *, batch_size: int, micro_batches: int, sync_batch_norm: bool, jit_compile: bool
) -> None:
    """Whether a step can be computed as asked; `trainer.Trainer` says what the arguments are.

    Raises:
      ConfigError: if the micro-batches do not divide a replica's part of the batch, or XLA cannot be used here.
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size % (replicas * micro_batches):
        raise ConfigError(
            f"--micro_batches={micro_batches}: must divide the {batch_size // replicas} examples that each "
            f"replica gets of --batch_size={batch_size}"
        )
    if jit_compile and sync_batch_norm and replicas > 1:
        raise ConfigError(
            f"--jit_compile: with {replicas} replicas --nosync_batch_norm must be given too: XLA cannot compile what "
            "replicas say to each other in the middle of a pass"
        )
