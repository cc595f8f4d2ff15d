"""How long a step takes on n replicas: a model, its fit to what was measured, its prediction for larger machines.

A step is compute, then the all-reduces, one after the other, for the loop sums gradients when they are complete; the
input is made meanwhile, and counts only where it takes longer than all that. Imports no TensorFlow.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

REPLICAS, WORKERS = "replicas", "workers"
COMPUTE, NETWORK, INPUT = "compute", "network", "input"
MICRO_BATCHES = (2, 4)  # of which it is tried what they save
SMALL_BYTES = 4096.0  # of an all-reduce whose time is nearly all latency


@dataclasses.dataclass(frozen=True)
class Point:
    """What was measured on one machine.

    Attributes:
      kind: "replicas" of one process, or "workers", processes with one replica each.
      number: how many of them.
      scaling: "weak", "strong", or both, as they are at the ends.
      batch_size: number of examples in a step over all of them.
      step: seconds of a step whose batch is there.
      busy: seconds of processor time of a step, over all threads and processes.
      all_reduce: seconds of its one all-reduce alone.
      small: seconds of an all-reduce of `SMALL_BYTES` alone.
      bytes: what a replica gives to the one all-reduce.
      small_reduces: number of further small all-reduces in a step, those of synchronised batch norms.
    """

    kind: str
    number: int
    scaling: str
    batch_size: int
    step: float
    busy: float = 0.0
    all_reduce: float = 0.0
    small: float = 0.0
    bytes: float = 0.0
    small_reduces: int = 0


@dataclasses.dataclass(frozen=True)
class Link:
    """What connects replicas.

    Attributes:
      latency: seconds of a message without content.
      bandwidth: bytes per second; on one machine, of all that replicas send together.
    """

    latency: float
    bandwidth: float

    def shared_ring(self, number: int, size: float) -> float:
        """Seconds of an all-reduce among replicas that share the link, as the memory of one machine.

        In a ring each of n sends 2 (n - 1) messages of a share of 1 / n; all bytes go through the one link.
        """
        return 2 * (number - 1) * (self.latency + size / self.bandwidth)

    def all_reduce(self, number: int, size: float) -> float:
        """Seconds of an all-reduce among replicas with a link each: by a ring, or by a tree where that is faster."""
        ring = 2 * (number - 1) * (self.latency + size / number / self.bandwidth)
        tree = 2 * math.ceil(math.log2(number)) * self.latency + 2 * size / self.bandwidth
        return min(ring, tree) if number > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class SharedCores:
    """Steps of replicas that share the cores of one machine.

    A replica by itself leaves cores idle where its work is serial; several fill these gaps, until all cores are busy.
    So a step of n takes as long as that of one by itself, or as all their processor time divided by the cores,
    whichever is longer. No step of several replicas is looked at to know that.

    Attributes:
      cores: number of cores.
      alone: seconds of a step of one replica by itself, and of each of its examples besides.
      busy: seconds of processor time of the same.
      links: by kind, what connects replicas.
    """

    cores: int
    alone: tuple[float, float]
    busy: tuple[float, float]
    links: dict[str, Link]

    def compute(self, number: int, batch_size: float) -> float:
        """Seconds of compute of replicas that share a batch."""
        return max(self.alone[0] + self.alone[1] * batch_size / number, self.work(number, batch_size) / self.cores)

    def work(self, number: int, batch_size: float) -> float:
        """Seconds of processor time of all of them together, all-reduces left out."""
        return number * self.busy[0] + batch_size * self.busy[1]

    def all_reduce(self, kind: str, number: int, size: float) -> float:
        """Seconds of an all-reduce of so many bytes."""
        return self.links[kind].shared_ring(number, size) if number > 1 else 0.0

    def network(self, point: Point) -> float:
        """Seconds of all all-reduces of a point's step."""
        small = point.small_reduces * self.all_reduce(point.kind, point.number, SMALL_BYTES)
        return self.all_reduce(point.kind, point.number, point.bytes) + small

    def step(self, point: Point) -> float:
        """Seconds of the step of a point, of which only what describes it is used."""
        return self.compute(point.number, point.batch_size) + self.network(point)


def is_fitted(point: Point) -> bool:
    """Whether the step of a point is one that the model is fitted to; all others are held out."""
    return point.number == 1 and point.kind == REPLICAS


def fit(points: Sequence[Point], cores: int) -> SharedCores:
    """The model of a machine, by least squares of relative errors.

    From the steps of one replica: what a step and an example take, in seconds and in processor time. From all-reduces
    alone of two, for each kind: latency and bandwidth.

    Args:
      points: what was measured.
      cores: number of cores that all replicas share.

    Raises:
      ValueError: if there is no point with one replica, or none of two of some kind.
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
    """Offset and slope, neither below 0, of the line with the smallest relative errors."""
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
    """Nodes of GPUs.

    Attributes:
      images_per_second: training speed of one GPU by itself, which is taken to hold for any batch.
      gpus_per_node: number of GPUs in a node.
      inside: what connects the GPUs of a node, each with a link of its own.
      between: what connects nodes; its bandwidth is that of a node.
      input_per_host: images per second that the input of a node makes.
    """

    images_per_second: float
    gpus_per_node: int
    inside: Link
    between: Link
    input_per_host: float

    def description(self) -> str:
        """What its flags say of it, in words."""
        return (
            f"{self.images_per_second:g} images/s a GPU, {self.gpus_per_node} a node, {self.between.bandwidth / 1e9:g} "
            f"GB/s and {self.between.latency * 1e6:g} us between nodes, {self.input_per_host:.0f} images/s of input"
        )

    def all_reduce(self, gpus: int, size: float) -> float:
        """Seconds of an all-reduce: within nodes, then between them, of what each node has summed up."""
        inside = min(gpus, self.gpus_per_node)
        return self.inside.all_reduce(inside, size) + self.between.all_reduce(math.ceil(gpus / inside), size)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A step on a number of GPUs.

    Attributes:
      gpus: number of GPUs.
      batch_size: number of examples in a step over all of them.
      compute: seconds of compute.
      gradients: seconds of the one all-reduce.
      norms: seconds of those of synchronised batch norms, which lie in the forward and the backward pass.
      input: seconds in which the input makes the batch.
    """

    gpus: int
    batch_size: float
    compute: float
    gradients: float
    norms: float
    input: float

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
        """Throughput over that of as many GPUs that wait for nothing."""
        return self.compute / self.step

    @property
    def hidden(self) -> float:
        """Efficiency if compute could hide the one all-reduce completely, which no overlap is better than."""
        return self.compute / max(self.compute + self.norms, self.network, self.input)

    @property
    def bottleneck(self) -> str:
        """What the step spends most of its time on."""
        if self.input > self.compute + self.network:
            return INPUT
        return NETWORK if self.network > self.compute else COMPUTE


def predict(machine: Machine, gpus: int, batch_per_gpu: float, *, size: float, small_reduces: int = 0) -> Prediction:
    """A step on so many GPUs.

    Args:
      machine: what they are and what connects them.
      gpus: how many there are.
      batch_per_gpu: number of examples that each gets.
      size: bytes that each gives to the one all-reduce.
      small_reduces: number of further all-reduces of `SMALL_BYTES`.
    """
    gradients, norms = machine.all_reduce(gpus, size), small_reduces * machine.all_reduce(gpus, SMALL_BYTES)
    of_host = batch_per_gpu * min(gpus, machine.gpus_per_node) / machine.input_per_host
    return Prediction(gpus, batch_per_gpu * gpus, batch_per_gpu / machine.images_per_second, gradients, norms, of_host)
