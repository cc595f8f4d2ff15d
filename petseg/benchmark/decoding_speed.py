"""Decoding speed of a core: python -m petseg.benchmark --measure=decoding.

The decoders take turns in one process. Images per second of wall-clock time depend on other work on the machine; images
per second of processor time hardly do, and give the number of cores that keep up with a GPU.
"""

import dataclasses
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from petseg.benchmark.tables import spread, table as markdown_table
from petseg.config import DataConfig
from petseg.config.options import Group, numbers, option
from petseg.errors import ConfigError, DataError

MAX_EXAMPLES = 512  # that are decoded in turn
SPARE = 0.2  # additional cores, for other work of the host
logger = logging.getLogger("petseg.benchmark")


@dataclasses.dataclass(frozen=True)
class DecodingConfig(Group):
    """Settings of --measure=decoding."""

    gpu_speeds: str = option(
        "100,400,1600,6400",
        "training speeds of GPUs, images per second, for which --measure=decoding computes the number of cores that "
        "decode as many; separated by commas",
        required=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.speeds()

    def speeds(self) -> tuple[float, ...]:
        """The GPUs' images per second."""
        speeds = numbers(self.gpu_speeds)
        if not speeds or min(speeds) <= 0:
            raise ConfigError(f"--gpu_speeds={self.gpu_speeds}: must be numbers above 0, separated by commas")
        return speeds


class Turn(NamedTuple):
    """One measurement: number of images, wall-clock seconds, seconds of processor time."""

    images: int
    seconds: float
    core_seconds: float


Decoder = Callable[[int], Turn]  # decodes a number of batches


def cores_needed(images_per_second: float, images_per_core_second: float) -> int:
    """Number of cores that decode as many images per second as a GPU trains on, with `SPARE` to spare."""
    return math.ceil(images_per_second * (1 + SPARE) / images_per_core_second)


def measure(config: DecodingConfig, data: DataConfig, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Measures all decoders of the training split in turns of `steps` batches.

    Returns a row for each decoder, with the number of cores that each of the GPUs needs. Raises PetsegError if the data
    cannot be read.
    """
    from petseg.runtime import host_allocator, startup

    startup.load_tensorflow()
    host_allocator.keep_freed_memory()
    data = dataclasses.replace(data, cache="memory", on_bad_example="stop", data_service="")
    decoders = dict(_decoders(data))
    turns: dict[str, list[Turn]] = {title: [] for title in decoders}
    for number in range(rounds):
        for title, decode in decoders.items():
            logger.info("round %d of %d: %s", number + 1, rounds, title)
            turns[title].append(decode(steps))
    return [summary(title, results, config.speeds()) for title, results in turns.items()]


def summary(title: str, turns: Sequence[Turn], speeds: Sequence[float]) -> dict[str, Any]:
    """The speeds of a decoder in its turns, and the cores that GPUs of some speeds need."""
    of_cores = [turn.images / turn.core_seconds for turn in turns]
    return {
        "title": title,
        "images_per_second": [turn.images / turn.seconds for turn in turns],
        "images_per_core_second": of_cores,
        "cores": {f"{speed:g}": cores_needed(speed, statistics.median(of_cores)) for speed in speeds},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Medians with their spread, and the cores that GPUs need."""
    shown = [
        {
            "title": each["title"],
            "wall": spread(each["images_per_second"]),
            "core": spread(each["images_per_core_second"]),
            **{f"cores_{number}": count for number, count in enumerate(each["cores"].values())},
        }
        for each in rows
    ]
    columns = {
        "": "{title}",
        "images/s": "{wall}",
        "images per core second": "{core}",
        **{f"cores for {speed} images/s": f"{{cores_{i}}}" for i, speed in enumerate(rows[0]["cores"])},
    }
    return "\n".join([*markdown_table(shown, columns), "", f"cores: {SPARE:.0%} more than just keep up"])


def _decoders(data: DataConfig) -> Iterator[tuple[str, Decoder]]:
    """The decoders to measure, with their titles."""
    import tensorflow as tf

    from petseg.data.split_source import SplitSource

    whole = SplitSource.open(data, data.train_split, None)
    if data.resize == "crop":
        whole = whole.on_canvases()
    undecoded = next(iter(whole.undecoded().batch(min(MAX_EXAMPLES, whole.count))))
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
                _on_one_core(undecoded, whole.with_scaled_decoding().decode, data.batch_size),
            )
        except DataError as error:
            logger.warning("not measured: %s", error)


def _on_one_core(undecoded: Any, decode: Callable[[Any], Any], batch_size: int) -> Decoder:
    """Decodes examples in memory one after the other, in one thread."""
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
