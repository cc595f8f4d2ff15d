"""How fast examples are decoded, by a core, a process and data services: python -m petseg.benchmark --measure=decoding.

Ways to decode take turns in one process. Beside images a second by the wall clock, which other work on the machine
slows down, stand images for each second of processor time, which hardly depends on it: from those follows how many
cores keep up with a GPU.
"""

import contextlib
import dataclasses
import logging
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from petseg.benchmark.spread import spread
from petseg.config import DataConfig
from petseg.config.options import Group, option
from petseg.errors import ConfigError, DataError
from petseg.runtime import sockets

DECODED = 512  # examples that take turns, at most
SPARE = 0.2  # share of cores beyond those that just keep up, for what else a host does
SERVICE_SECONDS = 60.0
WARM_UP, IDLE_SECONDS = 4, 0.3
SEED = 0
logger = logging.getLogger("petseg.benchmark")


@dataclasses.dataclass(frozen=True)
class DecodingConfig(Group):
    """What --measure=decoding measures."""

    services: int = option(
        3,
        "most data services to start for --measure=decoding, each on a core of its own as far as there are",
        minimum=0,
    )
    gpu_speeds: str = option(
        "100,400,1600,6400",
        "images a second that GPUs train on, for which --measure=decoding says how many cores decode as many; numbers "
        "separated by commas",
        required=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.speeds()

    def speeds(self) -> tuple[float, ...]:
        """The GPUs' images a second."""
        try:
            speeds = tuple(float(part) for part in self.gpu_speeds.split(","))
        except ValueError:
            speeds = ()
        if not speeds or not all(math.isfinite(speed) and speed > 0 for speed in speeds):
            raise ConfigError(f"--gpu_speeds={self.gpu_speeds}: must be numbers above 0, separated by commas")
        return speeds


class Turn(NamedTuple):
    """What so many images took: by the wall clock, and of processor time, both in seconds."""

    images: int
    seconds: float
    core_seconds: float


Lane = Callable[[int], Turn]  # number of batches -> what they took


def cores_needed(images_per_second: float, images_per_core_second: float) -> int:
    """How many cores decode as many images a second as a GPU trains on, and have some of their time to spare."""
    return math.ceil(images_per_second * (1 + SPARE) / images_per_core_second)


def measure(config: DecodingConfig, data: DataConfig, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Lets all ways to decode the training split take turns of so many batches.

    Returns:
      a row for each way; all have the GPUs' speeds and the cores that they need.

    Raises:
      PetsegError: if the data cannot be had, or no data service starts.
    """
    from petseg.runtime import host_allocator, startup

    startup.load_tensorflow()
    host_allocator.keep_freed_memory()
    data = dataclasses.replace(data, cache="none", on_bad_example="stop", data_service="")
    with contextlib.ExitStack() as stack:
        lanes = dict(_lanes(data, stack, config.services))
        turns: dict[str, list[Turn]] = {title: [] for title in lanes}
        for number in range(rounds):
            for title, lane in lanes.items():
                logger.info("round %d of %d: %s", number + 1, rounds, title)
                turns[title].append(lane(steps))
    return [_row(title, taken, config.speeds()) for title, taken in turns.items()]


def _row(title: str, turns: Sequence[Turn], speeds: Sequence[float]) -> dict[str, Any]:
    of_cores = [turn.images / turn.core_seconds for turn in turns]
    return {
        "title": title,
        "images_per_second": [turn.images / turn.seconds for turn in turns],
        "images_per_core_second": of_cores,
        "cores": {f"{speed:g}": cores_needed(speed, statistics.median(of_cores)) for speed in speeds},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Medians with their spread, and the cores that GPUs need."""
    speeds = [*rows[0]["cores"]]
    needed = " | ".join(f"cores for {speed} images/s" for speed in speeds)
    lines = [
        f"| | images/s | images for a core's second | {needed} |",
        "| --- | --- | --- |" + " --- |" * len(speeds),
    ]
    for row in rows:
        numbers = " | ".join(str(row["cores"][speed]) for speed in speeds)
        wall, cores = (spread(row[f"images_per_{unit}"]) for unit in ("second", "core_second"))
        lines.append(f"| {row['title']} | {wall} | {cores} | {numbers} |")
    return "\n".join([*lines, "", f"cores: {SPARE:.0%} more than just keep up"])


def _lanes(data: DataConfig, stack: contextlib.ExitStack, services: int) -> Iterator[tuple[str, Lane]]:
    """The ways to decode, by their titles; what runs for them ends with the stack."""
    import tensorflow as tf

    from petseg.data import decoding
    from petseg.data.source import Source

    whole = Source.open(data, data.train_split, None)
    if data.resize == "crop":
        whole = whole.on_canvases()
    undecoded = next(iter(whole.undecoded().batch(min(DECODED, whole.count))))
    sizes = [len(file) for file in undecoded["image"].numpy()]
    logger.info("%d pictures of %s, on average of %.0f KiB", len(sizes), whole.origin, statistics.mean(sizes) / 1024)
    yield (
        "a picture alone, not resized",
        _on_one_core(undecoded, lambda example: tf.shape(tf.io.decode_image(example["image"], 3)), data.batch_size),
    )
    yield "an example, --decode=full", _on_one_core(undecoded, whole.decode, data.batch_size)
    if data.resize != "crop":
        try:
            yield (
                "an example, --decode=scaled",
                _on_one_core(undecoded, whole.decoding_smaller().decode, data.batch_size),
            )
        except DataError as error:
            logger.warning("not measured: %s", error)

    examples = decoding.load(data, data.train_split, for_training=True)
    yield f"batches of this process, --decode={data.decode}", _of_input(examples, data.batch_size, [], [])
    if not services:
        return
    if examples.on_demand is None or examples.on_demand.fetch_anywhere is None:
        logger.warning("no data services: none can read files of this format without --cache=disk")
        return
    started = [stack.enter_context(_service(number)) for number in range(services)]
    _wait_for([address for _, address in started])
    for count in range(1, services + 1):
        processes, addresses = zip(*started[:count], strict=True)
        title = f"batches of {count} data service{'s' * (count > 1)}, --decode={data.decode}"
        yield title, _of_input(examples, data.batch_size, processes, addresses)


def _on_one_core(undecoded: Any, decode: Callable[[Any], Any], batch_size: int) -> Lane:
    """Decodes examples that are in memory, one after the other, in one thread."""
    import tensorflow as tf

    from petseg.runtime import autotuning

    options = autotuning.off()
    options.threading.private_threadpool_size = options.threading.max_intra_op_parallelism = 1
    decode = tf.autograph.experimental.do_not_convert(decode)
    decoded = tf.data.Dataset.from_tensor_slices(undecoded).repeat().map(decode).batch(batch_size).with_options(options)
    batches = iter(decoded)
    next(batches)

    def turn(steps: int) -> Turn:
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            next(batches)
        return Turn(steps * batch_size, time.perf_counter() - began, time.process_time() - cpu)

    return turn


def _of_input(examples: Any, batch_size: int, processes: Sequence[Any], addresses: Sequence[str]) -> Lane:
    """Batches as a training gets them, of this process or from the services at some addresses."""
    import tensorflow as tf

    from petseg.data import input_pipeline

    def core_seconds() -> float:
        return time.process_time() + sum(sum(process.cpu_times()[:2]) for process in processes)

    def turn(steps: int) -> Turn:
        # Another iterator each time: the rest of an old one would be made while others have their turn.
        first = WARM_UP * max(1, len(processes))
        batches = iter(
            input_pipeline.distributed_training_batches(
                tf.distribute.OneDeviceStrategy("/cpu:0"),
                examples,
                batch_size=batch_size,
                seed=SEED,
                first_step=0,
                last_step=10**6,
                addresses=addresses,
            )
        )
        for _ in range(first):
            next(batches)
        began, cpu = time.perf_counter(), core_seconds()
        for _ in range(steps):
            next(batches)
        taken = Turn(steps * batch_size, time.perf_counter() - began, core_seconds() - cpu)
        del batches
        _until_idle(core_seconds)
        return taken

    return turn


def _until_idle(core_seconds: Callable[[], float]) -> None:
    before = -math.inf
    for _ in range(int(10 / IDLE_SECONDS)):
        now = core_seconds()
        if now - before < IDLE_SECONDS / 10:
            return
        before = now
        time.sleep(IDLE_SECONDS)


@contextlib.contextmanager
def _service(number: int) -> Iterator[tuple[Any, str]]:
    """A data service in a process of its own, kept to one core where the system can do that, and its address."""
    import psutil

    (port,) = sockets.free_ports(1)
    command = [sys.executable, "-m", "petseg.data.service", f"--port={port}", "--host=localhost"]
    with _on_core(number):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield psutil.Process(process.pid), f"localhost:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _on_core(number: int) -> Iterator[None]:
    """Keeps this thread, and processes that it starts, to one core."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(usable)[number % len(usable)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


def _wait_for(addresses: Sequence[str]) -> None:
    from petseg.data import service_client

    service_client.wait_for(addresses, SERVICE_SECONDS)
