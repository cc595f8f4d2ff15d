"""--strategy -> tf.distribute.Strategy; the devices it runs on."""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from petseg.config import DistributionConfig
from petseg.errors import ClusterError, ConfigError, one_line
from petseg.runtime import cluster_membership, signals
from petseg.runtime.cpus import usable_cpus

LINGER_SECONDS = 1.0
LEAST_SHARE = 8  # examples of a device in a step, below which a GPU mostly waits for its host

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Placement of a program: its strategy and cluster."""

    strategy: tf.distribute.Strategy  # the strategy, over all replicas
    cluster: cluster_membership.Cluster | None = None  # the processes that take part; None if it is this one alone
    all_reduce: str = ""  # all-reduce implementation, such as "NCCL"; empty with one replica

    @property
    def is_chief(self) -> bool:
        """Whether this process writes summaries, checkpoints and results."""
        return self.cluster is None or self.cluster.is_chief

    @property
    def name(self) -> str:
        """The name of this process, such as "worker 1"."""
        return "this process" if self.cluster is None else self.cluster.name

    @property
    def num_processes(self) -> int:
        """Number of processes that train together."""
        return 1 if self.cluster is None else len(self.cluster.addresses)

    def gather(self, value: int) -> list[int]:
        """Collective: the values of all processes, one for each replica."""
        if self.cluster is None:
            return [value]
        return self._gathered(tf.constant([value], tf.int64)).numpy().tolist()

    @functools.cached_property
    def _gathered(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Cached, because a run gathers often and tracing is slow."""
        return tf.function(
            lambda mine: self.strategy.gather(self.strategy.run(tf.identity, args=(mine,)), axis=0), autograph=False
        )

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
        where = "" if self.cluster is None else f" in {self.num_processes} processes"
        replicas = f"; {number} replicas{where}" if number > 1 else ""
        return f"{len(physical)} {kind}{'s' if len(physical) > 1 else ''} ({details}){split}{replicas}"

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Context of the work of all processes, which leave it together.

        Reports an error of this process to the others, and explains TensorFlow's report of an error of theirs. Raises
        ClusterError if the block failed because another process of the cluster is gone, and PetsegError if it failed
        because another process reported an error; it has that error's exit code.
        """
        try:
            yield
            self.gather(0)  # no process may end while another still works
            if not self.is_chief:  # the chief ends first, because it may still fetch data from the others
                time.sleep(LINGER_SECONDS)
        except tf.errors.OpError as error:
            explanation = self.cluster and self.cluster.explain(error)
            if not explanation:
                raise
            raise explanation from error
        except Exception as error:
            if self.cluster and not isinstance(error, ClusterError):
                self.cluster.report(error)
            raise


def set_up(config: DistributionConfig, *, batch_size: int = 0, micro_batches: int = 1) -> Placement:
    """Configures the devices and creates the strategy.

    TensorFlow fixes its devices at its first computation. Later changes of settings are logged as warnings; fewer
    devices than requested are an error.

    Args:
      batch_size: global batch that --strategy=auto divides among devices; 0: it uses all of them.

    Raises:
      ConfigError: if this machine, or the cluster, does not support the flags.
      ClusterError: if another process of the cluster is missing or was lost.
    """
    number = _set_up_devices(config, batch_size, micro_batches)
    if config.strategy == "multi_worker_mirrored":
        return _multi_worker_mirrored(config, number)
    devices = _logical_devices(config, number)
    number = len(devices)
    if config.strategy == "one_device" or (config.strategy == "auto" and number == 1):
        return Placement(tf.distribute.OneDeviceStrategy(devices[0]))
    strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=_cross_device_ops(config))
    return Placement(strategy, all_reduce=_all_reduce(config, "reduction_to_one_device") if number > 1 else "")


def computing_kind() -> str:
    """The kind of the devices that compute: "GPU" where TensorFlow may use any, else "CPU"."""
    return "GPU" if tf.config.get_visible_devices("GPU") else "CPU"


def _devices_of_auto(kind: str, found: int, batch_size: int, micro_batches: int) -> int:
    """The number of devices that --strategy=auto uses for a batch; logs if others stay idle.

    The most that divide its examples and leave each `LEAST_SHARE` of them, or else 1.
    """
    examples = batch_size // micro_batches
    number = max(n for n in range(1, found + 1) if n == 1 or (examples % n == 0 and examples // n >= LEAST_SHARE))
    if number < found:
        fits = examples % found == 0
        why = f"all {found} would have {examples // found} each" if fits else f"{found} do not divide them"
        enough = -(-max(examples, LEAST_SHARE * found) // found) * found * micro_batches
        logger.info(
            "--strategy=auto: uses %s of %d %ss, %d examples each of --batch_size=%d: %s (at least %d are sensible); "
            "to use all: --batch_size=%d%s",
            f"{number} ({kind} 0{f' to {number - 1}' if number > 1 else ''})", found, kind, batch_size // number,
            batch_size, why, LEAST_SHARE, enough, ", or --strategy=mirrored" if fits else "",
        )  # fmt: skip
    return number


def _set_up_devices(config: DistributionConfig, batch_size: int, micro_batches: int) -> int:
    """Splits devices into virtual ones and hides unused ones; returns the number of devices to use."""
    kind = computing_kind()
    visible = tf.config.get_visible_devices(kind)
    found = config.virtual_devices or len(visible)
    number = config.num_devices or found
    if number > found:
        raise ConfigError(
            f"--num_devices={number}: there are {found} (kind {kind}); --virtual_devices={number} splits one"
        )
    if config.strategy == "one_device":
        number = 1  # leaves the memory of the other GPUs to other processes
    elif len(visible) < len(tf.config.list_physical_devices(kind)) and not (
        config.num_devices or config.virtual_devices
    ):
        logger.warning(
            "uses %d of this machine's devices (kind %s): the others are hidden from TensorFlow in this process",
            len(visible),
            kind,
        )
    if config.strategy == "auto" and batch_size and not (config.num_devices or config.virtual_devices):
        number = _devices_of_auto(kind, number, batch_size, micro_batches)
    used = visible[:1] if config.virtual_devices else visible[:number]
    if used != visible:
        _unless_too_late("--num_devices", tf.config.set_visible_devices, used, kind)
    if config.virtual_devices:
        memory = config.virtual_device_memory if kind == "GPU" else None
        parts = [tf.config.LogicalDeviceConfiguration(memory_limit=memory)] * config.virtual_devices
        _unless_too_late("--virtual_devices", tf.config.set_logical_device_configuration, used[0], parts)
    elif kind == "GPU":  # TensorFlow allows parts or growth, not both
        for device in used:
            _unless_too_late("--memory_growth", tf.config.experimental.set_memory_growth, device, config.memory_growth)
    return number


def _logical_devices(config: DistributionConfig, number: int) -> list[str]:
    """The names of the devices that compute, at most `number`."""
    kind = computing_kind()
    devices = [device.name for device in tf.config.list_logical_devices(kind)[:number]]
    if len(devices) == number:
        return devices
    if flag := "virtual_devices" if config.virtual_devices else "num_devices" if config.num_devices else "":
        raise ConfigError(
            f"--{flag}={getattr(config, flag)}: TensorFlow is already initialised in this process with {len(devices)} "
            f"devices (kind {kind}); must be at most {len(devices)}, or be given in a new process"
        )
    logger.warning("TensorFlow can use %d of %d devices (kind %s)", len(devices), number, kind)
    return devices or [tf.config.list_logical_devices("CPU")[0].name]


def _unless_too_late(flag: str, change: Callable[..., None], *arguments: Any) -> None:
    """Changes a setting of TensorFlow's devices, or logs a warning if they are initialised already.

    Memory growth on a GPU that was split earlier in this process raises ValueError.
    """
    try:
        change(*arguments)
    except (RuntimeError, ValueError) as error:
        logger.warning("%s: has no effect, TensorFlow's devices are already set up in this process (%s)", flag, error)


def _cross_device_ops(config: DistributionConfig) -> tf.distribute.CrossDeviceOps | None:
    _check_nccl(config)
    # NCCL cannot have several ranks on one GPU, which TensorFlow notices only beyond the number of GPUs.
    splits_a_gpu = config.virtual_devices > 0 and computing_kind() == "GPU"
    return {
        "auto": tf.distribute.ReductionToOneDevice if splits_a_gpu else lambda: None,
        "nccl": tf.distribute.NcclAllReduce,
        "hierarchical_copy": tf.distribute.HierarchicalCopyAllReduce,
        "reduction_to_one_device": tf.distribute.ReductionToOneDevice,
    }[config.cross_device_ops]()


def _all_reduce(config: DistributionConfig, on_a_split_gpu: str) -> str:
    """The all-reduce implementation, for the log; `auto` is NCCL on GPUs that are not split."""
    if config.cross_device_ops != "auto":
        chosen = config.cross_device_ops
    elif computing_kind() == "CPU":
        chosen = "ring"
    else:
        chosen = on_a_split_gpu if config.virtual_devices else "nccl"
    return "NCCL" if chosen == "nccl" else chosen


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
    # Explicit, because TensorFlow's AUTO never chooses NCCL.
    all_reduce = _all_reduce(config, "ring")
    implementation = tf.distribute.experimental.CommunicationImplementation[all_reduce.upper()]
    options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
    try:
        with signals.handlers_kept():
            strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster.resolver, options)
            # Else each batch costs an all-reduce, to learn whether any process still has one: an evaluation that one
            # process stops would wait for it indefinitely.
            strategy.extended.experimental_enable_get_next_as_optional = False
            return Placement(strategy, cluster, all_reduce)
    except tf.errors.OpError as error:  # a member of the rendezvous did not start TensorFlow
        raise cluster.explain(error) or ClusterError(
            f"TensorFlow did not start in all processes ({one_line(error)}); restart all processes"
        ) from error
    except RuntimeError as error:
        raise ConfigError(
            "--strategy=multi_worker_mirrored: TensorFlow is already in use in this process; must be its first use "
            f"in a new process ({one_line(error)})"
        ) from error
