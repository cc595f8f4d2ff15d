"""Training time until a score is reached: python -m petseg.benchmark --measure=time_to --target=SCORE.

Contestants train one after the other, each in its own process, and are scored at intervals; scoring time is not
counted. The target is reached where it holds at two scores in a row, or at a run's end. With --repeats, a contestant
trains with several seeds, by the rules of MLPerf (Mattson et al. 2020).
"""

import dataclasses
import logging
import re
import shlex
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import scipy.stats

from petseg.benchmark import processes
from petseg.benchmark.tables import table as markdown_table
from petseg.config import Config, command_line, presets
from petseg.config.options import Group, option
from petseg.errors import ConfigError, PetsegError

FIT, TUTORIAL = "model.fit", "tutorial"
SCORE_LINE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*,\s*(\d*\.?\d+)\s*")
logger = logging.getLogger("petseg.benchmark")


@dataclasses.dataclass(frozen=True)
class TimeToScoreConfig(Group):
    """Settings of --measure=time_to."""

    target: float = option(0.0, "mean IoU to reach, with --measure=time_to", minimum=0, maximum=1)
    contestants: str = option(
        f"{FIT},fast",
        f"what to train: `{FIT}`, which is Keras's loop with the tutorial's recipe; names of presets; files of flags; "
        "or `NAME=COMMAND`, another program that prints lines of `SECONDS, MEAN_IOU` (`{seed}` in it is replaced); "
        "separated by commas",
        required=True,
    )
    score_every: int = option(0, "interval of scores; 0: once an epoch", unit="images", minimum=0)
    repeats: int = option(
        1,
        "runs of each contestant, with seeds from --seed on, of commands from 0 on; their seconds are averaged without "
        "the fastest and the slowest, and all must reach the target",
        unit="runs",
        minimum=1,
    )
    fit_steps: int = option(
        0,
        f"steps of {FIT} to measure, from whose speed the time of all its epochs is extrapolated; the target is then "
        "assumed to be reached at their end; 0: train until it is reached",
        unit="steps",
        minimum=0,
    )

    def configs(self, flags: Sequence[str]) -> dict[str, Config | str]:
        """The training config of each contestant, or the command of another program, by its name.

        Raises ConfigError if a preset does not exist, or a contestant is named twice.
        """
        parts = [tuple(text.strip() for text in part.split("=", 1)) for part in self.contestants.split(",")]
        if len({name for name, *_ in parts}) < len(parts):
            raise ConfigError(f"--contestants={self.contestants}: each must be named once")
        return {name: command[0] if command else self._config(name, flags) for name, *command in parts}

    def _config(self, name: str, flags: Sequence[str]) -> Config:
        file = presets.FOLDER / f"{TUTORIAL if name == FIT else name}.cfg"
        file = file if file.is_file() else Path(name)
        if not file.is_file():
            known = ", ".join(presets.names())
            raise ConfigError(f"--contestants={name}: must be {FIT}, a file of flags, or one of the presets {known}")
        return command_line.parse(["train.py", f"--flagfile={file}", *flags], Config)

    def check(self) -> None:
        """Raises ConfigError if there is no target."""
        if not self.target:
            raise ConfigError("--target=0: must be above 0 with --measure=time_to")


def race(config: TimeToScoreConfig, flags: Sequence[str], scratch: Path) -> list[dict[str, Any]]:
    """Trains the contestants, one after the other.

    Returns:
      a row for each: its `title`; whether the target was `reached`; `seconds` until then, or until it ended, of them
      `start_up` before the second step; `images` trained on by then, and their `operations`; `scores`, each with
      `seconds`, `images` and `mean_iou`; `whole_run`, the seconds of all its steps, extrapolated from its speed; and
      `computed`, whether `seconds` are that extrapolation. With --repeats, see `summary`.
    """
    rows = []
    for number, (title, given) in enumerate(config.configs(flags).items()):
        logger.info("%s trains until its mean IoU is %g", title, config.target)
        runs = []
        for repeat in range(config.repeats):
            if isinstance(given, str):
                runs.append(run_command(title, given.replace("{seed}", str(repeat)), config.target))
            else:
                workdir, seed = str(scratch / f"time-to-{number}-{repeat}"), given.runtime.seed + repeat
                each = given.changed(runtime={"workdir": workdir, "seed": seed, "quiet": True})
                runs.append(_train(title, each, config))
        rows.append({"title": title, **(summary(runs, config.target) if config.repeats > 1 else runs[0])})
    return rows


def summary(runs: Sequence[dict[str, Any]], target: float) -> dict[str, Any]:
    """The row of a contestant's runs with several seeds.

    Returns:
      the first run's row, in which all must have `reached` the target; `seconds` and `start_up` are means without the
      fastest and the slowest of at least three runs; `runs` has all rows, and `p_value` is that of Student's one-sided
      t-test that the mean of last scores exceeds the target.
    """
    last = _last_scores(runs)
    by_time = sorted(runs, key=lambda run: run["seconds"])
    counted = by_time[1:-1] if len(runs) >= 3 else by_time
    means = {
        name: statistics.fmean(run[name] for run in counted)
        for name in ("seconds", "start_up")
        if runs[0][name] is not None
    }
    p_value = None
    if len(last) > 1:
        p_value = float(scipy.stats.ttest_1samp(last, target, alternative="greater").pvalue)
    return {**runs[0], **means, "reached": all(run["reached"] for run in runs), "runs": list(runs), "p_value": p_value}


def _last_scores(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """The mean IoU at the end of each run that was scored."""
    return [run["scores"][-1]["mean_iou"] for run in runs if run["scores"]]


def reached_at_end(scores: Sequence[Mapping[str, Any]], target: float) -> bool:
    """Whether the last score of a run that has ended is the target or above."""
    return bool(scores) and scores[-1]["mean_iou"] >= target


def holds(scores: Sequence[Mapping[str, Any]], target: float) -> bool:
    """Whether the target held at the last two scores."""
    last = [score["mean_iou"] for score in scores[-2:]]
    return len(last) == 2 and min(last) >= target


def run_command(title: str, command: str, target: float) -> dict[str, Any]:
    """Runs another program until its scores hold the target, or it ends; returns its row as `race` describes it.

    Raises ConfigError if there is no such program, and PetsegError if it fails, or prints no score.
    """
    scores: list[dict[str, float]] = []
    try:
        program = subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE, text=True)
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"--contestants={title}={command}: cannot be started: {error}") from error
    with program:
        for line in program.stdout or ():
            if match := SCORE_LINE.fullmatch(line):
                scores.append({"seconds": float(match[1]), "mean_iou": float(match[2])})
                logger.info("%s: %.0f s: %.4f", title, scores[-1]["seconds"], scores[-1]["mean_iou"])
            if holds(scores, target):
                program.kill()
                break
    if program.returncode and not holds(scores, target):
        raise PetsegError(f"--contestants={title}: its program failed with exit code {program.returncode}")
    if not scores or max(score["mean_iou"] for score in scores) > 1:
        found = f"{scores[-1]['mean_iou']:g}" if scores else "no such line"
        raise PetsegError(f"--contestants={title}: must print lines `SECONDS, MEAN_IOU` up to 1; printed {found}")
    unknown = {"start_up": None, "images": None, "operations": None, "whole_run": None, "computed": False}
    reached = reached_at_end(scores, target)
    return {"reached": reached, "seconds": scores[-1]["seconds"], "scores": scores, **unknown}


def _train(title: str, config: Config, time_to: TimeToScoreConfig) -> dict[str, Any]:
    """Trains a contestant in its own process, logs its scores, and returns its result."""
    arguments = (title == FIT, config, time_to, time.monotonic())
    with processes.worker(title, "time_to_score_contestants:serve", *arguments) as worker:
        while True:
            message = worker.receive()
            if "mean_iou" not in message:
                return message
            logger.info(
                "%s: %.0f s, %d images: %.4f", title, message["seconds"], message["images"], message["mean_iou"]
            )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Times of the contestants, and their shares of all epochs of `model.fit`."""
    whole = {each["title"]: each["whole_run"] for each in rows}.get(FIT)
    shown, notes = [], []
    for each in rows:
        title, seconds, share = each["title"], f"{each['seconds']:.0f}", ""
        scores = [score["mean_iou"] for run in each.get("runs", [each]) for score in run["scores"]]
        best = max(scores, default=float("nan"))
        notes += _repeats(each)
        if each["computed"]:
            notes.append(f"{title} was not trained to the end: {seconds} s are extrapolated from its measured speed")
        if not each["reached"]:
            notes.append(f"{title} did not reach the target in its {seconds} s")
            seconds = f"never ({seconds})"
        elif whole is not None:
            share = f"{each['seconds'] / whole:.3f}"
        formats = {"start_up": ".0f", "images": "", "operations": ".2e"}
        known = {name: "" if each[name] is None else format(each[name], spec) for name, spec in formats.items()}
        shown.append({**each, **known, "seconds": seconds, "best": best, "share": share})
    if whole is not None:
        notes.append(f"all epochs of {FIT}, at its speed: {whole:.0f} s")
    columns = {
        "": "{title}",
        "seconds": "{seconds}",
        "of them start-up": "{start_up}",
        "images seen": "{images}",
        "operations": "{operations}",
        "best score": "{best:.4f}",
        f"share of {FIT}'s whole run": "{share}",
    }
    return "\n".join([*markdown_table(shown, columns), "", *notes])


def _repeats(contestant: Mapping[str, Any]) -> list[str]:
    """A sentence on the runs of a contestant with several seeds."""
    runs = contestant.get("runs", [])
    last = _last_scores(runs)
    if len(last) < 2:
        return []
    reached, spread = sum(run["reached"] for run in runs), statistics.stdev(last)
    return [
        f"{contestant['title']}: {reached} of {len(runs)} runs reached the target, last scores {min(last):.4f} to "
        f"{max(last):.4f}, mean {statistics.fmean(last):.4f}, standard deviation {spread:.4f}; "
        f"p = {contestant['p_value']:.1g} that their mean does not exceed it"
    ]
