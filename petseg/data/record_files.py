"""Single records out of TFRecord files, by position, in any order.

A TFRecord file is one record after the other: its length (uint64, little endian), a checksum of that (4 bytes), its
bytes, a checksum of these (4 bytes).
"""

import dataclasses
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from petseg.errors import DataError

HEADER, FOOTER = 12, 4


@dataclasses.dataclass(frozen=True)
class RecordFiles:
    """N records that lie in files; keeps where they are, and none of them.

    Attributes:
      files: paths of the files.
      sizes: size of each file in bytes.
      places: int64 [N, 3]: number of the file, offset and length of the record.
    """

    files: tuple[Path, ...]
    sizes: tuple[int, ...]
    places: np.ndarray

    @classmethod
    def index(cls, files: Sequence[Path], records: np.ndarray) -> "RecordFiles":
        """Finds records in files, of which it reads the headers only.

        Args:
          files: TFRecord files, uncompressed.
          records: int64 [N, 2]: number of the file, position of the record in it.

        Raises:
          DataError: if a file cannot be read, or has no such record.
        """
        places = np.empty((len(records), 3), np.int64)
        for number, file in enumerate(files):
            spans, (mine,) = _spans(file), np.nonzero(records[:, 0] == number)
            if len(mine) and records[mine, 1].max() >= len(spans):
                raise DataError(f"{file}: has {len(spans)} records; must have {records[mine, 1].max() + 1}")
            places[mine, 0], places[mine, 1:] = number, spans[records[mine, 1]]
        return cls(tuple(files), tuple(file.stat().st_size for file in files), places)

    def check(self) -> None:
        """Raises DataError if a file is no longer there, or has another size."""
        for file, size in zip(self.files, self.sizes, strict=True):
            if not file.is_file() or file.stat().st_size != size:
                raise DataError(f"{file}: was changed or removed while it was needed")

    def read(self, ids: tf.Tensor) -> tf.Tensor:
        """Records, string [K], by their positions among the N, int64 [K]."""
        # Not stateful: the same ids give the same bytes. What is stateful, op determinism would not run in parallel.
        records = tf.numpy_function(self._read, [ids], tf.string, stateful=False)
        records.set_shape(ids.shape)
        return records

    def _read(self, ids: np.ndarray) -> np.ndarray:
        records = []
        for number, offset, length in self.places[ids].tolist():
            descriptor = os.open(self.files[number], os.O_RDONLY)
            try:
                record = os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
            if len(record) != length:
                raise OSError(f"{self.files[number]}: ends early")
            records.append(record)
        return np.array(records, object)


class Decoded:
    """Images, or masks, that are decoded whenever they are indexed; uint8 [N, H, W, C].

    Args:
      read: positions int64 [K] -> uint8 [K, H, W, C].
      shape: (N, H, W, C).
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]):
        self._read, self.shape = read, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        ids = np.arange(len(self))[rows]
        of_each = (slice(None), *rest)
        found = self._read(np.atleast_1d(ids))[of_each]
        return found if ids.ndim else found[0]


def _spans(file: Path) -> np.ndarray:
    """int64 [M, 2]: offset and length of each record of a file."""
    found, position = [], 0
    try:
        end = file.stat().st_size
        with open(file, "rb", buffering=0) as records:
            while position < end:
                header = os.pread(records.fileno(), HEADER, position)
                length = struct.unpack("<Q", header[:8])[0] if len(header) == HEADER else end
                found.append((position + HEADER, length))
                position += HEADER + length + FOOTER
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    if position != end:
        raise DataError(f"{file}: must be a TFRecord file, and a whole one")
    return np.array(found, np.int64).reshape(-1, 2)
