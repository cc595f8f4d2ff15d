"""How long contestants train until a score is reached: python -m petseg.benchmark --measure=time_to --target=SCORE.

Each trains in a process of its own, one after the other, and is scored every so often; what scoring takes is not
counted. A target is reached where it holds at two scores in a row.
"""

import logging
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from petseg.benchmark.time_to_config import FIT, TimeToConfig
from petseg.config import Config
from petseg.errors import PetsegError

SHOWN_BELOW = 0.1  # how far a curve is drawn below the target, or below the lowest of the contestants' best scores
logger = logging.getLogger("petseg.benchmark")


def race(config: TimeToConfig, flags: Sequence[str], scratch: Path) -> list[dict[str, Any]]:
    """Lets the contestants train, one after the other.

    Args:
      config: what is measured.
      flags: flags that all contestants are given.
      scratch: folder for their work directories.

    Returns:
      what each did: its `title`; whether the target was `reached`; `seconds` until then, or until it ended, of them
      `start_up` before the second step; `images` that it saw by then; `operations` for these; `scores`, each with
      `seconds`, `images` and `mean_iou`; `whole_run`, the seconds of all its steps, computed from its speed; and
      `computed`, whether `seconds` are no more than that.
    """
    rows = []
    for number, (title, given) in enumerate(config.configs(flags).items()):
        each = given.changed(runtime={"workdir": str(scratch / f"time-to-{number}"), "quiet": True})
        logger.info("%s trains until its mean IoU is %g", title, config.target)
        rows.append({"title": title, **_train(title, each, config)})
    if config.curve:
        _draw(rows, config)
    return rows


def _train(title: str, config: Config, time_to: TimeToConfig) -> dict[str, Any]:
    """Starts a contestant's process, follows its scores, and returns what it says at the end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, title == FIT, config, time_to, time.monotonic())
    process = context.Process(target=_serve, args=arguments, daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            said = ours.recv()
            if "failed" in said:
                raise PetsegError(f"{title}: {said['failed']}")
            if "mean_iou" not in said:
                return said
            logger.info("%s: %.0f s, %d images: %.4f", title, said["seconds"], said["images"], said["mean_iou"])
    except EOFError:
        raise PetsegError(f"{title}: its process ended") from None
    finally:
        process.kill()
        process.join()


def _serve(*arguments: Any) -> None:
    from petseg.benchmark import time_to_contestants  # TensorFlow loads here, and its time counts

    time_to_contestants.serve(*arguments)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the contestants took, and what share that is of all the epochs of `model.fit`."""
    whole = {row["title"]: row["whole_run"] for row in rows}.get(FIT)
    lines = [
        f"| | seconds | of them start-up | images seen | operations | best score | share of {FIT}'s whole run |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    notes = []
    for row in rows:
        title, seconds = row["title"], f"{row['seconds']:.0f}"
        if row["computed"]:
            notes.append(f"{title} was not trained to the end: {seconds} s are all its steps at its measured speed")
        elif not row["reached"]:
            notes.append(f"{title} did not reach the target in its {seconds} s")
            seconds = f"never ({seconds})"
        share = "" if whole is None or not row["reached"] else f"{row['seconds'] / whole:.3f}"
        best = max((score["mean_iou"] for score in row["scores"]), default=float("nan"))
        lines.append(
            f"| {title} | {seconds} | {row['start_up']:.0f} | {row['images']} | {row['operations']:.2e} | {best:.4f} "
            f"| {share} |"
        )
    if whole is not None:
        notes.append(f"all epochs of {FIT}, at its speed: {whole:.0f} s")
    return "\n".join([*lines, "", *notes])


def _draw(rows: Sequence[Mapping[str, Any]], config: TimeToConfig) -> None:
    """Draws scores over seconds, a line for each contestant that was scored, an upright one for a computed end."""
    from matplotlib.figure import Figure

    from petseg.files import write_bytes
    from petseg.reporting import pictures

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for number, row in enumerate(rows):
        color = f"C{number}"
        if row["scores"]:
            points = [(score["seconds"], score["mean_iou"]) for score in row["scores"]]
            axis.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, label=row["title"])
        if row["computed"]:
            axis.axvline(row["seconds"], color=color, linestyle="--", label=f"{row['title']}, all epochs (computed)")
    axis.axhline(config.target, color="black", linewidth=0.8, label=f"target {config.target:g}")
    axis.set(xlabel="seconds of training, start-up and compiling included", ylabel="mean IoU", xlim=(0, None))
    highest = [max(score["mean_iou"] for score in row["scores"]) for row in rows if row["scores"]]
    axis.set_ylim(bottom=max(axis.get_ylim()[0], min([config.target, *highest]) - SHOWN_BELOW))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    write_bytes(Path(config.curve), pictures.to_png(figure))
