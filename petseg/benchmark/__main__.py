"""Measures a recipe's speed: python -m petseg.benchmark [--rounds=N] [any flag of train.py].

With --measure=time_to: how long recipes train until they reach a score. With --measure=decoding: what it takes to
decode each batch anew, and how many cores a GPU therefore needs. With --measure=scaling: how steps of several replicas
and processes scale, and what that says of larger machines.

Contestants are processes of their own, which take turns, so that a noisy machine is noisy for all. What counts are the
ratios of turns in the same round.
"""

import contextlib
import dataclasses
import json
import logging
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from petseg.benchmark import decoding_speed, scaling, scaling_tables, time_to
from petseg.benchmark.decoding_speed import DecodingConfig
from petseg.benchmark.scaling import ScalingConfig
from petseg.benchmark.spread import spread
from petseg.benchmark.time_to_config import TimeToConfig
from petseg.config import Config, command_line
from petseg.config.model_config import DECODERS, ENCODERS
from petseg.config.options import Group, option
from petseg.errors import ConfigError, PetsegError

FOR_EVER = 10**9
MOST_AT_ONCE = 5  # processes; with a trained encoder and batches of 32 at 128 px one takes 2 GiB
GROUPS = ("training", "variants", "networks", "input", "evaluation", "limit", "programs")
# What takes long, or many processes, and so must be asked for.
TIME_TO, DECODING, SCALING = "time_to", "decoding", "scaling"
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
        known = (*GROUPS, TIME_TO, DECODING, SCALING)
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise ConfigError(f"--measure={self.measure}: no {unknown[0]!r}; must be some of {', '.join(known)}")
        return tuple(name for name in known if name in asked)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.groups()


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(Config):
    """A training run, and how to measure it."""

    measure: MeasureConfig = MeasureConfig()
    time_to: TimeToConfig = dataclasses.field(default_factory=TimeToConfig)
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    scaling: ScalingConfig = dataclasses.field(default_factory=ScalingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if TIME_TO in self.measure.groups():
            self.time_to.check()
        if SCALING in self.measure.groups():
            self.scaling.check(self.data.batch_size)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contestant under a name: what it does, with which config, in turns of how many steps."""

    title: str
    contestant: str
    config: Config
    steps: int


def main(config: BenchmarkConfig) -> dict[str, Any]:
    """Measures what is asked for, prints tables as it goes, and returns all numbers."""
    measure = config.measure
    results: dict[str, Any] = {"command": " ".join(sys.argv), "groups": {}}
    with tempfile.TemporaryDirectory(prefix="petseg-benchmark-") as scratch:
        for group in measure.groups():
            if group == "programs":
                rows = _programs(config, Path(scratch))
            elif group == TIME_TO:
                rows = time_to.race(config.time_to, _flags_for_all(), Path(scratch))
            elif group == DECODING:
                rows = decoding_speed.measure(config.decoding, config.data, measure.rounds, measure.steps)
            elif group == SCALING:
                rows = scaling.measure(config.scaling, _training_config(config, Path(scratch)))
            else:
                rows = _heats(_entries(group, config, Path(scratch)), measure.rounds)
            results["groups"][group] = rows
            print(f"\n{group}\n{TABLES.get(group, _table_of_speeds)(rows)}", flush=True)
            if group == SCALING and config.scaling.plot:
                scaling_tables.draw(rows, config.scaling.plot)
            if measure.output:
                Path(measure.output).write_text(json.dumps(results, indent=2) + "\n")
    return results


def _entries(group: str, config: BenchmarkConfig, scratch: Path) -> list[Entry]:
    """Who takes turns with whom; the first is what the others are compared with."""
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
            Entry("petseg's input", "our_input", plain, 10 * steps),
            Entry("the tutorial's input", "tutorials_input", plain, 10 * steps),
        ]
    if group == "evaluation":
        return [
            Entry("evaluation of the split", "evaluation", plain, 1),
            Entry("bare forward pass", "forward_pass", plain, 1),
        ]
    return [
        Entry("bare compiled step", "counted_step", plain, few),
        Entry("product of matrices", "matrix_product", plain, 20),
        Entry("copy in memory", "copy", plain, 20),
    ]


def _training_config(config: BenchmarkConfig, scratch: Path) -> Config:
    """The run to measure: it never ends and never evaluates; what else it does at intervals stays as it is."""
    plain = Config(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Config)})
    return plain.changed(
        schedule={"epochs": 0, "train_steps": FOR_EVER, "eval_every": FOR_EVER},
        runtime={"workdir": str(scratch / "run"), "quiet": True},
    )


def _variants(plain: Config, steps: int) -> Iterator[Entry]:
    def entry(title: str, **groups: Mapping[str, Any]) -> Entry:
        return Entry(title, "bare_step", plain.changed(**groups), steps)

    yield entry("--jit_compile", compute={"jit_compile": True}, model={"sync_batch_norm": False})
    for precision in ("mixed_float16", "mixed_bfloat16"):
        yield entry(f"--precision={precision}", compute={"precision": precision})
    yield entry("--steps_per_loop=1", schedule={"steps_per_loop": 1})
    yield entry("--micro_batches=2", compute={"micro_batches": 2})
    devices, size = _number_of_gpus(), plain.data.batch_size
    if devices < 2:
        yield entry("--virtual_devices=2", distribution={"virtual_devices": 2})
    for number in range(2, devices + 1):
        of_them = {"num_devices": number}
        yield entry(f"--num_devices={number}, the same batch", distribution=of_them)
        yield entry(
            f"--num_devices={number}, batch x {number}", distribution=of_them, data={"batch_size": size * number}
        )


def _networks(plain: Config, steps: int) -> Iterator[Entry]:
    """Steps and predictions with a trained encoder: each decoder, frozen beginnings, other encoders."""

    def entry(title: str, contestant: str = "bare_step", **model: Any) -> Entry:
        trained = {"network": "", "train_encoder": False, "train_encoder_from": "all", "encoder_weights": "none"}
        optimizer = {"encoder_learning_rate_factor": 1.0, "unfreeze_encoder_at": 0}  # which a frozen one refuses
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
    """Asked in another process, for this one must not take their memory."""
    code = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(answer.stdout)


def _heats(entries: Sequence[Entry], rounds: int) -> list[dict[str, Any]]:
    """Races of as many as memory holds, the first in each of them."""
    first, *others = entries
    rows: list[dict[str, Any]] = []
    for i in range(0, len(others), MOST_AT_ONCE - 1):
        heat = _race([first, *others[i : i + MOST_AT_ONCE - 1]], rounds)
        rows += heat[1:] if rows else heat
    return rows


def _race(entries: Sequence[Entry], rounds: int) -> list[dict[str, Any]]:
    """Lets contestants prepare themselves, one after the other, and then take turns."""
    turns: list[list[dict[str, Any]]] = [[] for _ in entries]
    with contextlib.ExitStack() as stack:
        started, facts = [], []
        for entry in entries:
            started.append(stack.enter_context(_process(entry)))
            facts.append(_answer(entry, started[-1]))
        for number in range(rounds):
            for entry, connection, taken in zip(entries, started, turns, strict=True):
                logger.info("round %d of %d: %s", number + 1, rounds, entry.title)
                connection.send(entry.steps)
                taken.append(_answer(entry, connection))
    rows = []
    for entry, fact, taken in zip(entries, facts, turns, strict=True):
        speeds = [turn["images"] / turn["seconds"] for turn in taken]
        pairs = [turn["images"] / turn["seconds"] for turn in turns[0]]
        rows.append(
            {
                "title": entry.title,
                "images_per_second": speeds,
                "images_per_second_of_first": pairs,
                "first_over_this": [first / this for first, this in zip(pairs, speeds, strict=True)],
                "memory": max(turn["memory/host"] for turn in taken),
                **{key: value for key, value in taken[-1].items() if key == "memory/device"},
                **fact,
            }
        )
    return rows


@contextlib.contextmanager
def _process(entry: Entry) -> Iterator[Connection]:
    from petseg.benchmark import contestants  # TensorFlow loads here, after the flags are checked

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    logger.info("preparing: %s", entry.title)
    process = context.Process(target=contestants.serve, args=(theirs, entry.contestant, entry.config), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


def _answer(entry: Entry, connection: Connection) -> dict[str, Any]:
    try:
        answer = connection.recv()
    except EOFError:
        raise PetsegError(f"{entry.title}: its process ended") from None
    if "failed" in answer:
        raise PetsegError(f"{entry.title}: {answer['failed']}")
    return answer


def _programs(config: BenchmarkConfig, scratch: Path) -> list[dict[str, Any]]:
    """How long a user waits: for an answer to --help, and for the first step of a run."""
    rows = []
    for title, arguments, until in (
        ("train.py --help", ["--help"], ""),
        ("train.py until the first step is done", _first_step_flags(scratch), "step 1/"),
    ):
        seconds = []
        for number in range(config.measure.rounds):
            logger.info("round %d of %d: %s", number + 1, config.measure.rounds, title)
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-c", TRAIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            lines = []
            for line in process.stdout or ():
                lines.append(line)
                if until and until in line:
                    seconds.append(time.perf_counter() - began)
                    break
            if until:
                process.kill()
            process.wait()
            if not until:
                seconds.append(time.perf_counter() - began)
            if len(seconds) <= number or process.returncode > 0:
                raise PetsegError(f"{title}: {lines[-1].strip() if lines else 'said nothing'}")
        rows.append({"title": title, "seconds": seconds})
    return rows


def _first_step_flags(scratch: Path) -> list[str]:
    flags = [f"--workdir={scratch / 'first'}", "--epochs=0", "--train_steps=1000", "--log_every=1", "--summary_every=1"]
    return [*_flags_for_all(), *flags]


def _flags_for_all() -> list[str]:
    """The command line, without the flags that say what to measure; each with or without a "=" before its value."""
    groups = (MeasureConfig, TimeToConfig, DecodingConfig, ScalingConfig)
    fields = [field for group in groups for field in dataclasses.fields(group)]
    own = {field.name for field in fields}
    without_value = {f"{no}{field.name}" for field in fields if field.type is bool for no in ("", "no")}
    kept, keeps = [], True
    for argument in sys.argv[1:]:
        name, equals, _ = argument.lstrip("-").partition("=")
        is_own = argument.startswith("-") and name in own | without_value
        if keeps and not is_own:
            kept.append(argument)
        # Whether what follows is no value of a flag that is left out.
        keeps = not is_own or bool(equals) or name in without_value
    return kept


def _table_of_speeds(rows: Sequence[Mapping[str, Any]]) -> str:
    """Medians with their spread; ratios of turns in the same round, and of all turns together."""
    lines = [
        f"| | images/s | {rows[0]['title']} / this | in all | memory, MiB | ready after, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        first, this = (row[f"images_per_second{suffix}"] for suffix in ("_of_first", ""))
        ratio = statistics.harmonic_mean(first) / statistics.harmonic_mean(this)
        lines.append(
            f"| {row['title']} | {spread(row['images_per_second'], 1)} | {spread(row['first_over_this'], 2)} "
            f"| {ratio:.2f} | {row['memory']:.0f} | {row['ready_after']:.0f} |"
        )
    if "data_memory" in rows[0]:
        lines += ["", *(f"{row['title']} holds {row['data_memory']:.0f} MiB of data" for row in rows)]
    return "\n".join(lines)


def _table_of_limit(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a step must compute and move, beside what the machine computes and moves."""
    step, product, copy = (statistics.median(row["images_per_second"]) for row in rows)
    flops, moved = rows[0]["flops_per_image"], rows[0]["bytes_per_image"]
    lines = [
        "| | an image takes | the step's rate | the machine's | share |",
        "| --- | --- | --- | --- | --- |",
        f"| floating-point operations | {flops / 1e9:.2f} G | {flops * step / 1e9:.1f} G/s | {product / 1e9:.1f} G/s "
        f"(product of matrices) | {flops * step / product:.2f} |",
        f"| bytes, if nothing is fused | {moved / 1e9:.2f} G | {moved * step / 1e9:.1f} G/s | {copy / 1e9:.1f} G/s "
        f"(copy in memory) | {moved * step / copy:.2f} |",
    ]
    return "\n".join(lines)


def _table_of_programs(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| | seconds |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {row['title']} | {spread(row['seconds'], 1)} |" for row in rows)])


TABLES = {
    "limit": _table_of_limit,
    "programs": _table_of_programs,
    TIME_TO: time_to.table,
    DECODING: decoding_speed.table,
    SCALING: scaling_tables.tables,
}

if __name__ == "__main__":
    command_line.run(main, BenchmarkConfig, __doc__)
