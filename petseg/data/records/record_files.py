"""Single records of a split, by position, in any order: out of TFRecord or array_record files."""

import collections
import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from petseg.data.records import record_index
from petseg.data.records.record_index import ENTRY, HEAD, Shard
from petseg.errors import DataError, one_line
from petseg.runtime import autotuning

# Of array_record files. A process may have 1,024 files open, and each reader keeps 8 bytes for each record of its file:
# without them, `index_storage_option:offloaded`, a record takes 14 ms instead of 0.4.
OPEN_READERS = 256
READER_OPTIONS = "readahead_buffer_size:0"
RECORDS_AT_ONCE = 16
UNREADABLE = "cannot be read"


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Records of a split that follow each other in one file.

    Attributes:
      file: the file.
      first: position in the file of the first of them.
      count: how many they are.
      in_file: how many records the whole file has.
    """

    file: Path
    first: int
    count: int
    in_file: int


class RecordFiles:
    """The records of a split: positions 0 to N - 1, stretch after stretch. Keeps nothing of a single record.

    Attributes:
      read: int64 [K] -> records, string [K], as a graph of this process.
      read_anywhere: the same as a graph for any process that sees the files; None where there is none.
      states: size and time of each file, when this was made.
    """

    read: Callable[[tf.Tensor], tf.Tensor]
    read_anywhere: Callable[[tf.Tensor], tf.Tensor] | None = None

    def __init__(self, stretches: Sequence[Stretch]):
        """Remembers size and time of each file.

        Raises:
          DataError: if one is not there.
        """
        self._stretches = tuple(stretches)
        self._starts = np.cumsum([0, *(stretch.count for stretch in stretches)], dtype=np.int64)
        self._firsts = np.array([stretch.first for stretch in stretches], np.int64)
        self.states = {stretch.file: _state(stretch.file) for stretch in stretches}
        for file, state in self.states.items():
            if state is None:
                raise DataError(f"{file}: is missing")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, position: int) -> str:
        """Where the record at a position is, in words."""
        number, place = self._places(np.array([position]))
        return f"record {place[0]} of {self._stretches[number[0]].file}"

    def check(self) -> None:
        """Raises DataError if a file is no longer what it was."""
        for file, state in self.states.items():
            if _state(file) != state:
                raise DataError(f"{file}: was changed or removed while it was needed")

    def in_order(self, positions: range) -> tf.data.Dataset:
        """The records at some positions, one after the other."""
        batches = tf.data.Dataset.range(positions.start, positions.stop, positions.step).batch(RECORDS_AT_ONCE)
        return batches.map(self.read).prefetch(1).unbatch().with_options(autotuning.off())

    def _places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of stretches, and places in their files, int64 [K] each."""
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        return numbers, positions - self._starts[numbers] + self._firsts[numbers]


class TFRecordFiles(RecordFiles):
    """Records of TFRecord files, with the index of `record_index`; checksums are looked at whenever one is read.

    All of it are TensorFlow's own operations, so that a data service can run them.
    """

    def __init__(self, stretches: Sequence[Stretch], cache_dir: str, title: str):
        """Has the index written where it is missing.

        Args:
          stretches: where the records of the split are.
          cache_dir: --cache_dir, for an index that cannot be written beside the files.
          title: the split, for the log.

        Raises:
          PetsegError: if a file is not there or no whole TFRecord file, or the index cannot be written.
        """
        super().__init__(stretches)
        shards = {stretch.file: Shard(stretch.file, stretch.in_file) for stretch in stretches}
        folder = record_index.ensure(list(shards.values()), cache_dir, title)
        self._index_files = [str(shards[stretch.file].index_file(folder)) for stretch in stretches]
        self.read = self.read_anywhere = self._read

    def _read(self, positions: tf.Tensor) -> tf.Tensor:
        numbers = tf.searchsorted(self._starts, positions, side="right", out_type=tf.int64) - 1
        places = positions - tf.gather(self._starts, numbers) + tf.gather(self._firsts, numbers)
        columns = (
            tf.gather(tf.constant([str(stretch.file) for stretch in self._stretches]), numbers),
            tf.gather(tf.constant(self._index_files), numbers),
            HEAD + ENTRY * places,
        )
        size = positions.shape[0] or tf.shape(positions, tf.int64)[0]
        read = tf.autograph.experimental.do_not_convert(_record)
        records = (
            tf.data.Dataset.from_tensor_slices(columns).map(read, RECORDS_AT_ONCE).batch(size, drop_remainder=True)
        )
        found = records.with_options(autotuning.off()).get_single_element()
        return tf.ensure_shape(found, positions.shape)


class ArrayRecordFiles(RecordFiles):
    """Records of array_record files, which bring an index of their own."""

    def __init__(self, stretches: Sequence[Stretch]):
        super().__init__(stretches)
        self._readers: collections.OrderedDict[Path, Any] = collections.OrderedDict()
        self._lock = threading.Lock()
        self.read = self._read

    def _read(self, positions: tf.Tensor) -> tf.Tensor:
        # Not stateful: the same ids give the same bytes. What is stateful, op determinism would not run in parallel.
        records = tf.numpy_function(self._read_some, [positions], tf.string, stateful=False)
        records.set_shape(positions.shape)
        return records

    def _read_some(self, positions: np.ndarray) -> np.ndarray:
        records = np.empty(len(positions), object)
        numbers, places = self._places(positions)
        for number in np.unique(numbers):
            (mine,) = np.nonzero(numbers == number)
            file = self._stretches[number].file
            try:
                records[mine] = self._reader(file).read(places[mine].tolist())
            except Exception as error:  # the library raises what it likes
                raise OSError(f"{file}: {UNREADABLE}: {one_line(error)}") from error
        return records

    def _reader(self, file: Path) -> Any:
        """A reader of a file; it may be used by several threads, and closes when nobody has it any more."""
        with self._lock:
            reader = self._readers.pop(file, None) or _array_record_reader(file)
            self._readers[file] = reader
            if len(self._readers) > OPEN_READERS:
                self._readers.popitem(last=False)
            return reader


def _record(file: tf.Tensor, index_file: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """The record, string scalar, whose offset stands at a place, int64 scalar, of an index file."""
    return _record_at(file, tf.io.decode_raw(_record_at(index_file, place[None]), tf.int64))


def _record_at(file: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """The record, string scalar, that begins at an offset, int64 [1], of a TFRecord file."""
    records = tf.raw_ops.TFRecordDatasetV2(
        filenames=file[None], compression_type="", buffer_size=tf.constant(0, tf.int64), byte_offsets=offset
    )
    kind: dict[str, Any] = {"output_types": [tf.string], "output_shapes": [tf.TensorShape([])]}
    first = tf.raw_ops.TakeDataset(input_dataset=records, count=tf.constant(1, tf.int64), **kind)
    return tf.raw_ops.DatasetToSingleElement(dataset=first, **kind)[0]


def _array_record_reader(file: Path) -> Any:
    from array_record.python import array_record_module  # which only those need that have such files

    return array_record_module.ArrayRecordReader(os.fspath(file), options=READER_OPTIONS, file_reader_buffer_size=32768)


def _state(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
