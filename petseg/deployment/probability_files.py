"""Files of class probabilities, written by blocks of rows: one npz, or an 8-bit PNG per class."""

import io
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from petseg import files as files_lib
from petseg.deployment import picture_encoding
from petseg.deployment.georeference import NONE, Georeference
from petseg.deployment.signed_files import archive_signature
from petseg.errors import ConfigError

FORMATS = ("png", "npz")
PROBABILITY = ".probability."
MAX_PLANES_BYTES = 2**26  # of 8-bit probabilities in memory
Rows = Callable[[], Iterable[np.ndarray]]  # computes or reads float32 [rows, W, C], from top to bottom


def endings(format: str, names: Sequence[str], suffix: str = ".png") -> tuple[str, ...]:
    """Endings of the files of a format for classes of these names; of other formats, there are none."""
    if format == "png":
        return tuple(f"{PROBABILITY}{name}{suffix}" for name in names)
    return (".probabilities.npz",) if format == "npz" else ()


def write(
    target: Path,
    format: str,
    rows: Rows,
    shape: tuple[int, ...],
    names: Sequence[str],
    georeference: Georeference = NONE,
) -> list[Path]:
    """Writes the files of a format for one image; few rows, or some 8-bit planes, are in memory at a time.

    Args:
      rows: the probabilities; called several times if 8-bit planes of all classes would take much memory.

    Raises:
      ConfigError: if the format is unknown.
    """
    if format not in FORMATS:
        raise ConfigError(f"probabilities: got {format!r}; must be one of {', '.join(FORMATS)}")
    files = [target.with_name(target.name + ending) for ending in endings(format, names, georeference.suffix)]
    if format == "npz":
        files_lib.write_bytes(files[0], _npz(rows, shape, names))
    else:
        for file, plane in zip(files, _planes(rows, shape, len(names)), strict=True):
            picture_encoding.write(file, Image.fromarray(plane), georeference)
    return files


def _npz(rows: Rows, shape: tuple[int, ...], names: Sequence[str]) -> Iterator[bytes]:
    """The content of an npz file: `probabilities` float32 [H, W, C], and `classes`, their names [C]."""
    chunks = _Chunks()
    with zipfile.ZipFile(chunks, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("classes.npy", "w") as file:
            np.save(file, np.array(names))
        with archive.open("probabilities.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (*shape, len(names))}
            np.lib.format.write_array_header_1_0(file, header)
            for block in rows():
                file.write(np.ascontiguousarray(block, "<f4").data)
                yield chunks.pop()
        archive.comment = archive_signature(archive)
    yield chunks.pop()


def _planes(rows: Rows, shape: tuple[int, ...], count: int) -> Iterator[np.ndarray]:
    """The probabilities of each of `count` classes as uint8 [H, W], 255 for 1."""
    at_once = max(1, MAX_PLANES_BYTES // (shape[0] * shape[1]))
    for first in range(0, count, at_once):
        some = np.empty((min(at_once, count - first), *shape), np.uint8)
        top = 0
        for block in rows():
            scaled = np.moveaxis(block[..., first : first + len(some)], -1, 0) * np.float32(255)
            some[:, top : (top := top + len(block))] = scaled.round()
        yield from some


class SpooledRows:
    """Rows that are computed once, and read back from a temporary file at each later call.

    Args:
      rows: computes float32 [rows, W, C], from top to bottom.
      folder: folder of the temporary file, which has no name and vanishes with this object.
    """

    def __init__(self, rows: Rows, folder: str):
        self._rows, self._folder = rows, folder
        self._file: BinaryIO | None = None
        self._shapes: list[tuple[int, ...]] = []

    def __call__(self) -> Iterator[np.ndarray]:
        if self._file is not None:
            self._file.seek(0)
            for shape in self._shapes:
                data = self._file.read(4 * int(np.prod(shape)))
                yield np.frombuffer(data, np.float32).reshape(shape)
            return
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (lives as long as this object)
        shapes = []
        for block in self._rows():
            file.write(np.ascontiguousarray(block, np.float32).data)
            shapes.append(block.shape)
            yield block
        self._file, self._shapes = file, shapes  # only complete ones are read back


class _Chunks(io.RawIOBase):
    """Collects what is written, in order; `pop` takes it out."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def pop(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data
