"""Flags of devices and clusters, shared by train.py and eval.py."""

import dataclasses

from petseg.config.options import Group, option
from petseg.errors import ConfigError

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker_mirrored")
# Strategies of TensorFlow that petseg does not support, and what to use instead.
UNSUPPORTED = {
    "central_storage": "Keras 3's batch norms do not work under it; must be mirrored, which computes the same",
    "parameter_server": "its workers update the weights without waiting for each other, so N of them do not compute "
    "what one computes; must be multi_worker_mirrored",
    "tpu": "TensorFlow finds no TPU here, and petseg has never run on one; must be mirrored or one_device",
}
LOCAL_CROSS_DEVICE_OPS = ("nccl", "hierarchical_copy", "reduction_to_one_device")


@dataclasses.dataclass(frozen=True)
class DistributionConfig(Group):
    """Devices, and communication between them."""

    strategy: str = option(
        "auto",
        "`one_device`; `mirrored`: all devices of this machine; `multi_worker_mirrored`: a cluster, from TF_CONFIG or "
        "Slurm; `auto`: mirrored on as many devices as divide the batch into at least 8 examples each",
        choices=STRATEGIES,
    )
    num_devices: int = option(0, "number of this machine's devices to use; 0: all", minimum=0)
    virtual_devices: int = option(
        0, "logical devices to split the first GPU, or else the CPU, into; 0: none", minimum=0
    )
    virtual_device_memory: int = option(4096, "memory of each part of a split GPU", unit="MiB", minimum=1)
    memory_growth: bool = option(True, "allocate GPU memory as needed instead of all at the start")
    cross_device_ops: str = option(
        "auto",
        "all-reduce: `nccl`, `hierarchical_copy` or `reduction_to_one_device` on one machine, `ring` or "
        "`nccl` in a cluster; `auto`: `nccl` on GPUs that are not split",
        choices=("auto", *LOCAL_CROSS_DEVICE_OPS, "ring"),
    )
    cluster_timeout: float = option(
        300.0,
        "maximum wait at the start for the other processes of the cluster and for --data_service",
        unit="seconds",
        above=0,
    )
    min_workers: int = option(
        0, "minimum number of processes to start with after --cluster_timeout; 0: all must be present", minimum=0
    )

    def __post_init__(self) -> None:
        if self.strategy in UNSUPPORTED:
            raise ConfigError(
                f"--strategy={self.strategy}: {UNSUPPORTED[self.strategy]} (one of {', '.join(STRATEGIES)})"
            )
        super().__post_init__()
        allowed = {"multi_worker_mirrored": ("ring", "nccl"), "one_device": ()}.get(
            self.strategy, LOCAL_CROSS_DEVICE_OPS
        )
        if self.cross_device_ops not in ("auto", *allowed):
            raise ConfigError(
                f"--cross_device_ops={self.cross_device_ops}: with --strategy={self.strategy} must be one of "
                + ", ".join(("auto", *allowed))
            )
        if self.strategy == "one_device" and self.num_devices > 1:
            raise ConfigError(f"--num_devices={self.num_devices}: must be 1 with --strategy=one_device")
