"""Single records of a split by position, out of array_record files."""

import collections
import dataclasses
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from petseg.errors import DataError, one_line
from petseg.runtime import autotuning

# A process may have 1,024 files open, and each reader keeps 8 bytes for each record of its file: without them, with
# `index_storage_option:offloaded`, a record takes 14 ms instead of 0.4.
OPEN_READERS = 256
READER_OPTIONS = "readahead_buffer_size:0"
RECORDS_AT_ONCE = 16
UNREADABLE = "cannot be read"


@dataclasses.dataclass(frozen=True)
class RecordRange:
    """Consecutive records of a split in one file.

    Attributes:
      file: the file.
      first: position in the file of the first record.
      count: number of records.
      in_file: number of records in the whole file.
    """

    file: Path
    first: int
    count: int
    in_file: int


class RecordFiles:
    """The records of a split: positions 0 to N - 1, stretch after stretch. Keeps nothing of a single record.

    Attributes:
      states: size and modification time of each file when this was made.
    """

    def __init__(self, stretches: Sequence[RecordRange]):
        """Opens no file yet.

        Raises:
          DataError: if a file is missing.
        """
        self._stretches = tuple(stretches)
        self._starts = np.cumsum([0, *(stretch.count for stretch in stretches)], dtype=np.int64)
        self._firsts = np.array([stretch.first for stretch in stretches], np.int64)
        self.states = {stretch.file: _state(stretch.file) for stretch in stretches}
        for file, state in self.states.items():
            if state is None:
                raise DataError(f"{file}: is missing")
        self._readers: collections.OrderedDict[Path, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, position: int) -> str:
        """File and number of the record at a position, for messages."""
        number, place = self._places(np.array([position]))
        return f"record {place[0]} of {self._stretches[number[0]].file}"

    def check(self) -> None:
        """Raises DataError if a file has changed."""
        for file, state in self.states.items():
            if _state(file) != state:
                raise DataError(f"{file}: was changed or removed while it was needed")

    def in_order(self, positions: range) -> tf.data.Dataset:
        """The records at some positions, one after the other."""
        batches = tf.data.Dataset.range(positions.start, positions.stop, positions.step).batch(RECORDS_AT_ONCE)
        return batches.map(self.read).prefetch(1).unbatch().with_options(autotuning.off())

    def read(self, positions: tf.Tensor) -> tf.Tensor:
        """Records, string [K], at positions, int64 [K], as a graph of this process."""
        # Declared stateless, which it is: op determinism would run a stateful function sequentially.
        records = tf.numpy_function(self._read, [positions], tf.string, stateful=False)
        records.set_shape(positions.shape)
        return records

    def _read(self, positions: np.ndarray) -> np.ndarray:
        records = np.empty(len(positions), object)
        numbers, places = self._places(positions)
        for number in np.unique(numbers):
            (mine,) = np.nonzero(numbers == number)
            file = self._stretches[number].file
            try:
                records[mine] = self._reader(file).read(places[mine].tolist())
            except Exception as error:  # the library has no common class
                raise OSError(f"{file}: {UNREADABLE}: {one_line(error)}") from error
        return records

    def _places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of stretches, and positions in their files, int64 [K] each."""
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        return numbers, positions - self._starts[numbers] + self._firsts[numbers]

    def _reader(self, file: Path) -> Any:
        """A reader of a file; threads may share it, and it closes when the last one drops it."""
        with self._lock:
            reader = self._readers.pop(file, None) or _array_record_reader(file)
            self._readers[file] = reader
            if len(self._readers) > OPEN_READERS:
                self._readers.popitem(last=False)
            return reader


def _array_record_reader(file: Path) -> Any:
    from array_record.python import array_record_module  # needed with such files only

    return array_record_module.ArrayRecordReader(os.fspath(file), options=READER_OPTIONS, file_reader_buffer_size=32768)


def _state(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
