"""A model of the time of a step on n replicas: its fit to measurements, and predictions for larger machines.

A step is compute followed by all-reduces, because the loop sums gradients when they are complete. The input is made
meanwhile, and counts only where it takes longer. Imports no TensorFlow.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

REPLICAS, WORKERS = "replicas", "workers"
COMPUTE, NETWORK, INPUT = "compute", "network", "input"
SMALL_BYTES = 4096.0  # an all-reduce of this size is nearly all latency


@dataclasses.dataclass(frozen=True)
class Point:
    """A measurement on one machine."""

    kind: str  # "replicas" of one process, or "workers", processes with one replica each
    number: int  # how many of them
    scaling: str  # "weak", "strong" or "both"
    batch_size: int  # number of examples in a step over all of them
    step: float  # seconds of a step, without input
    busy: float = 0.0  # seconds of processor time of a step, over all threads and processes
    all_reduce: float = 0.0  # seconds of its one all-reduce alone
    small: float = 0.0  # seconds of an all-reduce of `SMALL_BYTES` alone
    bytes: float = 0.0  # bytes that a replica contributes to the one all-reduce
    small_reduces: int = 0  # number of further small all-reduces in a step, those of synchronised batch norms


@dataclasses.dataclass(frozen=True)
class Link:
    """A connection between replicas."""

    latency: float  # seconds of an empty message
    bandwidth: float  # bytes per second; on one machine, of all replicas together

    def shared_ring(self, number: int, size: float) -> float:
        """Seconds of an all-reduce among replicas that share the link, such as the memory of one machine.

        In a ring each of n sends 2 (n - 1) messages of 1 / n of the bytes; all pass through the one link.
        """
        return 2 * (number - 1) * (self.latency + size / self.bandwidth)

    def all_reduce(self, number: int, size: float) -> float:
        """Seconds of an all-reduce among replicas with a link each: a ring, or a tree where that is faster."""
        ring = 2 * (number - 1) * (self.latency + size / number / self.bandwidth)
        tree = 2 * math.ceil(math.log2(number)) * self.latency + 2 * size / self.bandwidth
        return min(ring, tree) if number > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class SharedCores:
    """A model of steps of replicas that share the cores of one machine.

    A single replica leaves cores idle where its work is serial; several fill these gaps until all cores are busy. So a
    step of n takes as long as that of a single one, or as all their processor time divided by the cores, whichever is
    longer. No step of several replicas is needed to fit that.
    """

    cores: int  # number of cores
    alone: tuple[float, float]  # seconds of a step of a single replica: fixed, and for each example
    busy: tuple[float, float]  # the same in processor time
    links: dict[str, Link]  # connection of the replicas, by kind

    def compute(self, number: int, batch_size: float) -> float:
        """Seconds of compute for a batch divided among replicas."""
        return max(self.alone[0] + self.alone[1] * batch_size / number, self.work(number, batch_size) / self.cores)

    def work(self, number: int, batch_size: float) -> float:
        """Seconds of processor time of all replicas together, without all-reduces."""
        return number * self.busy[0] + batch_size * self.busy[1]

    def all_reduce(self, kind: str, number: int, size: float) -> float:
        """Seconds of an all-reduce of `size` bytes."""
        return self.links[kind].shared_ring(number, size) if number > 1 else 0.0

    def network(self, point: Point) -> float:
        """Predicted seconds of all all-reduces in a point's step."""
        small = point.small_reduces * self.all_reduce(point.kind, point.number, SMALL_BYTES)
        return self.all_reduce(point.kind, point.number, point.bytes) + small

    def step(self, point: Point) -> float:
        """Predicted seconds of a point's step; its measured times are not used."""
        return self.compute(point.number, point.batch_size) + self.network(point)


def is_fitted(point: Point) -> bool:
    """Whether the model is fitted to the step of a point; all others are held out."""
    return point.number == 1 and point.kind == REPLICAS


def fit(points: Sequence[Point], cores: int) -> SharedCores:
    """Fits the model of a machine by least squares of relative errors.

    Steps of one replica give the times of a step and of an example; separate all-reduces of two give latency and
    bandwidth for each kind.

    Args:
      points: the measurements.
      cores: number of cores that all replicas share.

    Raises:
      ValueError: if there is no point of one replica, or none of two of some kind.
    """
    one = [point for point in points if is_fitted(point)]
    if not one:
        raise ValueError("the points must include one replica")
    batches = [point.batch_size for point in one]
    alone, busy = (_line(batches, seconds) for seconds in ([p.step for p in one], [p.busy for p in one]))
    links = {}
    for kind in dict.fromkeys(point.kind for point in points):
        two = [point for point in points if point.number == 2 and point.kind == kind]
        if not two:
            raise ValueError(f"the points must include two {kind}")
        sizes = [size for point in two for size in (SMALL_BYTES, point.bytes)]
        seconds = [time for point in two for time in (point.small, point.all_reduce)]
        latency, per_byte = _line(sizes, seconds)
        links[kind] = Link(latency / 2, 2 / per_byte if per_byte else math.inf)
    return SharedCores(cores, alone, busy, links)


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Offset and slope, neither negative, of the line with the smallest relative errors."""
    weights = 1 / np.array(y)
    columns = np.stack([np.ones(len(x)), np.array(x, float)], axis=1)
    scale = columns.max(axis=0)  # bytes and seconds are far apart
    solution, _, rank, _ = np.linalg.lstsq(columns / scale * weights[:, None], np.ones(len(x)), rcond=None)
    if rank == 2 and min(solution) >= 0:
        offset, slope = solution / scale
        return float(offset), float(slope)
    if rank == 2 and solution[1] < 0:
        return float(np.mean(y)), 0.0
    ratios = np.array(x) / y
    return 0.0, float(ratios.sum() / (ratios**2).sum())


@dataclasses.dataclass(frozen=True)
class Machine:
    """A cluster of GPU nodes."""

    images_per_second: float  # training speed of a single GPU, assumed to be the same for any batch
    gpus_per_node: int  # number of GPUs in a node
    inside: Link  # connection of a GPU to the others of its node
    between: Link  # connection of a node to the others
    input_per_host: float  # images per second of the input of a node

    def description(self) -> str:
        """Its flags in words."""
        return (
            f"{self.images_per_second:g} images/s a GPU, {self.gpus_per_node} a node, {self.between.bandwidth / 1e9:g} "
            f"GB/s and {self.between.latency * 1e6:g} us between nodes, {self.input_per_host:.0f} images/s of input"
        )

    def all_reduce(self, gpus: int, size: float) -> float:
        """Seconds of a hierarchical all-reduce: within nodes, then between them."""
        inside = min(gpus, self.gpus_per_node)
        return self.inside.all_reduce(inside, size) + self.between.all_reduce(math.ceil(gpus / inside), size)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The predicted step on a number of GPUs."""

    gpus: int  # number of GPUs
    batch_size: float  # number of examples in a step over all of them
    compute: float  # seconds of compute
    gradients: float  # seconds of the one all-reduce
    norms: float  # seconds of the all-reduces of synchronised batch norms, in the forward and the backward pass
    input: float  # seconds that the input needs for the batch

    @property
    def network(self) -> float:
        """Seconds of all-reduces."""
        return self.gradients + self.norms

    @property
    def step(self) -> float:
        """Seconds of the step."""
        return max(self.compute + self.network, self.input)

    @property
    def images_per_second(self) -> float:
        """Throughput of all GPUs."""
        return self.batch_size / self.step

    @property
    def efficiency(self) -> float:
        """Throughput relative to that of as many GPUs that never wait."""
        return self.compute / self.step

    @property
    def bottleneck(self) -> str:
        """The part of the step that takes most of its time."""
        if self.input > self.compute + self.network:
            return INPUT
        return NETWORK if self.network > self.compute else COMPUTE


def predict(machine: Machine, gpus: int, batch_per_gpu: float, *, size: float, small_reduces: int = 0) -> Prediction:
    """Predicts a step on a number of GPUs.

    Args:
      machine: the cluster.
      gpus: number of GPUs.
      batch_per_gpu: number of examples of each GPU.
      size: bytes that each contributes to the one all-reduce.
      small_reduces: number of further all-reduces of `SMALL_BYTES`.
    """
    gradients, norms = machine.all_reduce(gpus, size), small_reduces * machine.all_reduce(gpus, SMALL_BYTES)
    input_seconds = batch_per_gpu * min(gpus, machine.gpus_per_node) / machine.input_per_host
    return Prediction(
        gpus, batch_per_gpu * gpus, batch_per_gpu / machine.images_per_second, gradients, norms, input_seconds
    )
