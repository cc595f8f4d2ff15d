"""Checks of a training step's flags, before anything is built."""

import tensorflow as tf

from petseg.errors import ConfigError


def check_step(
    strategy: tf.distribute.Strategy, *, batch_size: int, micro_batches: int, sync_batch_norm: bool, jit_compile: bool
) -> None:
    """Checks that a step can be computed; for the arguments see `trainer.Trainer`.

    Raises ConfigError if the micro-batches do not divide a replica's share of the batch, or XLA cannot be used.
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size % (replicas * micro_batches):
        raise ConfigError(
            f"--micro_batches={micro_batches}: must divide the {batch_size // replicas} examples that each "
            f"replica gets of --batch_size={batch_size}"
        )
    if jit_compile and sync_batch_norm and replicas > 1:
        raise ConfigError(
            f"--jit_compile: with {replicas} replicas --nosync_batch_norm must be given too: XLA cannot compile "
            "synchronised batch norms"
        )
