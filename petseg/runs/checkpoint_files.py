"""Which checkpoints a folder holds, by the names of its files. Imports no TensorFlow, which takes seconds to load."""

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
    """The steps that a folder holds checkpoints of, or traces of checkpoints, newest first."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    parts = [re.fullmatch(rf"{PREFIX}(\d+)\.(index|data-.*)", name) for name in names]
    complete = {int(part[1]) for part in parts if part and part[2] == "index"}
    begun = {int(part[1]) for part in parts if part}
    # Data without an index is damage, unless a process was killed between renaming the one and the other.
    begun -= unfinished_steps(directory)
    return sorted(complete | begun | _named_by_state_file(directory), reverse=True)


def unfinished(directory: Path, step: int) -> Path:
    """The folder in which a checkpoint is written."""
    return directory / f"{UNFINISHED}{step}"


def unfinished_steps(directory: Path) -> set[int]:
    """The steps at which a process was killed while it saved, or is saving now."""
    folders = [path for path in directory.glob(f"{UNFINISHED}*") if path.is_dir()]
    parts = [re.fullmatch(rf"{UNFINISHED}(\d+)", folder.name) for folder in folders]
    return {int(part[1]) for part in parts if part}


def path_of(directory: Path, step: int) -> str:
    """Where the checkpoint of a step lies: what TensorFlow calls its path, without the suffixes of its files."""
    return str(directory / f"{PREFIX}{step}")


def step_of(path: str) -> int:
    """The inverse of `path_of`."""
    return int(Path(path).name.removeprefix(PREFIX))


def _named_by_state_file(directory: Path) -> set[int]:
    """What TensorFlow's `checkpoint` file names; nothing if it is missing or garbled."""
    try:
        text = (directory / "checkpoint").read_text(errors="replace")
    except OSError:
        return set()
    return {int(step) for step in re.findall(rf'^model_checkpoint_path: "{PREFIX}(\d+)"$', text, re.MULTILINE)}


def newest(directory: Path) -> str | None:
    """Path of the newest checkpoint, which nobody has read yet; None if there is none."""
    return next((path_of(directory, step) for step in steps(directory)), None)


def resolve_checkpoint(checkpoints: Path, best: Path, which: str, newest: Callable[[Path], str | None]) -> str:
    """The path that `latest`, `best` or a path names.

    Args:
      checkpoints: folder of the newest checkpoints.
      best: folder of the best one.
      which: `latest`, `best` or a path.
      newest: what says which of a folder is the latest: `newest`, or `checkpoints.newest_intact`.

    Raises:
      CheckpointError: if it does not exist.
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
    """What best.json says, if it says something and the checkpoint is there."""
    try:
        record = json.loads((directory / "best.json").read_text())
        return record if int(record["step"]) in steps(directory) and float(record["mean_iou"]) >= 0 else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("skipped %s, which is damaged: %s", directory / "best.json", error)
        return None
