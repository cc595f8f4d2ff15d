"""Atomic writes of text, bytes and JSON; locks between processes; one-line errors for failed writes."""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from petseg.errors import PetsegError, WorkDirectoryError

logger = logging.getLogger(__name__)

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
NO_PLACE = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)  # the path is unusable
CANNOT_BE_WRITTEN = (*NO_SPACE, *NOT_ALLOWED, *NO_PLACE, errno.EIO, errno.EFBIG)
LONGEST_NAME = 255  # bytes of a file name on common file systems
_NOT_PRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str, *, keep: str = "") -> str:
    r"""Escapes control characters, and bytes of paths that are not UTF-8, as `\xNN`, except for those in `keep`."""
    return _NOT_PRINTABLE.sub(lambda match: match[0] if match[0] in keep else f"\\x{ord(match[0]) & 0xFF:02x}", text)


@contextlib.contextmanager
def explain_write_errors(
    where: str | os.PathLike[str],
    *,
    flag: str = "",
    error_class: type[PetsegError] = WorkDirectoryError,
    needed: int | None = None,
) -> Iterator[None]:
    """Converts an OSError of a failed write to a one-line error; other errors pass.

    Other errors are for example a missing file, too many open files or a broken pipe.

    Args:
      where: the file or folder, for errors without a file name.
      flag: the flag that chose it, with its value, such as `--csv=FILE`; empty if there is none.
      needed: bytes to be written, for errors of a full disk; None if unknown.

    Raises:
      PetsegError: if a file could not be written; names the file and the reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_BE_WRITTEN:
            raise
        what = f"{error.filename or where}: cannot be written: {error.strerror}"
        if error.errno in NO_SPACE and needed is not None:
            what += f": it takes {needed / 2**20:.1f} MiB, {free_bytes(Path(where)) / 2**20:.1f} MiB are free"
        raise error_class(f"{flag}: {what}" if flag else what) from error


def is_disk_error(error: BaseException) -> bool:
    """Whether an error concerns the whole disk, so that writing other files would fail too."""
    return isinstance(error, OSError) and error.errno in (*NO_SPACE, *NOT_ALLOWED, errno.EIO)


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of a path, which may not exist yet."""
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(nearest).free


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically; NaN and infinities become null, at any depth."""
    write_text(path, json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a file of `write_json`; null becomes NaN."""
    return _with_nan(json.loads(path.read_text()))


def write_text(path: Path, text: str) -> None:
    """Writes text atomically."""
    write_bytes(path, text.encode())


def sync(path: Path) -> None:
    """Forces a file's content, or the names in a folder, onto the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Forces a file, or a folder and all that is in it, onto the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def move(made: Path, path: Path) -> None:
    """Moves a finished file or folder to its path, atomically and so that it survives a power failure."""
    sync_tree(made)
    os.replace(made, path)
    sync(path.parent)


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents, so that they survive a power failure; it may exist."""
    if not folder.is_dir():
        if not folder.parent.exists():
            make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def write_bytes(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Writes a file atomically: readers see the old or the new content, also after a power failure.

    After it has returned, that is the new content.

    Args:
      data: its content, or chunks of it, which may be read from the old file while writing.
    """
    make_folder(path.parent)
    temporary = path.with_name(path.name + ".tmp")
    if len(os.fsencode(path.name)) <= LONGEST_NAME < len(os.fsencode(temporary.name)):
        temporary = path.with_name(hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32] + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write has none
        raise


@contextlib.contextmanager
def process_lock(lock_file: Path, what: str) -> Iterator[None]:
    """Waits for a lock and holds it during the block; also between machines that share the file system.

    The operating system releases the lock when the process ends. Raises OSError if the lock file cannot be written.
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
        lock_file.unlink(missing_ok=True)  # waiting processes then create a new one
        lock.release()


def _without_nan(value: Any) -> Any:
    """Replaces NaN and infinities by None, at any depth."""
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    """Replaces None by NaN, at any depth."""
    if isinstance(value, Mapping):
        return {key: _with_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_nan(part) for part in value]
    return math.nan if value is None else value
