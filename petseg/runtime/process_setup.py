"""Set-up of a process before a network is built: devices, memory, arithmetic, seeds, determinism."""

import dataclasses
import logging

import keras
import tensorflow as tf

from petseg.config import Config, DistributionConfig
from petseg.runtime import autotuning, gpu_diagnosis, host_allocator, strategies
from petseg.runtime.strategies import Placement

logger = logging.getLogger(__name__)


def set_up_runtime(
    config: Config, devices: DistributionConfig, *, one_device: bool = False, trains: bool = False
) -> Placement:
    """Configures devices, memory, arithmetic, seeds and determinism; call it before any model is built.

    Args:
      trains: whether the devices must divide the batch of the config, so that --strategy=auto may leave some idle.

    Raises:
      ConfigError: if this machine or the cluster cannot satisfy the flags.
    """
    if strategies.computing_kind() == "CPU":  # GPUs have their own allocator
        host_allocator.keep_freed_memory()
    autotuning.switch_off_on_devices()
    keras.utils.set_random_seed(config.runtime.seed)
    if config.runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(config.uses_tensor_float_32)
    if one_device:
        devices = dataclasses.replace(devices, strategy="one_device", num_devices=0, cross_device_ops="auto")
    batch = {"batch_size": config.data.batch_size, "micro_batches": config.compute.micro_batches} if trains else {}
    placement = strategies.set_up(devices, **batch)
    if not placement.is_chief:  # only the chief logs progress
        logging.getLogger("petseg").setLevel(logging.WARNING)
    all_reduce = f", summed by {placement.all_reduce}" if placement.all_reduce else ""
    logger.info("computes on %s%s", placement.description(), all_reduce)
    if strategies.computing_kind() == "GPU" and config.compute.tensor_float_32 and config.runtime.deterministic:
        logger.info("--deterministic: --tensor_float_32 is off")
    for warning in gpu_diagnosis.warnings():
        logger.warning("%s", warning)
    return placement
