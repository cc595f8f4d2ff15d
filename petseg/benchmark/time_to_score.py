"""Training time until a score is reached: python -m petseg.benchmark --measure=time_to --target=SCORE.

Contestants train one after the other, each in its own process, and are scored at intervals; scoring time is not
counted. The target is reached where it holds at two scores in a row.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from petseg.benchmark import processes
from petseg.benchmark.tables import heading, row
from petseg.benchmark.time_to_score_config import FIT, TimeToScoreConfig
from petseg.config import Config

logger = logging.getLogger("petseg.benchmark")


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
    share_of_fit = f"share of {FIT}'s whole run"
    lines = heading("", "seconds", "of them start-up", "images seen", "operations", "best score", share_of_fit)
    notes = []
    for each in rows:
        title, seconds = each["title"], f"{each['seconds']:.0f}"
        if each["computed"]:
            notes.append(f"{title} was not trained to the end: {seconds} s are extrapolated from its measured speed")
        elif not each["reached"]:
            notes.append(f"{title} did not reach the target in its {seconds} s")
            seconds = f"never ({seconds})"
        share = "" if whole is None or not each["reached"] else f"{each['seconds'] / whole:.3f}"
        best = max((score["mean_iou"] for score in each["scores"]), default=float("nan"))
        start_up, operations = f"{each['start_up']:.0f}", f"{each['operations']:.2e}"
        lines.append(row(title, seconds, start_up, each["images"], operations, f"{best:.4f}", share))
    if whole is not None:
        notes.append(f"all epochs of {FIT}, at its speed: {whole:.0f} s")
    return "\n".join([*lines, "", *notes])
