"""Random access to the records of a split in array_record files."""

import abc
import collections
import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import tensorflow as tf

from petseg.errors import DataError, one_line
from petseg.runtime import autotuning

# Processes are limited to 1,024 open files. A reader's index takes 8 bytes per record of its file; without it
# (`index_storage_option:offloaded`) reading a record takes 14 ms instead of 0.4.
OPEN_READERS = 256
READER_OPTIONS = "readahead_buffer_size:0"
RECORDS_AT_ONCE = 16
UNREADABLE = "cannot be read"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RecordRange(Generic[T]):
    """Consecutive records of a split in one place."""

    origin: T  # where they are: a file, or user code
    first: int  # position of the first record there
    count: int  # number of records


class Records(abc.ABC, Generic[T]):
    """Random access to the records of a split by position, 0 to N - 1."""

    states: Mapping[Any, Any]

    def __init__(self, ranges: Sequence[RecordRange[T]]):
        self._ranges = tuple(ranges)
        self._starts = np.cumsum([0, *(each.count for each in ranges)], dtype=np.int64)
        self._firsts = np.array([each.first for each in ranges], np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @abc.abstractmethod
    def place(self, position: int) -> str:
        """Where a record is, for messages."""

    def check(self) -> None:
        """Raises DataError if the records have changed."""

    def check_record(self, position: int) -> None:
        """Raises DataError, naming the example, if a record cannot be made; not for bytes that are stored."""

    def in_order(self, positions: range) -> tf.data.Dataset:
        """The records at a range of positions, as a data set."""
        batches = tf.data.Dataset.range(positions.start, positions.stop, positions.step).batch(RECORDS_AT_ONCE)
        return batches.map(self.read).prefetch(1).unbatch().with_options(autotuning.off())

    def read(self, positions: tf.Tensor) -> tf.Tensor:
        """Records, string [K], at positions, int64 [K]; the graph runs in this process only."""
        # Declared stateless (true: files do not change), because op determinism runs stateful functions sequentially.
        records = tf.numpy_function(self._read, [positions], tf.string, stateful=False)
        records.set_shape(positions.shape)
        return records

    @abc.abstractmethod
    def _read(self, positions: np.ndarray) -> np.ndarray:
        """Records, bytes objects [K], at positions, int64 [K]."""

    def _places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices of ranges, and positions in their origins, int64 [K] each."""
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        return numbers, positions - self._starts[numbers] + self._firsts[numbers]

    def _place(self, position: int) -> tuple[T, int]:
        """The origin of a record, and its position there."""
        (number,), (place,) = self._places(np.array([position]))
        return self._ranges[number].origin, int(place)


class ChosenRecords(Records[Any]):
    """The records at some positions of a split, int64 [K], as a split of their own."""

    def __init__(self, records: Records, positions: np.ndarray):
        super().__init__(())
        self._records, self._positions, self.states = records, positions, records.states

    def __len__(self) -> int:
        return len(self._positions)

    def place(self, position: int) -> str:
        return self._records.place(int(self._positions[position]))

    def check(self) -> None:
        self._records.check()

    def check_record(self, position: int) -> None:
        self._records.check_record(int(self._positions[position]))

    def _read(self, positions: np.ndarray) -> np.ndarray:
        return self._records._read(self._positions[positions])


class RecordFiles(Records[Path]):
    """The records of array_record files, which are opened when they are first read.

    Raises DataError if a file is missing.
    """

    def __init__(self, ranges: Sequence[RecordRange[Path]]):
        super().__init__(ranges)
        self.states: dict[Path, tuple[int, int] | None] = {each.origin: _state(each.origin) for each in ranges}
        for file, state in self.states.items():
            if state is None:
                raise DataError(f"{file}: is missing")
        self._readers: collections.OrderedDict[Path, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def place(self, position: int) -> str:
        """File and number of a record, for messages."""
        file, place = self._place(position)
        return f"record {place} of {file}"

    def check(self) -> None:
        """Raises DataError if a file has changed."""
        for file, state in self.states.items():
            if _state(file) != state:
                raise DataError(f"{file}: was changed or removed during the run")

    def _read(self, positions: np.ndarray) -> np.ndarray:
        records = np.empty(len(positions), object)
        numbers, places = self._places(positions)
        for number in np.unique(numbers):
            (mine,) = np.nonzero(numbers == number)
            file = self._ranges[number].origin
            try:
                records[mine] = self._reader(file).read(places[mine].tolist())
            except Exception as error:  # array_record's errors have no common class
                raise OSError(f"{file}: {UNREADABLE}: {one_line(error)}") from error
        return records

    def _reader(self, file: Path) -> Any:
        """The reader of a file, shared by threads; closed when it is evicted and no thread uses it."""
        with self._lock:
            reader = self._readers.pop(file, None)
            if reader is None:
                from array_record.python.array_record_module import ArrayRecordReader  # only needed for such files

                reader = ArrayRecordReader(os.fspath(file), options=READER_OPTIONS, file_reader_buffer_size=32768)
            self._readers[file] = reader
            if len(self._readers) > OPEN_READERS:
                self._readers.popitem(last=False)
            return reader


def _state(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
