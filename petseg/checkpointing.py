"""Saving and restoring what a run is made of."""

import json
import os
from pathlib import Path
from typing import Any

import tensorflow as tf

from petseg.errors import CheckpointError
from petseg.work_directory import write_json


class Checkpoints:
    """A folder of checkpoints `ckpt-<step>`, of which the newest few are kept.

    Args:
      directory: the folder.
      keep: how many to keep.
      saves: whether this process does; in a cluster, one does and all restore.
      **objects: what to save, by name: trackable objects, built, so that all their variables exist.
    """

    def __init__(self, directory: Path, *, keep: int, saves: bool = True, **objects: Any):
        self._saves = saves
        self._checkpoint = tf.train.Checkpoint(**objects)
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(directory), max_to_keep=keep)

    @property
    def latest(self) -> str | None:
        """Path of the newest checkpoint."""
        return self._manager.latest_checkpoint

    def save(self, step: int) -> None:
        """Saves everything as `ckpt-<step>`."""
        if self._saves:
            self._manager.save(checkpoint_number=step)

    def restore(self, path: str) -> None:
        """Restores everything; nothing in the checkpoint may be left over, nothing in memory left out.

        Raises:
          CheckpointError: if the checkpoint is missing, damaged, or of other objects.
        """
        try:
            status = self._checkpoint.restore(path)
            status.assert_consumed()
        except (tf.errors.OpError, AssertionError, ValueError) as error:
            raise CheckpointError(f"checkpoint {path}: cannot be restored: {_first_line(error)}") from error


class BestCheckpoint:
    """The checkpoint with the highest score so far, `best/ckpt-<step>`, and its record, `best/best.json`.

    The record is read back from the folder at every question, so a run that was stopped anywhere compares with what is
    really there.
    """

    def __init__(self, directory: Path, *, saves: bool = True, **objects: Any):
        self._saves, self._record_file = saves, directory / "best.json"
        self._checkpoints = Checkpoints(directory, keep=1, saves=saves, **objects)

    def offer(self, score: float, step: int) -> bool:
        """Saves the current state if its score is the highest, the earlier step winning a tie; says whether it did."""
        if not self._saves:
            return False
        record = self._record()
        if record is not None and (record["mean_iou"], -record["step"]) > (score, -step):
            return False
        self._checkpoints.save(step)
        write_json(self._record_file, {"step": step, "mean_iou": score})
        return True

    def _record(self) -> dict[str, Any] | None:
        return json.loads(self._record_file.read_text()) if self._record_file.exists() else None


def find(checkpoints: Path, best: Path, which: str) -> str:
    """The path that `latest`, `best` or a path names.

    Raises:
      CheckpointError: if it does not exist.
    """
    if which in ("latest", "best"):
        directory = checkpoints if which == "latest" else best
        path = tf.train.latest_checkpoint(str(directory))
        if path is None:
            raise CheckpointError(f"--checkpoint={which}: there is no checkpoint in {directory} yet")
        return path
    path = which.removesuffix(".index")
    if not os.path.exists(path + ".index"):
        raise CheckpointError(f"--checkpoint={which}: there is no such checkpoint; takes latest, best, or a path")
    return path


def restore_model(path: str, model: Any) -> int:
    """Restores only the model's weights, all of them, out of a checkpoint; returns the step they stood at.

    Raises:
      CheckpointError: if the checkpoint is damaged or of another model.
    """
    step = tf.Variable(0, dtype=tf.int64)
    try:
        status = tf.train.Checkpoint(model=model, step=step).restore(path)
        status.assert_existing_objects_matched().expect_partial()
    except (tf.errors.OpError, AssertionError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be restored: {_first_line(error)}") from error
    return int(step.numpy())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
