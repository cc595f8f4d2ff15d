"""Finds checkpoints in a folder by file name. Imports no TensorFlow, which takes seconds to load."""

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from petseg.errors import CheckpointError

logger = logging.getLogger(__name__)
PREFIX, UNFINISHED = "ckpt-", "unfinished-"


def steps(directory: Path) -> list[int]:
    """Steps of the checkpoints in a folder, damaged and lost ones included, newest first."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    parts = [re.fullmatch(rf"{PREFIX}(\d+)\.(index|data-.*)", name) for name in names]
    complete = {int(part[1]) for part in parts if part and part[2] == "index"}
    begun = {int(part[1]) for part in parts if part}
    # Data without an index is a damaged checkpoint, unless a process was killed between the two renames.
    begun -= unfinished_steps(directory)
    return sorted(complete | begun | _named_by_state_file(directory), reverse=True)


def unfinished(directory: Path, step: int) -> Path:
    """Folder in which the checkpoint of a step is written before it is complete."""
    return directory / f"{UNFINISHED}{step}"


def unfinished_steps(directory: Path) -> set[int]:
    """Steps of checkpoints that are being written, or whose process was killed while it wrote them."""
    folders = [path for path in directory.glob(f"{UNFINISHED}*") if path.is_dir()]
    parts = [re.fullmatch(rf"{UNFINISHED}(\d+)", folder.name) for folder in folders]
    return {int(part[1]) for part in parts if part}


def path_of(directory: Path, step: int) -> str:
    """Path of the checkpoint of a step, as TensorFlow takes it: without the suffixes of its files."""
    return str(directory / f"{PREFIX}{step}")


def step_of(path: str) -> int:
    """Step of the checkpoint at a path; the inverse of `path_of`."""
    return int(Path(path).name.removeprefix(PREFIX))


def _named_by_state_file(directory: Path) -> set[int]:
    """Steps that TensorFlow's `checkpoint` file names; none if it is missing or malformed."""
    try:
        text = (directory / "checkpoint").read_text(errors="replace")
    except OSError:
        return set()
    return {int(step) for step in re.findall(rf'^model_checkpoint_path: "{PREFIX}(\d+)"$', text, re.MULTILINE)}


def newest(directory: Path) -> str | None:
    """Path of the newest checkpoint, not verified; None if there is none."""
    return next((path_of(directory, step) for step in steps(directory)), None)


def resolve_checkpoint(checkpoints: Path, best: Path, which: str, newest: Callable[[Path], str | None]) -> str:
    """Path of the checkpoint that --checkpoint names: `latest`, `best` or a path.

    Raises CheckpointError if it does not exist.
    """
    if which == "latest":
        path = newest(checkpoints)
        if path is None:
            raise CheckpointError(f"--checkpoint=latest: there is no checkpoint in {checkpoints} yet")
        return path
    if which == "best":
        record = best_record(best)
        if record is None:
            raise CheckpointError(f"--checkpoint=best: there is no checkpoint in {best} yet")
        return path_of(best, record["step"])
    path = which.removesuffix(".index")
    if not os.path.exists(path + ".index"):
        raise CheckpointError(f"--checkpoint={which}: there is no such checkpoint; must be latest, best, or a path")
    return path


def best_record(directory: Path) -> dict[str, Any] | None:
    """Content of best.json; None if it is missing or damaged, or its checkpoint is missing."""
    try:
        record = json.loads((directory / "best.json").read_text())
        return record if int(record["step"]) in steps(directory) and float(record["mean_iou"]) >= 0 else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("skipped %s, which is damaged: %s", directory / "best.json", error)
        return None
