"""--strategy -> tf.distribute.Strategy; the devices it runs on."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator

import tensorflow as tf

from petseg.config import DistributionConfig
from petseg.errors import ClusterError, ConfigError
from petseg.runtime import cluster_membership
from petseg.runtime.cpus import usable_cpus

LINGER_SECONDS = 1.0
REFUSED = {
    "central_storage": "Keras 3's batch norms do not work under it; must be mirrored, which computes the same",
    "parameter_server": "its workers update the weights without waiting for each other, so N of them do not compute "
    "what one computes; must be multi_worker_mirrored",
    "tpu": "TensorFlow finds no TPU here, and petseg has never run on one; must be mirrored or one_device",
}


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a program runs.

    Attributes:
      strategy: the strategy, over all replicas.
      cluster: the processes that take part; None if it is this one alone.
    """

    strategy: tf.distribute.Strategy
    cluster: cluster_membership.Cluster | None = None

    @property
    def is_chief(self) -> bool:
        """Whether this process writes what is there to be read."""
        return self.cluster is None or self.cluster.is_chief

    @property
    def name(self) -> str:
        """The name of this process, such as "worker 1"."""
        return "this process" if self.cluster is None else self.cluster.name

    def gather(self, value: int) -> list[int]:
        """The values that all processes came with, one for each replica; returns when all are here."""
        if self.cluster is None:
            return [value]
        return self._gathered(tf.constant([value], tf.int64)).numpy().tolist()

    @functools.cached_property
    def _gathered(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Traced once, for a run asks again and again."""
        return tf.function(
            lambda mine: self.strategy.gather(self.strategy.run(tf.identity, args=(mine,)), axis=0), autograph=False
        )

    def barrier(self) -> None:
        """Returns when all processes are here."""
        self.gather(0)

    def leave_together(self) -> None:
        """Returns when all processes are here, and may end.

        TensorFlow's processes fetch from each other: who has heard of all may still be asked by the chief.
        """
        self.barrier()
        if not self.is_chief:
            time.sleep(LINGER_SECONDS)

    def description(self) -> str:
        """The devices that compute, in words, such as "2 GPUs (NVIDIA A100-SXM4-40GB), mirrored"."""
        kind = computing_kind()
        number = self.strategy.num_replicas_in_sync
        physical = tf.config.get_visible_devices(kind)
        if kind == "GPU":
            names = {tf.config.experimental.get_device_details(device).get("device_name", "GPU") for device in physical}
            details = ", ".join(sorted(names))
        else:
            details = f"{usable_cpus()} cores"
        parts = tf.config.get_logical_device_configuration(physical[0]) or []
        split = f", split in {len(parts)}" if len(parts) > 1 else ""
        where = "" if self.cluster is None else f" in {len(self.cluster.addresses)} processes"
        replicas = f"; {number} replicas{where}" if number > 1 else ""
        return f"{len(physical)} {kind}{'s' if len(physical) > 1 else ''} ({details}){split}{replicas}"

    @contextlib.contextmanager
    def naming_lost_workers(self) -> Iterator[None]:
        """Turns TensorFlow's report of a lost connection into one that says who was lost.

        Raises:
          ClusterError: if the block failed because another process of the cluster is gone.
        """
        try:
            yield
        except tf.errors.OpError as error:
            lost = self.cluster.lost(str(error)) if self.cluster else []
            if not lost:
                raise
            raise ClusterError(f"lost {', '.join(lost)}; start all again to go on from the last checkpoint") from error


def set_up(config: DistributionConfig) -> Placement:
    """Prepares the devices and makes the strategy; call it before TensorFlow does anything else.

    Raises:
      ConfigError: if this machine, or the cluster, cannot run what is asked.
    """
    if config.strategy in REFUSED:
        raise ConfigError(f"--strategy={config.strategy}: {REFUSED[config.strategy]}")
    number = _set_up_devices(config)
    if config.strategy == "multi_worker_mirrored":
        return _multi_worker_mirrored(config, number)
    devices = [device.name for device in tf.config.list_logical_devices(computing_kind())[:number]]
    if config.strategy == "one_device" or (config.strategy == "auto" and number == 1):
        return Placement(tf.distribute.OneDeviceStrategy(devices[0]))
    return Placement(tf.distribute.MirroredStrategy(devices, cross_device_ops=_cross_device_ops(config)))


def computing_kind() -> str:
    """What computes: GPUs where TensorFlow sees any, else CPUs."""
    return "GPU" if tf.config.list_physical_devices("GPU") else "CPU"


def _set_up_devices(config: DistributionConfig) -> int:
    """Splits what is to be split, hides what is not to be used; returns how many devices remain."""
    kind = computing_kind()
    physical = tf.config.list_physical_devices(kind)
    found = config.virtual_devices or len(physical)
    number = config.num_devices or found
    if number > found:
        raise ConfigError(
            f"--num_devices={number}: there are {found} (kind {kind}); --virtual_devices={number} splits one"
        )
    if config.strategy == "one_device":
        number = 1  # and so the memory of the other GPUs is left to others
    used = physical[:1] if config.virtual_devices else physical[:number]
    try:
        if used != physical:
            tf.config.set_visible_devices(used, kind)
        if config.virtual_devices:
            memory = config.virtual_device_memory if kind == "GPU" else None
            parts = [tf.config.LogicalDeviceConfiguration(memory_limit=memory)] * config.virtual_devices
            tf.config.set_logical_device_configuration(used[0], parts)
        elif kind == "GPU":  # TensorFlow allows parts or growth, not both
            for device in used:
                tf.config.experimental.set_memory_growth(device, config.memory_growth)
    except RuntimeError as error:
        raise ConfigError(
            f"--num_devices, --virtual_devices: come too late, TensorFlow runs already ({error})"
        ) from error
    return number


def _cross_device_ops(config: DistributionConfig) -> tf.distribute.CrossDeviceOps | None:
    _check_nccl(config)
    return {
        "auto": tf.distribute.ReductionToOneDevice if _splits_a_gpu(config) else lambda: None,
        "nccl": tf.distribute.NcclAllReduce,
        "hierarchical_copy": tf.distribute.HierarchicalCopyAllReduce,
        "reduction_to_one_device": tf.distribute.ReductionToOneDevice,
    }[config.cross_device_ops]()


def _splits_a_gpu(config: DistributionConfig) -> bool:
    """Whether NCCL would have several ranks on one GPU, which it cannot.

    TensorFlow notices only where it has more logical GPUs than the machine has GPUs.
    """
    return config.virtual_devices > 0 and computing_kind() == "GPU"


def _check_nccl(config: DistributionConfig) -> None:
    if config.cross_device_ops != "nccl":
        return
    if computing_kind() != "GPU":
        raise ConfigError("--cross_device_ops=nccl: there must be GPUs, and TensorFlow finds none here")
    if config.virtual_devices:
        raise ConfigError(
            f"--cross_device_ops=nccl: with --virtual_devices={config.virtual_devices} must be auto: "
            "NCCL cannot sum over parts of one GPU"
        )


def _multi_worker_mirrored(config: DistributionConfig, devices: int) -> Placement:
    _check_nccl(config)
    cluster = cluster_membership.join(
        gpus=devices if computing_kind() == "GPU" else 0, seconds=config.cluster_timeout, fewest=config.min_workers
    )
    implementation = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation={
            "auto": implementation.RING if _splits_a_gpu(config) else implementation.AUTO,
            "ring": implementation.RING,
            "nccl": implementation.NCCL,
        }[config.cross_device_ops]
    )
    return Placement(tf.distribute.MultiWorkerMirroredStrategy(cluster.resolver, options), cluster)
