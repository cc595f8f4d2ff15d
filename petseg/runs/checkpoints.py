"""Writes, verifies and restores checkpoints, so that a kill, full disk or flipped bit costs at most the newest one."""

import logging
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from petseg.errors import CheckpointError, WorkDirectoryError
from petseg.files import free_bytes, make_folder, sync, write_json, write_text
from petseg.runs.async_checkpoints import CheckpointWriter
from petseg.runs.checkpoint_files import PREFIX, best_record, path_of, step_of, steps, unfinished, unfinished_steps
from petseg.runs.snapshots import Snapshots

logger = logging.getLogger(__name__)


class Checkpoints:
    """A folder of checkpoints `ckpt-<step>`; keeps the newest few.

    A checkpoint is written under another name, flushed to the disk, read back, and only then renamed; older ones are
    deleted last. So every file called `ckpt-<step>.index` was complete when it got that name.

    Args:
      saves: whether this process saves; in a cluster, one process saves and all restore.
      writer: what runs the writing, perhaps in a thread; None to write at once.
      **objects: trackable objects to save, by name; they must be built, so that all their variables exist.
    """

    def __init__(
        self, directory: Path, *, keep: int, saves: bool = True, writer: CheckpointWriter | None = None, **objects: Any
    ):
        self._directory, self._keep, self._objects = directory, keep, objects
        self._writer = writer or CheckpointWriter()
        self._snapshots = Snapshots(tf.train.Checkpoint(**objects)) if saves else None

    def save(
        self, step: int, *, before: Callable[[], None] = lambda: None, after: Callable[[], None] = lambda: None
    ) -> None:
        """Saves the present values as `ckpt-<step>`, once the save before has ended.

        A thread reports its errors when the next save begins, or at the next `CheckpointWriter.check` or `wait`.

        Args:
          before, after: called before and after the write, in its thread.

        Raises:
          WorkDirectoryError: if it cannot be written, for example on a full disk; earlier checkpoints stay.
        """
        if self._snapshots is None:
            return
        self._writer.wait()
        write_to = self._snapshots.take()

        def write() -> None:
            before()
            self._write(step, write_to)
            after()

        self._writer.start(write)

    def _write(self, step: int, write_to: Callable[[str], None]) -> None:
        folder = unfinished(self._directory, step)
        try:
            self._clear_unfinished()
            make_folder(folder)
            write_to(str(folder / "ckpt"))
            reason = damage(str(folder / "ckpt"))
            if reason is None:
                self._commit(folder, step)
        except (tf.errors.OpError, OSError) as error:
            reason = _first_line(error)
        shutil.rmtree(folder, ignore_errors=True)
        if reason is not None:
            needed, free = _bytes(self._objects) / 2**20, free_bytes(self._directory) / 2**20
            raise WorkDirectoryError(
                f"{path_of(self._directory, step)}: cannot be written: "
                f"it needs {needed:.1f} MiB, {free:.1f} MiB are free ({reason})"
            )
        self._prune(step)

    def restore(self, path: str) -> None:
        """Restores all objects; the checkpoint must hold exactly their variables.

        Exempt are objects with a `load_by_name`, which get their saved variables by name: the training sums of an
        interval may have been saved by a version of petseg with other sums. Raises CheckpointError if the checkpoint is
        missing, damaged, or holds other objects.
        """
        by_name = {name: part for name, part in self._objects.items() if hasattr(part, "load_by_name")}
        saved = {name: _saved_variables(path, name) for name in by_name}
        of_any_name = {name: tf.train.Checkpoint(**variables) for name, variables in saved.items()}
        _restore(tf.train.Checkpoint(**{**self._objects, **of_any_name}), path, partial=False)
        for name, part in by_name.items():
            part.load_by_name({key: variable.numpy() for key, variable in saved[name].items()})

    def newest(self) -> str | None:
        """`newest_intact` of this folder, after the current write."""
        self._writer.wait()
        return newest_intact(self._directory)

    def newest_common(self, gather: Callable[[int], list[int]]) -> str | None:
        """Path of the newest checkpoint that every process of a cluster can read; None if one of them sees none.

        A shared file system may show new files to some processes later than to others.
        """
        mine = self.newest()
        step = min(gather(-1 if mine is None else step_of(mine)))
        return None if step < 0 else path_of(self._directory, step)

    def _commit(self, folder: Path, step: int) -> None:
        files = sorted(folder.iterdir(), key=lambda file: file.suffix == ".index")  # the index last
        for file in files:
            sync(file)
        for file in files:
            if file.suffix == ".index":  # its name must not outlive a power failure without those of the data
                sync(self._directory)
            os.replace(file, self._directory / file.name.replace("ckpt", f"{PREFIX}{step}", 1))
        sync(self._directory)
        # For `tf.train.latest_checkpoint`; petseg reads from it only that a checkpoint existed.
        names = [f'{key}: "{PREFIX}{step}"' for key in ("model_checkpoint_path", "all_model_checkpoint_paths")]
        write_text(self._directory / "checkpoint", "\n".join(names) + "\n")

    def _clear_unfinished(self) -> None:
        """Removes the files of a process that was killed while it saved."""
        for step in unfinished_steps(self._directory):
            if step not in steps(self._directory):
                _delete(self._directory, step)
                sync(self._directory)  # data without index would be damage once the folder is gone
            shutil.rmtree(unfinished(self._directory, step))

    def _prune(self, step: int) -> None:
        older = [number for number in steps(self._directory) if number <= step]
        for number in older[self._keep :]:
            _delete(self._directory, number)


class BestCheckpoint:
    """The checkpoint with the highest score so far, `best/ckpt-<step>`, and its record, `best/best.json`.

    The record is read again for every comparison, so a resumed run compares with the checkpoint that is on the disk.
    """

    def __init__(self, directory: Path, *, saves: bool = True, writer: CheckpointWriter | None = None, **objects: Any):
        self._directory, self._saves, self._writer = directory, saves, writer or CheckpointWriter()
        self._checkpoints = Checkpoints(directory, keep=2, saves=saves, writer=self._writer, **objects)

    def offer(self, score: float, step: int) -> bool:
        """Saves the state if its score is the highest so far (the earlier step wins ties); returns whether it does."""
        if not self._saves:
            return False
        self._writer.wait()
        record = best_record(self._directory)
        if record is not None and (record["mean_iou"], -record["step"]) > (score, -step):
            return False
        self._checkpoints.save(step, after=lambda: self._record(score, step))
        return True

    def _record(self, score: float, step: int) -> None:
        write_json(self._directory / "best.json", {"step": step, "mean_iou": score})
        for other in steps(self._directory):  # only after the record no longer names them
            if other != step:
                _delete(self._directory, other)


def damage(path: str) -> str | None:
    """Why a checkpoint cannot be read; None if every tensor can be read and matches its checksum."""
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except Exception as error:  # TensorFlow's readers raise DataLossError, ValueError, IndexError and more
        return _first_line(error)
    return None


def newest_intact(directory: Path) -> str | None:
    """Path of the newest checkpoint that can be read; None if there never was a checkpoint.

    Raises CheckpointError if all checkpoints are damaged.
    """
    skipped = []
    for step in steps(directory):
        path = path_of(directory, step)
        reason = damage(path)
        if reason is None:
            return path
        logger.warning("skipped checkpoint %s, which is damaged: %s", path, reason)
        skipped.append(path)
    if skipped:
        raise CheckpointError(
            f"{directory}: holds no checkpoint that can be read, only damaged ones ({', '.join(skipped)}); "
            "to start over, pass another --workdir"
        )
    return None


def restore_model(path: str, **objects: Any) -> int:
    """Restores some of the objects of a checkpoint, such as the model; returns the step of the checkpoint.

    Raises CheckpointError if the checkpoint is damaged or lacks variables of the objects.
    """
    step = tf.Variable(0, dtype=tf.int64)
    _restore(tf.train.Checkpoint(step=step, **objects), path, partial=True)
    return int(step.numpy())


def checksum(model: keras.Model) -> int:
    """CRC-32 of all weights of a model."""
    total = 0
    for weight in model.get_weights():
        total = zlib.crc32(np.ascontiguousarray(weight).tobytes(), total)
    return total


def _saved_variables(path: str, name: str) -> dict[str, tf.Variable]:
    """A variable of matching shape and type, filled with zeros, for each saved variable of an object, by name."""
    try:
        reader = tf.train.load_checkpoint(path)
    except Exception as error:  # as in `damage`
        raise CheckpointError(f"checkpoint {path}: cannot be restored: {_first_line(error)}") from error
    types = reader.get_variable_to_dtype_map()
    found = {}
    for key, shape in reader.get_variable_to_shape_map().items():
        if part := re.fullmatch(rf"{name}/([^/]+)/\.ATTRIBUTES/VARIABLE_VALUE", key):
            found[part[1]] = tf.Variable(tf.zeros(shape, types[key]), trainable=False)
    return found


def _restore(checkpoint: tf.train.Checkpoint, path: str, *, partial: bool) -> None:
    try:
        status = checkpoint.read(path)
        if partial:
            status.assert_existing_objects_matched().expect_partial()
        else:
            status.assert_consumed()
    except Exception as error:  # as in `damage`, and AssertionError
        raise CheckpointError(f"checkpoint {path}: cannot be restored: {_first_line(error)}") from error


def _delete(directory: Path, step: int) -> None:
    for file in directory.glob(f"{PREFIX}{step}.*"):
        file.unlink()


def _bytes(objects: dict[str, Any]) -> int:
    variables = [variable for value in objects.values() for variable in getattr(value, "variables", [value])]
    return sum(math.prod(value.shape) * tf.as_dtype(value.dtype).size for value in variables)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
