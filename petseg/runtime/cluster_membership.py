"""Cluster membership: addresses and roles of the processes, from TF_CONFIG or Slurm, and detection of lost ones."""

import collections
import contextlib
import dataclasses
import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context  # which has no public name

from petseg.errors import ClusterError, ConfigError, PetsegError, one_line
from petseg.runtime import rendezvous, sockets

TRAINING_JOBS = ("chief", "worker")
MOST_TASKS_PER_NODE = 20
MIN_START_SECONDS = 20.0  # after the rendezvous; some processes find and initialize their GPUs later than others

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that train together, and the role of this one."""

    # cluster resolver for `tf.distribute.MultiWorkerMirroredStrategy`
    resolver: tf.distribute.cluster_resolver.ClusterResolver
    addresses: Mapping[str, str]  # address of each process by its name: "worker 1" -> "host:port"
    name: str  # name of this process, such as "worker 0"
    is_chief: bool  # whether this process writes summaries, checkpoints and results

    def report(self, error: Exception) -> None:
        """Reports an error that ends this process to the others, so that they end with the same exit code.

        Otherwise they would report a lost worker, with an exit code that means "restart", and fail again.
        """
        what = str(error) if isinstance(error, PetsegError) else one_line(error)
        code = getattr(error, "exit_code", 1)
        with contextlib.suppress(tf.errors.OpError, ValueError):  # the connection is gone, or was not there yet
            context.context().report_error_to_cluster(
                tf.errors.ABORTED, f"petseg: {self.name} ended with exit code {code}: {what}"
            )

    def explain(self, error: tf.errors.OpError) -> PetsegError | None:
        """Returns the error of another process that caused one of TensorFlow's; None if there is none."""
        if reported := re.search(r"petseg: (\w+ \d+) ended with exit code (\d+): (.*)", str(error)):
            explanation = PetsegError(f"{reported[1]} ended: {reported[3]}")
            explanation.exit_code = int(reported[2])
            return explanation
        if lost := self.lost(str(error)):
            return ClusterError(f"lost {', '.join(lost)}; restart all processes to resume from the last checkpoint")
        return None

    def lost(self, report: str) -> list[str]:
        """Returns the lost processes: those that `unreachable` finds, else those that TensorFlow's report names.

        Of a timeout report, only the part after "timed out task names:" counts: it names other tasks too.
        """
        missing = report.rpartition("timed out task names:")[2]
        named = {f"{job} {index}" for job, index in re.findall(r"/job:(\w+)/replica:\d+/task:(\d+)", missing)}
        others = named & self.addresses.keys() - {self.name}
        return self.unreachable() or [f"{name} ({self.addresses[name]})" for name in sorted(others)]

    def unreachable(self) -> list[str]:
        """Returns other processes that refuse connections or have restarted (are at the rendezvous)."""
        others = {name: address for name, address in self.addresses.items() if name != self.name}
        return [
            f"{name} ({address})"
            for name, address in others.items()
            if not sockets.answers(address) or rendezvous.is_waiting_at(address)
        ]


def join(*, gpus: int, seconds: float, fewest: int = 0) -> Cluster:
    """Waits for the processes of the cluster that the environment describes; returns those that take part.

    Since a process may still die before TensorFlow has started in it, TensorFlow's own wait for all processes is
    limited to `seconds` too, but at least `MIN_START_SECONDS`.

    Args:
      fewest: smallest number of processes that may continue without the others; 0: all must be present.

    Raises:
      ConfigError: if the environment describes no cluster, or an invalid one.
      ClusterError: if too few processes are present at the timeout.
    """
    cluster = described_by_environment(gpus)
    number = len(cluster.addresses)
    if fewest > number:
        raise ConfigError(f"--min_workers={fewest}: must be at most {number}, the number of processes of the cluster")
    address = cluster.addresses[cluster.name]
    try:
        listener = sockets.listen(int(address.rpartition(":")[2]))
    except OSError as error:
        raise ConfigError(f"{cluster.name} ({address}): cannot listen at its port: {error.strerror}") from error
    with listener:
        members = rendezvous.meet(cluster.addresses, cluster.name, listener, fewest=fewest or number, seconds=seconds)
    if len(members) < number:
        cluster = _reduced(cluster, members, gpus)
    if len(members) > 1:
        _limit_registration(cluster, max(seconds, MIN_START_SECONDS))
    return cluster


def _limit_registration(cluster: Cluster, seconds: float) -> None:
    """Limits how long TensorFlow waits at its start until all processes of the cluster have registered with it.

    By default it waits indefinitely, in a call that holds the GIL and ignores signals, so no thread of this process can
    end it. The service is the one that MultiWorkerMirroredStrategy would configure; the barrier applies the limit to
    its leader too.
    """
    jobs = collections.Counter(name.split()[0] for name in cluster.addresses)
    tensorflow = context.context()
    tensorflow.configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{next(iter(jobs))}/replica:0/task:0",
        cluster_register_timeout_in_ms=int(seconds * 1000),
    )
    service = tensorflow.coordination_service
    service.cluster_register_with_barrier = True
    for job, number in jobs.items():
        service.coordinated_job_list.add(name=job, num_tasks=number)


def described_by_environment(gpus: int) -> Cluster:
    """Reads the cluster from TF_CONFIG, or else from Slurm's variables.

    Raises ConfigError if there is none, or it is invalid.
    """
    if "TF_CONFIG" in os.environ:
        _check_tf_config(os.environ["TF_CONFIG"])
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    elif "SLURM_STEP_NODELIST" in os.environ:
        resolver = _slurm_resolver(gpus)
    else:
        raise ConfigError(
            "--strategy=multi_worker_mirrored: the environment must describe a cluster, by TF_CONFIG or as "
            "Slurm's srun does, and has neither; petseg/runtime/cluster/ shows how to start one"
        )
    spec = resolver.cluster_spec().as_dict()
    addresses = {f"{job} {i}": address for job in TRAINING_JOBS for i, address in enumerate(spec.get(job, []))}
    name = f"{resolver.task_type} {resolver.task_id}"
    return Cluster(resolver, addresses, name, is_chief=name == next(iter(addresses)))


def _check_tf_config(text: str) -> None:
    """Raises ConfigError for a TF_CONFIG on which TensorFlow would hang or raise an unclear error."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"TF_CONFIG: is not JSON: {error}") from error
    cluster, task = _mapping(config, "cluster"), _mapping(config, "task")
    jobs = {job: cluster[job] for job in TRAINING_JOBS if cluster.get(job)}
    if not jobs:
        raise ConfigError(f"TF_CONFIG: cluster names no worker, only {', '.join(cluster) or 'nothing'}")
    for job, addresses in jobs.items():
        if not isinstance(addresses, list) or not all(_is_address(address) for address in addresses):
            raise ConfigError(f"TF_CONFIG: {job} is {addresses!r}; must be a list of 'host:port'")
    job_of_task, index = task.get("type"), task.get("index")
    if job_of_task not in jobs:
        raise ConfigError(f"TF_CONFIG: task type is {job_of_task!r}; must be one of {', '.join(jobs)}")
    if not isinstance(index, int) or not 0 <= index < len(jobs[job_of_task]):
        raise ConfigError(f"TF_CONFIG: task index is {index!r}; must be 0 to {len(jobs[job_of_task]) - 1}")


def _mapping(config: Any, key: str) -> Mapping[str, Any]:
    value = config.get(key) if isinstance(config, Mapping) else None
    if not isinstance(value, Mapping):
        raise ConfigError(f"TF_CONFIG: {key} is {value!r}; must be an object")
    return value


def _is_address(address: Any) -> bool:
    return isinstance(address, str) and address.rpartition(":")[2].isdecimal() and bool(address.rpartition(":")[0])


def _slurm_resolver(gpus: int) -> tf.distribute.cluster_resolver.ClusterResolver:
    """Resolver of Slurm's hosts and tasks; ports depend on the job ID, so that two jobs can share a host."""
    try:
        port_base = 10_000 + int(os.environ["SLURM_JOB_ID"]) % 1000 * MOST_TASKS_PER_NODE
        # Slurm has assigned GPUs already, and auto_set_gpu fails on nodes without GPUs.
        slurm = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=port_base, gpus_per_node=MOST_TASKS_PER_NODE, gpus_per_task=1, auto_set_gpu=False
        )
        spec = slurm.cluster_spec()
    except (KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(f"Slurm's environment describes no cluster: {error}; start the run with srun") from error
    task_type, task_id = slurm.get_task_info()
    return _resolver(spec, task_type, task_id, gpus)


def _reduced(cluster: Cluster, members: list[str], gpus: int) -> Cluster:
    """The cluster reduced to some members, renumbered in their order; the first one is the chief."""
    addresses = {f"worker {i}": cluster.addresses[member] for i, member in enumerate(members)}
    index = members.index(cluster.name)
    resolver = _resolver(tf.train.ClusterSpec({"worker": list(addresses.values())}), "worker", index, gpus)
    return Cluster(resolver, addresses, f"worker {index}", is_chief=index == 0)


def _resolver(
    spec: tf.train.ClusterSpec, task_type: str, task_id: int, gpus: int
) -> tf.distribute.cluster_resolver.ClusterResolver:
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec, task_type=task_type, task_id=task_id, num_accelerators={"GPU": gpus}, rpc_layer="grpc"
    )
