"""Scaling of training steps: python -m petseg.benchmark --measure=scaling [any flag of train.py].

Measures steps of several replicas of one process, and of several worker processes on the loopback interface, on CPUs.
A model is fitted to steps of one replica and to separate all-reduces of two, compared with all other steps, and used to
predict larger machines.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from typing import Any

from petseg.benchmark import processes, scaling_model
from petseg.benchmark.scaling_model import REPLICAS, WORKERS, Link, Machine, Point, SharedCores
from petseg.benchmark.tables import table
from petseg.config import Config
from petseg.config.options import Group, numbers, option
from petseg.errors import ConfigError
from petseg.runtime import sockets
from petseg.runtime.cpus import usable_cpus

MOST_GPUS = 1024
WITHOUT_GPUS = {"CUDA_VISIBLE_DEVICES": "-1"}
# Flags that describe a machine, in the order of `ScalingConfig.machines`: type, and whether 0 is allowed.
MACHINE_FLAGS: dict[str, tuple[type, bool]] = {
    "gpu_images_per_second": (float, False),
    "gpus_per_node": (int, False),
    "interconnect_gb": (float, False),
    "interconnect_us": (float, True),
    "intra_node_gb": (float, False),
    "intra_node_us": (float, True),
    "input_images_per_second": (float, True),
}
# Columns of the tables: the format of their cells by title.
POINTS = {
    "measured": "{number} {kind}",
    "scaling": "{scaling}",
    "batch": "{batch_size}",
    "step, ms": "{step_ms:.0f}",
    "predicted, ms": "{predicted_ms:.0f}",
    "of it network": "{predicted_network_ms:.1f}",
    "error": "{error:+.0%}",
    "processor time, ms": "{busy_ms:.0f}",
    "predicted processor time, ms": "{predicted_busy_ms:.0f}",
    "all-reduce alone, ms": "{all_reduce_ms:.1f}",
    "predicted all-reduce, ms": "{predicted_all_reduce_ms:.1f}",
    "fitted": "{fitted}",
}
PREDICTIONS = {
    "GPUs": "{gpus}",
    "scaling": "{scaling}",
    "batch": "{batch_size:.0f}",
    "compute, ms": "{compute_ms:.1f}",
    "gradients, ms": "{gradients_ms:.2f}",
    "batch norms, ms": "{norms_ms:.2f}",
    "input, ms": "{input_ms:.1f}",
    "images/s": "{images_per_second:.0f}",
    "efficiency": "{efficiency:.2f}",
    "bottleneck": "{bottleneck}",
}
logger = logging.getLogger("petseg.benchmark")


@dataclasses.dataclass(frozen=True)
class ScalingConfig(Group):
    """Settings of --measure=scaling: what it measures, and for which machines it predicts."""

    scaling_numbers: str = option(
        "1,2,3,4", "numbers of replicas, and of workers, to measure; 1 and 2 must be among them", required=True
    )
    scaling_steps: int = option(10, "steps of which the median counts, with --measure=scaling", unit="steps", minimum=1)
    gpu_images_per_second: str = option(
        "400",
        "training speed of a single GPU, images/s; here and below, comma-separated values describe several machines",
    )
    gpus_per_node: str = option("8", "GPUs in a node")
    interconnect_gb: str = option("25", "bandwidth of a node to the others, GB/s")
    interconnect_us: str = option("10", "latency between nodes, microseconds")
    intra_node_gb: str = option("200", "bandwidth of a GPU to the others of its node, GB/s")
    intra_node_us: str = option("5", "latency between GPUs of a node, microseconds")
    input_images_per_second: str = option("0", "speed of the input of a node, images/s; 0: as measured on this host")
    gpu_batch: int = option(0, "examples of each GPU in weak scaling; 0: --batch_size", unit="examples", minimum=0)
    strong_batch: int = option(4096, "examples of a step in strong scaling", unit="examples", minimum=1)

    def numbers(self) -> tuple[int, ...]:
        """Numbers of replicas and workers, in order."""
        parts = self.scaling_numbers.split(",")
        numbers = tuple(sorted({int(part) for part in parts if part.strip().isdecimal()}))
        if len(numbers) < len(parts) or numbers[:2] != (1, 2):
            raise ConfigError(
                f"--scaling_numbers={self.scaling_numbers}: must be different numbers from 1 on, 1 and 2 among them"
            )
        return numbers

    def check(self, batch_size: int) -> None:
        """Raises ConfigError if a flag is invalid, or the numbers do not divide the batch."""
        most = self.numbers()[-1]
        self.machines(input_per_host=1.0)
        if batch_size % most or batch_size // most < 2:
            raise ConfigError(
                f"--batch_size={batch_size}: must be a multiple of the largest of --scaling_numbers, {most}, and at "
                "least twice that"
            )

    def machines(self, input_per_host: float) -> list[Machine]:
        """The machines that the flags describe, in their order."""
        columns = [_numbers_of(name, getattr(self, name), *allowed) for name, allowed in MACHINE_FLAGS.items()]
        rows = max(map(len, columns))
        for name, column in zip(MACHINE_FLAGS, columns, strict=True):
            if len(column) not in (1, rows):
                raise ConfigError(
                    f"--{name}={getattr(self, name)}: must be one number, or one for each of {rows} machines"
                )
        machines = zip(*(column * (rows // len(column)) for column in columns), strict=True)
        return [
            Machine(
                speed, number, Link(us / 1e6, gb * 1e9), Link(node_us / 1e6, node_gb * 1e9), input or input_per_host
            )
            for speed, number, node_gb, node_us, gb, us, input in machines
        ]


def _numbers_of(name: str, text: str, kind: type, may_be_0: bool) -> list[Any]:
    """Parses the comma-separated numbers of a flag."""
    found = [kind(number) for number in numbers(text) if kind(number) == number]
    if len(found) < text.count(",") + 1 or min(found) < 0 or not (min(found) or may_be_0):
        what = f"{'whole ' if kind is int else ''}numbers {'of at least' if may_be_0 else 'above'} 0"
        raise ConfigError(f"--{name}={text}: must be {what}, separated by commas")
    return found


def measure(config: ScalingConfig, plain: Config) -> list[dict[str, Any]]:
    """Measures steps, fits the model, and predicts larger machines.

    Returns one dictionary of the results: `points`, `input_per_host`, `model` and `predictions`.
    """
    points = []
    for kind in (REPLICAS, WORKERS):
        for number in config.numbers():
            batches = batch_sizes(plain.data.batch_size, number, config.numbers()[-1])
            configs = [replicated_config(plain, kind, number, size) for size in batches]
            logger.info("%d %s: %d measurements", number, kind, len(configs))
            results = measure_steps(kind, number, configs, config.scaling_steps)
            for (size, title), found in zip(batches.items(), results, strict=True):
                row = {key: found[key] for key in ("step", "busy", "all_reduce", "small", "bytes", "small_reduces")}
                row["busy"] *= number if kind == WORKERS else 1  # each measures its own; they are alike
                points.append(Point(kind, number, title, size, **row))
    logger.info("measuring the input of this host")
    input_per_host = _input_per_host(plain)
    model = scaling_model.fit(points, usable_cpus())
    return [
        {
            "points": [_beside_model(point, model) for point in points],
            "input_per_host": input_per_host,
            "model": dataclasses.asdict(model),
            "predictions": _predictions(config, plain, points, input_per_host),
        }
    ]


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Measured points beside the model's, the input, and predictions for each machine."""
    (found,) = rows
    lines = [*table(found["points"], POINTS), "", f"input of this host: {found['input_per_host']:.0f} images/s"]
    for machine, predictions in itertools.groupby(found["predictions"], key=lambda each: each["machine"]):
        lines += ["", f"Predicted: {machine}", "", *table(predictions, PREDICTIONS)]
    return "\n".join(lines)


def _beside_model(point: Point, model: SharedCores) -> dict[str, Any]:
    """A point with its predictions, and their relative error."""
    predicted = model.step(point)
    return {
        **dataclasses.asdict(point),
        "predicted": predicted,
        "predicted_busy": model.work(point.number, point.batch_size),
        "predicted_network": model.network(point),
        "predicted_all_reduce": model.links[point.kind].shared_ring(point.number, point.bytes),
        "error": predicted / point.step - 1,
        "fitted": point.fitted,
    }


def batch_sizes(batch_size: int, number: int, most: int) -> dict[int, str]:
    """The global batches to measure, each for weak or strong scaling, or both.

    Weak: each replica has the share that it has of the whole batch with the largest number of replicas. Strong: the
    whole batch, rounded down to a multiple of the number.
    """
    weak, strong = batch_size // most * number, batch_size // number * number
    return {weak: "both"} if weak == strong else {weak: "weak", strong: "strong"}


def replicated_config(plain: Config, kind: str, number: int, batch_size: int) -> Config:
    """The training run on a number of replicas or workers."""
    strategy = "multi_worker_mirrored" if kind == WORKERS else "one_device" if number == 1 else "mirrored"
    devices = {
        "strategy": strategy,
        "num_devices": 0,
        "virtual_devices": number if strategy == "mirrored" else 0,
        "cross_device_ops": "auto",
    }
    return plain.changed(distribution=devices, data={"batch_size": batch_size}, runtime={"deterministic": False})


def measure_steps(kind: str, number: int, configs: Sequence[Config], steps: int) -> list[dict[str, Any]]:
    """Measures each config on replicas of one process, or on worker processes, of which the first one's results count.

    Returns what `scaling_contestants.measure_on` returns.
    """
    environments: list[dict[str, str]] = [{}]
    if kind == WORKERS:
        cluster = {"worker": [f"localhost:{port}" for port in sockets.free_ports(number)]}
        tasks = [{"cluster": cluster, "task": {"type": "worker", "index": index}} for index in range(number)]
        environments = [{"TF_CONFIG": json.dumps(task)} for task in tasks]
    return _first_result("scaling_contestants:measure", (configs, steps), environments)


def _input_per_host(plain: Config) -> float:
    """Images per second of the input of this host."""
    config = plain.changed(distribution={"strategy": "one_device", "num_devices": 0, "virtual_devices": 0})
    return _first_result("scaling_contestants:measure_input", (config, 100), [{}])


def _first_result(target: str, arguments: tuple[Any, ...], environments: Sequence[dict[str, str]]) -> Any:
    """Runs a process for each environment at the same time, waits for all results, and returns the first one's."""
    with contextlib.ExitStack() as stack:  # ends the first process last: the others would report that it is lost
        workers = [
            stack.enter_context(
                processes.worker("--measure=scaling", target, *arguments, environment={**each, **WITHOUT_GPUS})
            )
            for each in environments
        ]
        by_connection = {worker.connection: worker for worker in workers}
        results: dict[Any, Any] = {}
        while len(results) < len(workers):
            for ready in connection.wait([each for each in by_connection if each not in results]):
                results[ready] = by_connection[ready].receive()  # type: ignore[index]
        return results[workers[0].connection]


def _predictions(
    config: ScalingConfig, plain: Config, points: Sequence[Point], input_per_host: float
) -> list[dict[str, Any]]:
    """Predicts weak and strong scaling from one GPU to `MOST_GPUS`, for each machine."""
    two = next(point for point in points if point.number == 2)
    rows = []
    for machine in config.machines(input_per_host):
        for scaling, batch in (("weak", config.gpu_batch or plain.data.batch_size), ("strong", config.strong_batch)):
            for gpus in (2**power for power in range(MOST_GPUS.bit_length())):
                if scaling == "strong" and gpus > batch:
                    break
                each = batch if scaling == "weak" else batch / gpus
                found = scaling_model.predict(machine, gpus, each, size=two.bytes, small_reduces=two.small_reduces)
                rows.append({"machine": machine.description(), "scaling": scaling, **found})
    return rows
