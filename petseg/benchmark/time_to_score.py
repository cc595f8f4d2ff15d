"""Training time until a score is reached: python -m petseg.benchmark --measure=time_to --target=SCORE.

Contestants train one after the other, each in its own process, and are scored at intervals; scoring time is not
counted. The target is reached where it holds at two scores in a row.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from petseg.benchmark import processes
from petseg.benchmark.tables import table as markdown_table
from petseg.config import Config, command_line, presets
from petseg.config.options import Group, option
from petseg.errors import ConfigError

FIT, TUTORIAL = "model.fit", "tutorial"
logger = logging.getLogger("petseg.benchmark")


@dataclasses.dataclass(frozen=True)
class TimeToScoreConfig(Group):
    """Settings of --measure=time_to."""

    target: float = option(0.0, "mean IoU to reach, with --measure=time_to", minimum=0, maximum=1)
    contestants: str = option(
        f"{FIT},fast",
        f"what to train: `{FIT}`, which is Keras's loop with the tutorial's recipe; names of presets; files of flags; "
        "separated by commas",
        required=True,
    )
    score_every: int = option(0, "interval of scores; 0: once an epoch", unit="images", minimum=0)
    fit_steps: int = option(
        0,
        f"steps of {FIT} to measure, from whose speed the time of all its epochs is extrapolated; the target is then "
        "assumed to be reached at their end; 0: train until it is reached",
        unit="steps",
        minimum=0,
    )

    def configs(self, flags: Sequence[str]) -> dict[str, Config]:
        """The training config of each contestant, by its name.

        Args:
          flags: flags for all of them, such as --data_dir; they win over those of presets.

        Raises:
          ConfigError: if a preset does not exist, or a contestant is named twice.
        """
        names = [name.strip() for name in self.contestants.split(",")]
        if len(set(names)) < len(names):
            raise ConfigError(f"--contestants={self.contestants}: each must be named once")
        return {name: self._config(name, flags) for name in names}

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

    Args:
      config: what is measured.
      flags: training flags for all contestants.
      scratch: folder for their work directories.

    Returns:
      a row for each: its `title`; whether the target was `reached`; `seconds` until then, or until it ended, of them
      `start_up` before the second step; `images` trained on by then, and their `operations`; `scores`, each with
      `seconds`, `images` and `mean_iou`; `whole_run`, the seconds of all its steps, extrapolated from its speed; and
      `computed`, whether `seconds` are that extrapolation.
    """
    rows = []
    for number, (title, given) in enumerate(config.configs(flags).items()):
        each = given.changed(runtime={"workdir": str(scratch / f"time-to-{number}"), "quiet": True})
        logger.info("%s trains until its mean IoU is %g", title, config.target)
        rows.append({"title": title, **_train(title, each, config)})
    return rows


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
        best = max((score["mean_iou"] for score in each["scores"]), default=float("nan"))
        if each["computed"]:
            notes.append(f"{title} was not trained to the end: {seconds} s are extrapolated from its measured speed")
        if not each["reached"]:
            notes.append(f"{title} did not reach the target in its {seconds} s")
            seconds = f"never ({seconds})"
        elif whole is not None:
            share = f"{each['seconds'] / whole:.3f}"
        shown.append({**each, "seconds": seconds, "best": best, "share": share})
    if whole is not None:
        notes.append(f"all epochs of {FIT}, at its speed: {whole:.0f} s")
    columns = {
        "": "{title}",
        "seconds": "{seconds}",
        "of them start-up": "{start_up:.0f}",
        "images seen": "{images}",
        "operations": "{operations:.2e}",
        "best score": "{best:.4f}",
        f"share of {FIT}'s whole run": "{share}",
    }
    return "\n".join([*markdown_table(shown, columns), "", *notes])
