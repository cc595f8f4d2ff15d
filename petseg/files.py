"""Files that are whole or not there: text, bytes and JSON, written under another name, flushed, renamed; locks."""

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

logger = logging.getLogger(__name__)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as `write_text` does; NaN becomes null."""
    write_text(path, json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads what `write_json` wrote; null becomes NaN."""
    return _with_nan(json.loads(path.read_text()))


def write_text(path: Path, text: str) -> None:
    """Writes a text as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old one or the new one, never half of one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextlib.contextmanager
def one_process_at_a_time(lock_file: Path, what: str) -> Iterator[None]:
    """Keeps other processes out of the block, those of other machines that see the file too; waits while one is inside.

    The system frees the lock when a process ends, however it ends.

    Args:
      lock_file: exists while somebody is inside; its folder must exist.
      what: what is done inside, as the log goes on after "waiting for another process, which".

    Raises:
      OSError: if the lock file cannot be written.
    """
    lock = filelock.FileLock(lock_file)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        logger.info("waiting for another process, which %s", what)
        lock.acquire()
    try:
        yield
    finally:
        lock_file.unlink(missing_ok=True)  # who waits for a lock sees that its file is gone, and makes a new one
        lock.release()


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_nan(part) for key, part in value.items()}
    return math.nan if value is None else value
