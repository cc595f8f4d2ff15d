"""Measures the speed of a training recipe: python -m petseg.benchmark [--rounds=N] [any flag of train.py].

--measure=time_to: how long recipes train until they reach a score. --measure=decoding: the cost of decoding each batch
anew, and the number of cores that a GPU needs for it. --measure=scaling: how steps of several replicas and processes
scale, with predictions for larger machines.

Each contestant runs in its own process, and they take turns, so that noise of the machine affects all of them. Compare
ratios of turns in the same round.
"""

import contextlib
import dataclasses
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from petseg.benchmark import decoding_speed, processes, scaling, scaling_tables, time_to_score
from petseg.benchmark.decoding_speed import DecodingConfig
from petseg.benchmark.scaling import ScalingConfig
from petseg.benchmark.tables import heading, row, spread
from petseg.benchmark.time_to_score_config import TimeToScoreConfig
from petseg.config import Config, command_line, options
from petseg.config.model_config import DECODERS, ENCODERS
from petseg.config.options import Group, option
from petseg.errors import ConfigError, PetsegError

UNLIMITED = 10**9  # steps
MOST_AT_ONCE = 5  # processes; with a trained encoder and batches of 32 at 128 px one takes 2 GiB
GROUPS = ("training", "variants", "networks", "input", "evaluation", "limit", "programs")
TIME_TO, DECODING, SCALING = ON_REQUEST = ("time_to", "decoding", "scaling")  # slow, or many processes
TRAIN = "import sys; sys.argv[0] = 'train.py'; from petseg import programs; programs.train()"  # needs no checkout
logger = logging.getLogger("petseg.benchmark")


@dataclasses.dataclass(frozen=True)
class MeasureConfig(Group):
    """What is measured, and for how long."""

    measure: str = option(",".join(GROUPS), "what to measure, separated by commas", required=True)
    rounds: int = option(3, "turns of each contestant", unit="turns", minimum=1)
    steps: int = option(20, "training steps in a turn", unit="steps", minimum=1)
    variant_steps: int = option(
        2, "training steps in a turn of --measure=variants and networks, some of which are slow", minimum=1
    )
    output: str = option("", "file for all numbers, as JSON; empty: none")

    def groups(self) -> tuple[str, ...]:
        """The groups to measure, in their usual order."""
        asked = [name.strip() for name in self.measure.split(",")]
        known = (*GROUPS, *ON_REQUEST)
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise ConfigError(f"--measure={self.measure}: no {unknown[0]!r}; must be some of {', '.join(known)}")
        return tuple(name for name in known if name in asked)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.groups()


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """The flags of the benchmark alone."""

    measure: MeasureConfig = MeasureConfig()
    time_to: TimeToScoreConfig = dataclasses.field(default_factory=TimeToScoreConfig)
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    scaling: ScalingConfig = dataclasses.field(default_factory=ScalingConfig)


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(BenchmarkOptions, Config):
    """A training run, and how to measure it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if TIME_TO in self.measure.groups():
            self.time_to.check()
        if SCALING in self.measure.groups():
            self.scaling.check(self.data.batch_size)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contestant of a race.

    Attributes:
      title: its name in the table.
      contestant: its name in `contestants.CONTESTANTS`.
      config: the training run to measure.
      steps: number of steps in a turn.
    """

    title: str
    contestant: str
    config: Config
    steps: int


def main(config: BenchmarkConfig) -> dict[str, Any]:
    """Measures the chosen groups, prints their tables, and returns all numbers."""
    measure = config.measure
    results: dict[str, Any] = {"command": " ".join(sys.argv), "groups": {}}
    with tempfile.TemporaryDirectory(prefix="petseg-benchmark-") as scratch:
        for group in measure.groups():
            if group == "programs":
                rows = _measure_programs(config, Path(scratch))
            elif group == TIME_TO:
                rows = time_to_score.race(config.time_to, training_flags(sys.argv), Path(scratch))
            elif group == DECODING:
                rows = decoding_speed.measure(config.decoding, config.data, measure.rounds, measure.steps)
            elif group == SCALING:
                rows = scaling.measure(config.scaling, _training_config(config, Path(scratch)))
            else:
                rows = _heats(_entries(group, config, Path(scratch)), measure.rounds)
            results["groups"][group] = rows
            print(f"\n{group}\n{TABLES.get(group, _speed_table)(rows)}", flush=True)
            if group == SCALING and config.scaling.plot:
                scaling_tables.draw(rows, config.scaling.plot)
            if measure.output:
                Path(measure.output).write_text(json.dumps(results, indent=2) + "\n")
    return results


def _entries(group: str, config: BenchmarkConfig, scratch: Path) -> list[Entry]:
    """The contestants of a group; the others are compared with the first."""
    plain, steps, few = _training_config(config, scratch), config.measure.steps, config.measure.variant_steps
    if group == "training":
        return [
            Entry("whole loop", "whole_loop", plain, steps),
            Entry("bare compiled step", "bare_step", plain, steps),
            Entry("model.fit", "keras_fit", plain, steps),
            Entry("model.fit, jit_compile=False", "keras_fit_without_xla", plain, steps),
        ]
    if group == "variants":
        return [Entry("bare compiled step", "bare_step", plain, few), *_variants(plain, few)]
    if group == "networks":
        return list(_networks(plain, few))
    if group == "input":
        return [
            Entry("petseg's input", "petseg_input", plain, 10 * steps),
            Entry("the tutorial's input", "tutorial_input", plain, 10 * steps),
        ]
    if group == "evaluation":
        return [
            Entry("evaluation of the split", "evaluation", plain, 1),
            Entry("bare forward pass", "forward_pass", plain, 1),
        ]
    return [
        Entry("bare compiled step", "counted_step", plain, few),
        Entry("product of matrices", "matrix_product", plain, 20),
        Entry("copy in memory", "memory_copy", plain, 20),
    ]


def _training_config(config: BenchmarkConfig, scratch: Path) -> Config:
    """The training run to measure, which never ends and never evaluates; its other intervals stay."""
    plain = Config(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Config)})
    return plain.changed(
        schedule={"epochs": 0, "train_steps": UNLIMITED, "eval_every": UNLIMITED},
        runtime={"workdir": str(scratch / "run"), "quiet": True},
    )


def _variants(plain: Config, steps: int) -> Iterator[Entry]:
    """Training steps with other options and numbers of devices."""

    def entry(title: str, **groups: Mapping[str, Any]) -> Entry:
        return Entry(title, "bare_step", plain.changed(**groups), steps)

    yield entry("--jit_compile", compute={"jit_compile": True}, model={"sync_batch_norm": False})
    for precision in ("mixed_float16", "mixed_bfloat16"):
        yield entry(f"--precision={precision}", compute={"precision": precision})
    yield entry("--steps_per_loop=1", schedule={"steps_per_loop": 1})
    yield entry("--micro_batches=2", compute={"micro_batches": 2})
    gpus, size = _number_of_gpus(), plain.data.batch_size
    if gpus < 2:
        yield entry("--virtual_devices=2", distribution={"virtual_devices": 2})
    for number in range(2, gpus + 1):
        devices = {"num_devices": number}
        yield entry(f"--num_devices={number}, the same batch", distribution=devices)
        yield entry(
            f"--num_devices={number}, batch x {number}", distribution=devices, data={"batch_size": size * number}
        )


def _networks(plain: Config, steps: int) -> Iterator[Entry]:
    """Steps and predictions with a trained encoder: each decoder, partly frozen encoders, other encoders."""

    def entry(title: str, contestant: str = "bare_step", **model: Any) -> Entry:
        trained = {"network": "", "train_encoder": False, "train_encoder_from": "all", "encoder_weights": "none"}
        optimizer = {"encoder_learning_rate_factor": 1.0, "unfreeze_encoder_at": 0}  # refused with a frozen encoder
        return Entry(title, contestant, plain.changed(model={**trained, **model}, optimizer=optimizer), steps)

    for decoder in DECODERS:
        yield entry(f"--decoder={decoder}", decoder=decoder)
    for first in ("stage_2", "stage_3", "stage_4", "none"):
        yield entry(f"--decoder=light --train_encoder_from={first}", decoder="light", train_encoder_from=first)
    for encoder in ENCODERS:
        if encoder not in (plain.model.encoder, "tiny"):
            yield entry(f"--decoder=light --encoder={encoder}", decoder="light", encoder=encoder, encoder_alpha=1.0)
    for decoder in DECODERS:
        yield entry(f"--decoder={decoder}, prediction", "prediction", decoder=decoder)


def _number_of_gpus() -> int:
    """Number of GPUs, counted in another process so that this one does not take their memory."""
    code = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(answer.stdout)


def _heats(entries: Sequence[Entry], rounds: int) -> list[dict[str, Any]]:
    """Races of at most `MOST_AT_ONCE` contestants, which bounds memory; the first entry takes part in each."""
    first, *others = entries
    rows: list[dict[str, Any]] = []
    for i in range(0, len(others), MOST_AT_ONCE - 1):
        heat = _race([first, *others[i : i + MOST_AT_ONCE - 1]], rounds)
        rows += heat[1:] if rows else heat
    return rows


def _race(entries: Sequence[Entry], rounds: int) -> list[dict[str, Any]]:
    """Prepares contestants one after the other, then lets them take turns."""
    turns: list[list[dict[str, Any]]] = [[] for _ in entries]
    with contextlib.ExitStack() as stack:
        workers, facts = [], []
        for entry in entries:
            logger.info("preparing: %s", entry.title)
            started = processes.worker(entry.title, "contestants:serve", entry.contestant, entry.config)
            workers.append(stack.enter_context(started))
            facts.append(workers[-1].receive())
        for number in range(rounds):
            for entry, worker, results in zip(entries, workers, turns, strict=True):
                logger.info("round %d of %d: %s", number + 1, rounds, entry.title)
                worker.send(entry.steps)
                results.append(worker.receive())
    rows = []
    speeds_of_first = [turn["images"] / turn["seconds"] for turn in turns[0]]
    for entry, fact, results in zip(entries, facts, turns, strict=True):
        speeds = [turn["images"] / turn["seconds"] for turn in results]
        rows.append(
            {
                "title": entry.title,
                "images_per_second": speeds,
                "images_per_second_of_first": speeds_of_first,
                "first_over_this": [first / this for first, this in zip(speeds_of_first, speeds, strict=True)],
                "memory": max(turn["memory/host"] for turn in results),
                **{key: value for key, value in results[-1].items() if key == "memory/device"},
                **fact,
            }
        )
    return rows


def _measure_programs(config: BenchmarkConfig, scratch: Path) -> list[dict[str, Any]]:
    """Times how long a user waits for --help, and for the first step of a run."""
    first_step = [f"--workdir={scratch / 'first'}", "--epochs=0", "--train_steps=1000", "--log_every=1"]
    rows = []
    for title, arguments, until in (
        ("train.py --help", ["--help"], ""),
        (
            "train.py until the first step is done",
            [*training_flags(sys.argv), *first_step, "--summary_every=1"],
            "step 1/",
        ),
    ):
        seconds = []
        for number in range(config.measure.rounds):
            logger.info("round %d of %d: %s", number + 1, config.measure.rounds, title)
            seconds.append(_seconds_until(title, arguments, until))
        rows.append({"title": title, "seconds": seconds})
    return rows


def _seconds_until(title: str, arguments: Sequence[str], until: str) -> float:
    """Seconds from the start of train.py to the output of a text, at which it is killed; empty text: to its end.

    Raises:
      PetsegError: if the program failed, or ended before.
    """
    began, last_line = time.perf_counter(), "no output"
    with subprocess.Popen(
        [sys.executable, "-c", TRAIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            last_line = line.strip()
            if until and until in line:
                process.kill()
                return time.perf_counter() - began
        if until or process.wait():
            raise PetsegError(f"{title}: {last_line}")
    return time.perf_counter() - began


def training_flags(argv: Sequence[str]) -> list[str]:
    """The arguments of a command line that are not the benchmark's own flags."""
    own = flags.FlagValues()
    options.define_flags(BenchmarkOptions, own)
    own.set_gnu_getopt()  # do not stop at the value of a flag that is unknown here
    return own(argv, known_only=True)[1:]


def _speed_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Medians with their spread; ratios of turns in the same round, and of all turns together."""
    lines = heading("", "images/s", f"{rows[0]['title']} / this", "in all", "memory, MiB", "ready after, s")
    for this in rows:
        ratio = statistics.harmonic_mean(this["images_per_second_of_first"])
        ratio /= statistics.harmonic_mean(this["images_per_second"])
        lines.append(
            row(
                this["title"],
                spread(this["images_per_second"], 1),
                spread(this["first_over_this"], 2),
                f"{ratio:.2f}",
                f"{this['memory']:.0f}",
                f"{this['ready_after']:.0f}",
            )
        )
    if "data_memory" in rows[0]:
        lines += ["", *(f"{this['title']} holds {this['data_memory']:.0f} MiB of data" for this in rows)]
    return "\n".join(lines)


def limit_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The operations and bytes per second of a step beside those that the machine reaches."""
    step, product, copy = (statistics.median(each["images_per_second"]) for each in rows)
    flops, moved = rows[0]["flops_per_image"], rows[0]["bytes_per_image"]
    lines = heading("", "an image takes", "the step's rate", "the machine's", "share")
    for title, amount, limit, source in (
        ("floating-point operations", flops, product, "product of matrices"),
        ("bytes, if nothing is fused", moved, copy, "copy in memory"),
    ):
        rates = f"{amount * step / 1e9:.1f} G/s", f"{limit / 1e9:.1f} G/s ({source})"
        lines.append(row(title, f"{amount / 1e9:.2f} G", *rates, f"{amount * step / limit:.2f}"))
    return "\n".join(lines)


def _programs_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [row(each["title"], spread(each["seconds"], 1)) for each in rows]
    return "\n".join([*heading("", "seconds"), *lines])


TABLES = {
    "limit": limit_table,
    "programs": _programs_table,
    TIME_TO: time_to_score.table,
    DECODING: decoding_speed.table,
    SCALING: scaling_tables.tables,
}

if __name__ == "__main__":
    command_line.run(main, BenchmarkConfig, __doc__)
