"""Measures the speed of a training recipe: python -m petseg.benchmark [--rounds=N] [any flag of train.py].

--measure=gpu: a report of what petseg does on this machine's GPU. --measure=time_to: how long recipes train until they
reach a score. --measure=decoding: the cost of decoding each batch anew, and the cores that a GPU needs for it.
--measure=scaling: how steps of several replicas and processes scale, with predictions for larger machines.

Each contestant runs in its own process, and they take turns, so that noise of the machine affects all of them. Compare
ratios of turns in the same round.
"""

import contextlib
import dataclasses
import json
import logging
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from petseg.benchmark import decoding_speed, gpu_report, processes, scaling, time_to_score
from petseg.benchmark.decoding_speed import DecodingConfig
from petseg.benchmark.gpu_report import GpuReportConfig
from petseg.benchmark.scaling import ScalingConfig
from petseg.benchmark.tables import spread, table
from petseg.benchmark.time_to_score import TimeToScoreConfig
from petseg.config import Config, command_line, options
from petseg.config.options import Group, option
from petseg.errors import ConfigError
from petseg.files import write_text

UNLIMITED = 10**9  # steps
TRAINING, GPU, TIME_TO, DECODING, SCALING = GROUPS = ("training", "gpu", "time_to", "decoding", "scaling")
# Functions of `contestants` with their options.
CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole loop": ("whole_loop", {}),
    "bare compiled step": ("bare_step", {}),
    "model.fit": ("keras_fit", {}),
    "model.fit, jit_compile=False": ("keras_fit", {"jit_compile": False}),
}
logger = logging.getLogger("petseg.benchmark")


@dataclasses.dataclass(frozen=True)
class MeasureConfig(Group):
    """Groups to measure, and the length of their turns."""

    measure: str = option(TRAINING, f"what to measure: some of {', '.join(GROUPS)}", required=True)
    rounds: int = option(3, "turns of each contestant", unit="turns", minimum=1)
    steps: int = option(20, "training steps in a turn", unit="steps", minimum=1)
    output: str = option("", "file for all numbers, as JSON; empty: none")

    def groups(self) -> tuple[str, ...]:
        """The groups to measure, in their usual order."""
        asked = [name.strip() for name in self.measure.split(",")]
        unknown = [name for name in asked if name not in GROUPS]
        if unknown:
            raise ConfigError(f"--measure={unknown[0]}: must be some of {', '.join(GROUPS)}")
        return tuple(name for name in GROUPS if name in asked)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.groups()


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """The flags of the benchmark alone."""

    measure: MeasureConfig = MeasureConfig()
    gpu: GpuReportConfig = dataclasses.field(default_factory=GpuReportConfig)
    time_to: TimeToScoreConfig = dataclasses.field(default_factory=TimeToScoreConfig)
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    scaling: ScalingConfig = dataclasses.field(default_factory=ScalingConfig)


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(BenchmarkOptions, Config):
    """A training run, and how to measure it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if GPU in self.measure.groups():
            self.gpu.check()
        if TIME_TO in self.measure.groups():
            self.time_to.check()
        if SCALING in self.measure.groups():
            self.scaling.check(self.data.batch_size)


def main(config: BenchmarkConfig) -> dict[str, Any]:
    """Measures the chosen groups, prints their tables, and returns all numbers."""
    measure = config.measure
    results: dict[str, Any] = {"command": " ".join(sys.argv), "groups": {}}
    with tempfile.TemporaryDirectory(prefix="petseg-benchmark-") as scratch:
        for group in measure.groups():
            if group == GPU:
                rows = gpu_report.measure(config.gpu, training_flags(sys.argv), Path(scratch))
            elif group == TIME_TO:
                rows = time_to_score.race(config.time_to, training_flags(sys.argv), Path(scratch))
            elif group == DECODING:
                rows = decoding_speed.measure(config.decoding, config.data, measure.rounds, measure.steps)
            elif group == SCALING:
                rows = scaling.measure(config.scaling, _training_config(config, Path(scratch)))
            else:
                rows = race(_training_config(config, Path(scratch)), measure.rounds, measure.steps)
            results["groups"][group] = rows
            print(f"\n{group}\n{TABLES.get(group, speed_table)(rows)}", flush=True)
            if measure.output:
                write_text(Path(measure.output), json.dumps(results, indent=2) + "\n")
    return results


def _training_config(config: BenchmarkConfig, scratch: Path) -> Config:
    """The training run to measure, which never ends and never evaluates; its other intervals stay."""
    plain = Config(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Config)})
    return plain.changed(
        schedule={"epochs": 0, "train_steps": UNLIMITED, "eval_every": UNLIMITED},
        runtime={"workdir": str(scratch / "run"), "quiet": True},
    )


def race(config: Config, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Prepares the contestants one after the other, then lets them take turns; all are compared with the first."""
    with contextlib.ExitStack() as stack:
        workers, facts = [], []
        for title, (name, options) in CONTESTANTS.items():
            logger.info("preparing: %s", title)
            workers.append(stack.enter_context(processes.worker(title, "contestants:serve", name, config, options)))
            facts.append(workers[-1].receive())
        turns: list[list[dict[str, Any]]] = [[] for _ in workers]
        for number in range(rounds):
            for title, worker, results in zip(CONTESTANTS, workers, turns, strict=True):
                logger.info("round %d of %d: %s", number + 1, rounds, title)
                worker.send(steps)
                results.append(worker.receive())
    speeds = [[turn["images"] / turn["seconds"] for turn in results] for results in turns]
    return [
        {
            "title": title,
            "images_per_second": own,
            "images_per_second_of_first": speeds[0],
            "first_over_this": [first / this for first, this in zip(speeds[0], own, strict=True)],
            "memory": max(turn["memory/host"] for turn in results),
            **fact,
        }
        for title, own, results, fact in zip(CONTESTANTS, speeds, turns, facts, strict=True)
    ]


def training_flags(argv: Sequence[str]) -> list[str]:
    """The arguments of a command line that are not the benchmark's own flags."""
    own = flags.FlagValues()
    options.define_flags(BenchmarkOptions, own)
    own.set_gnu_getopt()  # do not stop at the value of a flag that is unknown here
    return own(argv, known_only=True)[1:]


def speed_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Medians with their spread; ratios of turns in the same round, and of all turns together."""
    mean = statistics.harmonic_mean
    shown = [
        {
            **this,
            "speed": spread(this["images_per_second"], 1),
            "ratio": spread(this["first_over_this"], 2),
            "in_all": mean(this["images_per_second_of_first"]) / mean(this["images_per_second"]),
        }
        for this in rows
    ]
    columns = {
        "": "{title}",
        "images/s": "{speed}",
        f"{rows[0]['title']} / this": "{ratio}",
        "in all": "{in_all:.2f}",
        "memory, MiB": "{memory:.0f}",
        "ready after, s": "{ready_after:.0f}",
    }
    return "\n".join(table(shown, columns))


TABLES = {
    GPU: lambda rows: gpu_report.markdown(rows, training_flags(sys.argv)),
    TIME_TO: time_to_score.table,
    DECODING: decoding_speed.table,
    SCALING: scaling.tables,
}

if __name__ == "__main__":
    command_line.run(main, BenchmarkConfig, __doc__)
