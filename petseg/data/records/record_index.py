"""Where the records of TFRecord files begin: one small file for each of them, written once.

A TFRecord file is one record after the other: its length (uint64, little endian), a checksum of that (4 bytes), its
bytes, a checksum of these (4 bytes). Who wants record 12,345 must have read the lengths of all before it, or look up
its offset here. An index file is such a file too, for of these TensorFlow reads a record at an offset, and of others
all before it too: with 50,000 records a file, 33 images/s. Its first record is int64, little endian: a mark, the size
of the records' file in bytes, the time of its last change in nanoseconds, the number of its records; each other one is
the offset of one of those. It is believed as long as the records' file has that size and time.
"""

import dataclasses
import hashlib
import logging
import os
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from pathlib import Path

import numpy as np

from petseg import files
from petseg.config import CACHE_DIR
from petseg.errors import ConfigError, DataError

MARK = int.from_bytes(b"petsegi1", "little")
HEAD, ENTRY = 48, 24  # bytes of the records of an index
FOLDER = "petseg_index"  # beside the files of records; a folder, so that nobody takes its files for data
LENGTH, AROUND = 8, 16  # bytes: of the length of a record, and of all that is not the record itself
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of records.

    Attributes:
      file: its path.
      count: number of its records, as the data set says.
    """

    file: Path
    count: int

    def index_file(self, folder: Path) -> Path:
        """Its index, in a folder of these."""
        return folder / f"{self.file.name}.index"


def folder_of(shards: Sequence[Shard], cache_dir: str) -> Path:
    """The folder of the index of some shards: beside them, or under --cache_dir where nothing can be written there."""
    beside = shards[0].file.parent
    written_to = beside / FOLDER if (beside / FOLDER).exists() else beside
    if os.access(written_to, os.W_OK) or not missing(shards, beside / FOLDER):
        return beside / FOLDER
    place = hashlib.sha256(os.fsencode(beside.absolute())).hexdigest()[:16]  # two copies may have one name
    name = "-".join([*beside.absolute().parts[-3:], place])
    return Path(cache_dir or CACHE_DIR).expanduser().absolute() / FOLDER / name


def flag_of(folder: Path, cache_dir: str) -> str:
    """The flag that chose the folder of an index, for an error; empty where none did."""
    chosen = cache_dir and folder.is_relative_to(Path(cache_dir).expanduser().absolute())
    return f"--cache_dir={cache_dir}" if chosen else ""


def missing(shards: Iterable[Shard], folder: Path) -> list[Shard]:
    """Those shards of which there is no index, or one of another state of their files.

    Raises:
      DataError: if a shard is not there, or has another number of records than the data set says.
    """
    return [shard for shard in shards if not _is_believed(shard, shard.index_file(folder))]


def write(
    shards: Sequence[Shard],
    folder: Path,
    executor: futures.Executor,
    tell: Callable[[Shard], None] = lambda shard: None,
    *,
    flag: str = "",
) -> None:
    """Writes what is missing of an index; of several processes that do, one writes, and the others wait for it.

    Each file is whole or not there, so a process that was killed has lost no more than the files it was at.

    Args:
      shards: the files of records, uncompressed.
      folder: where the index goes.
      executor: what works on several shards at one time.
      tell: called with each shard whose index was written.
      flag: the flag that chose the folder, with its value, for an error.

    Raises:
      ConfigError: if the folder cannot be written to.
      DataError: if a file is no whole TFRecord file, or holds another number of records than the data set says.
    """
    with files.naming_what_cannot_be_written(folder, flag=flag, error_class=ConfigError):
        folder.mkdir(parents=True, exist_ok=True)
        with files.one_process_at_a_time(folder / ".lock", f"writes the index {folder}"):
            tasks = {
                executor.submit(write_one, shard, shard.index_file(folder)): shard for shard in missing(shards, folder)
            }
            try:
                for task in futures.as_completed(tasks):
                    task.result()
                    tell(tasks[task])
            finally:
                for task in tasks:
                    task.cancel()


def ensure(shards: Sequence[Shard], cache_dir: str, title: str) -> Path:
    """The folder of the index of some shards, written where it is missing.

    Raises:
      PetsegError: as `write`.
    """
    folder = folder_of(shards, cache_dir)
    if lacking := missing(shards, folder):
        logger.info(
            "%s: the index of %d records in %d files is written into %s; only headers are read",
            title, sum(shard.count for shard in lacking), len(lacking), folder,
        )  # fmt: skip
        with futures.ThreadPoolExecutor(min(len(lacking), 8)) as executor:
            write(lacking, folder, executor, flag=flag_of(folder, cache_dir))
    return folder


def write_one(shard: Shard, index_file: Path) -> None:
    """Writes the index of one shard.

    Raises:
      DataError: as `write`.
    """
    state = _state(shard.file)
    found = _offsets(shard.file)
    if len(found) != shard.count:
        raise DataError(f"{shard.file}: has {len(found)} records; must have {shard.count}, as the data set says")
    head, offsets = np.array([[MARK, *state, len(found)]], "<i8"), np.array(found, "<i8")[:, None]
    files.write_bytes(index_file, _as_records(head) + _as_records(offsets))


def _is_believed(shard: Shard, index_file: Path) -> bool:
    try:
        with open(index_file, "rb") as index:
            head = index.read(HEAD)
            size = os.fstat(index.fileno()).st_size
    except OSError:
        return False
    if len(head) != HEAD:
        return False
    mark, *state, count = struct.unpack("<12x4q4x", head)
    return mark == MARK and tuple(state) == _state(shard.file) and count == shard.count and size == HEAD + ENTRY * count


def _as_records(rows: np.ndarray) -> bytes:
    """Rows of numbers, int64 [N, K], as the records of a TFRecord file."""
    records = np.zeros(
        len(rows), [("length", "<u8"), ("check", "<u4"), ("bytes", "<i8", rows.shape[1]), ("sum", "<u4")]
    )
    records["length"], records["bytes"] = rows.itemsize * rows.shape[1], rows
    for of, into in (("length", "check"), ("bytes", "sum")):
        column = np.ascontiguousarray(records[of]).reshape(len(rows), -1)
        records[into] = _checksums(column.view(np.uint8))
    return records.tobytes()


def _checksums(rows: np.ndarray) -> np.ndarray:
    """The checksums that TFRecord files have, uint32 [N], of rows of bytes, uint8 [N, K]: CRC-32C, masked."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    check = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    for column in rows.T:
        check = table[(check ^ column) & 0xFF] ^ check >> 8
    check = ~check
    return (check >> 15 | check << 17) + np.uint32(0xA282EAD8)


def _state(file: Path) -> tuple[int, int]:
    """Size and time of a file, by which a change is noticed.

    Raises:
      DataError: if it is not there.
    """
    try:
        found = file.stat()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns


def _offsets(file: Path) -> list[int]:
    """Where each record of a file begins.

    Raises:
      DataError: if it cannot be read, or is no whole TFRecord file.
    """
    found, position = [], 0
    try:
        with open(file, "rb", buffering=0) as records:
            descriptor, end = records.fileno(), os.fstat(records.fileno()).st_size
            while position < end:
                found.append(position)
                length = os.pread(descriptor, LENGTH, position)
                position += AROUND + (int.from_bytes(length, "little") if len(length) == LENGTH else sys.maxsize)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    if position != end:
        raise DataError(f"{file}: must be a TFRecord file, not compressed, and a whole one")
    return found
