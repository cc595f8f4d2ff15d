"""A model of the time of a step on n replicas: its fit to measurements, and predictions for larger machines.

A step is compute followed by all-reduces, because the loop sums gradients when they are complete. The input is made
meanwhile, and counts only where it takes longer. Imports no TensorFlow.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize

REPLICAS, WORKERS = "replicas", "workers"
SMALL_BYTES = 4096.0  # an all-reduce of this size is nearly all latency


@dataclasses.dataclass(frozen=True)
class Point:
    """A measurement on one machine."""

    kind: str  # "replicas" of one process, or "workers", processes with one replica each
    number: int  # of them
    scaling: str  # "weak", "strong" or "both"
    batch_size: int  # number of examples in a step over all of them
    step: float  # seconds of a step, without input
    busy: float = 0.0  # seconds of processor time of a step, over all threads and processes
    all_reduce: float = 0.0  # seconds of its one all-reduce alone
    small: float = 0.0  # seconds of an all-reduce of `SMALL_BYTES` alone
    bytes: float = 0.0  # that a replica contributes to the one all-reduce
    small_reduces: int = 0  # number of further small all-reduces in a step, those of synchronised batch norms

    @property
    def fitted(self) -> bool:
        """Whether the model is fitted to this step; all others are held out."""
        return self.number == 1 and self.kind == REPLICAS


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

    cores: int
    alone: tuple[float, float]  # seconds of a step of a single replica: fixed, and for each example
    busy: tuple[float, float]  # the same in processor time
    links: dict[str, Link]  # connection of the replicas, by kind

    def compute(self, number: int, batch_size: float) -> float:
        """Seconds of compute for a batch divided among replicas."""
        return max(self.alone[0] + self.alone[1] * batch_size / number, self.work(number, batch_size) / self.cores)

    def work(self, number: int, batch_size: float) -> float:
        """Seconds of processor time of all replicas together, without all-reduces."""
        return number * self.busy[0] + batch_size * self.busy[1]

    def network(self, point: Point) -> float:
        """Predicted seconds of all all-reduces in a point's step."""
        ring = self.links[point.kind].shared_ring
        return ring(point.number, point.bytes) + point.small_reduces * ring(point.number, SMALL_BYTES)

    def step(self, point: Point) -> float:
        """Predicted seconds of a point's step; its measured times are not used."""
        return self.compute(point.number, point.batch_size) + self.network(point)


def fit(points: Sequence[Point], cores: int) -> SharedCores:
    """Fits the model of a machine by least squares of relative errors.

    Steps of one replica give the times of a step and of an example; separate all-reduces of two give latency and
    bandwidth for each kind.
    """
    one = [point for point in points if point.fitted]
    batches = [point.batch_size for point in one]
    alone, busy = (_line(batches, seconds) for seconds in ([p.step for p in one], [p.busy for p in one]))
    links = {}
    for kind in dict.fromkeys(point.kind for point in points):
        two = [point for point in points if point.number == 2 and point.kind == kind]
        sizes = [size for point in two for size in (SMALL_BYTES, point.bytes)]
        latency, per_byte = _line(sizes, [time for point in two for time in (point.small, point.all_reduce)])
        links[kind] = Link(latency / 2, 2 / per_byte if per_byte else math.inf)
    return SharedCores(cores, alone, busy, links)


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Offset and slope, neither negative, of the line with the smallest relative errors."""
    scale = max(x)  # bytes and seconds are far apart
    columns = np.stack([np.array(x) / scale, np.ones(len(x))], axis=1) / np.array(y)[:, None]
    # Not `nnls`, which is wrong in SciPy 1.15, the last one for Python 3.10.
    slope, offset = optimize.lsq_linear(columns, np.ones(len(x)), bounds=(0, np.inf), method="bvls").x
    return float(offset), float(slope / scale)


@dataclasses.dataclass(frozen=True)
class Machine:
    """A cluster of GPU nodes."""

    images_per_second: float  # training speed of a single GPU, assumed to be the same for any batch
    gpus_per_node: int
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


def predict(machine: Machine, gpus: int, batch_per_gpu: float, *, size: float, small_reduces: int) -> dict[str, Any]:
    """Predicts a step on a number of GPUs.

    Args:
      size: bytes that each contributes to the one all-reduce.
      small_reduces: number of further all-reduces of `SMALL_BYTES`, those of batch norms.

    Returns:
      `gpus` and `batch_size`; seconds of the `step` and of its parts; `images_per_second`; `efficiency`, relative to
      GPUs that never wait; and `bottleneck`, the part that takes most of the time.
    """
    gradients, norms = machine.all_reduce(gpus, size), small_reduces * machine.all_reduce(gpus, SMALL_BYTES)
    compute, network = batch_per_gpu / machine.images_per_second, gradients + norms
    input_seconds = batch_per_gpu * min(gpus, machine.gpus_per_node) / machine.input_per_host
    step = max(compute + network, input_seconds)
    waits = "input" if input_seconds > compute + network else "network" if network > compute else "compute"
    return {
        "gpus": gpus, "batch_size": batch_per_gpu * gpus, "compute": compute, "gradients": gradients, "norms": norms,
        "network": network, "input": input_seconds, "step": step, "images_per_second": batch_per_gpu * gpus / step,
        "efficiency": compute / step, "bottleneck": waits,
    }  # fmt: skip
