"""Files that are whole or not there: text, bytes and JSON, written under another name, flushed, renamed.

Also locks, and what is said where a file cannot be written.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from petseg.errors import PetsegError, WorkDirectoryError

logger = logging.getLogger(__name__)

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
NO_PLACE = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)  # for a file of that name
CANNOT_BE_WRITTEN = (*NO_SPACE, *NOT_ALLOWED, *NO_PLACE, errno.EIO, errno.EFBIG)
LONGEST_NAME = 255  # bytes of a file name, on the usual file systems


@contextlib.contextmanager
def explain_write_errors(
    where: str | os.PathLike[str],
    *,
    flag: str = "",
    error_class: type[PetsegError] = WorkDirectoryError,
    needed: int | None = None,
) -> Iterator[None]:
    """Turns what the system says of a file that cannot be written into one line; lets all other errors through.

    Others are those that mean something else, such as a missing file, too many open files or a broken pipe.

    Args:
      where: the file or folder, for errors that name none.
      flag: the flag that chose it, with its value, such as `--csv=FILE`; empty if there is none.
      error_class: class of the error that is raised.
      needed: bytes that are to be written, which the message tells where there is no space; None if that is unknown.

    Raises:
      PetsegError: if the block failed because a file cannot be written; names the file and the reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_BE_WRITTEN:
            raise
        what = f"{error.filename or where}: cannot be written: {error.strerror}"
        if error.errno in NO_SPACE and needed is not None:
            what += f": it takes {needed / 2**20:.1f} MiB, {_free_bytes(Path(where)) / 2**20:.1f} MiB are free"
        raise error_class(f"{flag}: {what}" if flag else what) from error


def is_disk_error(error: BaseException) -> bool:
    """Whether an error is of the disk as a whole, so that other files cannot be written either."""
    return isinstance(error, OSError) and error.errno in (*NO_SPACE, *NOT_ALLOWED, errno.EIO)


def _free_bytes(path: Path) -> int:
    """The free space where a path is, or would be."""
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(nearest).free


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as whole as `write_bytes` does; NaN and infinities become null, at any depth."""
    write_text(path, json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads what `write_json` wrote; null becomes NaN."""
    return _with_nan(json.loads(path.read_text()))


def write_text(path: Path, text: str) -> None:
    """Writes a text as whole as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Writes a file so that a reader sees the old one or the new one, never half of one, also after a power cut.

    Args:
      path: the file.
      data: its content; also in pieces, which are written as they come and may be read from the old file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    if len(os.fsencode(path.name)) <= LONGEST_NAME < len(os.fsencode(temporary.name)):
        temporary = path.with_name(hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32] + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # the system names it when a file is opened, not when written to
        raise


@contextlib.contextmanager
def process_lock(lock_file: Path, what: str) -> Iterator[None]:
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
    """JSON values with None for numbers that JSON does not have: NaN and infinities, at any depth."""
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    """JSON values with NaN for None, at any depth."""
    if isinstance(value, Mapping):
        return {key: _with_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_nan(part) for part in value]
    return math.nan if value is None else value
