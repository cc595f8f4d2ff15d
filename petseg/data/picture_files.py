"""The reader of picture files: images and masks, in training, checks, prediction and the demo page, are all read here.

Imports no TensorFlow.
"""

import dataclasses
import functools
import hashlib
import io
import os
import re
import stat
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from petseg.config.image_spec import MOST_CHANNELS
from petseg.data import lossy_compression, tiff_files
from petseg.data.exif_orientation import read_orientation
from petseg.data.picture import (
    Picture,
    PictureError,
    check_page,
    check_size,
    from_frame,
    of_bands,
    too_many,
    wrong_array,
)
from petseg.data.picture_formats import open_picture
from petseg.errors import one_line

ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")  # formats whose frames are pages; in JPEG (MPO) and HEIF they are previews
NPY, TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DEEP_PNG = ("RGB;16B", "RGBA;16B", "LA;16B")  # Pillow's names of what it reduces to 8 bits
MOST_SKIPPED = 8  # pages of an animation that are kept decoded
AVIF_HEAD = 2**16  # bytes, which hold the boxes before the pixels
SIXTEEN_BITS = "must be PNG or TIFF of 16 bits, or an image of 8"
READERS = {  # first bytes of formats that need a package, or that no reader here knows: what to do
    rb"....ftyp(heic|heix|hevc|mif1|msf1|heim|heis)": "is HEIC; pip install 'petseg[heif]' reads it",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "is JPEG XL; pip install pillow-jxl-plugin, and import it, or convert it to PNG",
    rb".{128}DICM": "is DICOM; must be converted to TIFF or .npy, with its own pixel values",
    rb"\x1f\x8b": "is compressed by gzip, as NIfTI files are; must be converted to TIFF or .npy",
    rb"version https://git-lfs": "is a pointer of Git LFS; `git lfs pull` fetches the file",
    rb"NRRD": "is NRRD; must be converted to TIFF or .npy, with its own pixel values",
    rb"%!PS|%PDF": "is PostScript or PDF, which is not read because it is a program; must be a picture",
}


def read(path: str | os.PathLike[str], page: int | None = None) -> Picture:
    """Reads a file.

    Args:
      page: page from 0 on; None for a file that must have one page.

    Raises:
      PictureError: if it cannot be read, has too many pixels, or has several pages and `page` is None.
    """
    with _opened(path) as file:
        return _read(file, page)


def decode(data: bytes, page: int | None = None) -> Picture:
    """Reads the content of a file; see `read`."""
    return _read(io.BytesIO(data), page)


class FileContent:
    """The content of a file for its pages, which threads may share: read and parsed once."""

    def __init__(self, source: bytes | Path):
        self._source, self._lock = source, threading.RLock()

    @functools.cached_property
    def _data(self) -> bytes:
        if isinstance(self._source, bytes):
            return self._source
        with _opened(self._source) as file:
            return file.read()

    @functools.cached_property
    def _hash(self) -> Any:
        return hashlib.blake2b(self._data, digest_size=16)

    @functools.cached_property
    def _pages(self) -> "tiff_files.TiffPages | _PillowPages":
        return _pages_of(io.BytesIO(self._data))

    def data(self) -> bytes:
        """All of the file; raises PictureError as `read`."""
        with self._lock:
            return self._data

    def picture(self, page: int | None = None) -> Picture:
        """A page; see `read`."""
        with self._lock:
            if page is None or self._data.startswith(NPY):
                return decode(self._data, page)
            try:
                return self._pages.read(page)
            except Exception as error:  # decoders raise many classes
                raise _as_picture_error(error) from error

    @functools.cached_property
    def pixels(self) -> int:
        """The number of pixels of a page, as `count_pixels`."""
        height, width = size_in_header(self.data())
        return height * width

    def digest(self, page: int | None = None) -> bytes:
        """A hash of the file and the number of a page; empty if the file cannot be read."""
        try:
            with self._lock:
                found = self._hash.copy()
        except PictureError:
            return b""
        found.update(b"" if page is None else str(page).encode())
        return found.digest()


def count_pages(path: str | os.PathLike[str]) -> int:
    """The number of pages of a file, without decoding one; raises PictureError as `read`."""
    with _opened(path) as file:
        return _header(file)[1]


def count_pixels(path: str | os.PathLike[str]) -> int:
    """The number of pixels of a page, from the header of its file; raises PictureError as `read`."""
    with _opened(path) as file:
        height, width = _header(file)[0]
        return height * width


def size_in_header(data: bytes) -> tuple[int, int]:
    """Height and width of the content of a file as stored, without decoding it; raises PictureError as `read`."""
    return _header(io.BytesIO(data))[0]


def _opened(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a regular file: reading a pipe or a terminal would block."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise PictureError(f"is {what}; must be an image file")
        return Path(path).open("rb")
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror}; must be a complete image") from error


def _read(file: IO[bytes], page: int | None) -> Picture:
    try:
        return _npy(file) if _start(file).startswith(NPY) else _pages_of(file).read(page)
    except Exception as error:  # decoders raise many classes
        raise _as_picture_error(error) from error


def _start(file: IO[bytes]) -> bytes:
    file.seek(0)
    start = file.read(132)
    file.seek(0)
    return start


def _pages_of(file: IO[bytes]) -> "tiff_files.TiffPages | _PillowPages":
    """The pages of an open file, which is no NumPy file."""
    return tiff_files.TiffPages(file) if _start(file)[:4] in TIFF else _PillowPages(file)


def _header(file: IO[bytes]) -> tuple[tuple[int, int], int]:
    """Height and width of a page, and the number of pages."""
    try:
        start = _start(file)
        if start.startswith(NPY):
            shape, pages = _npy_header(file)[0][:2], 1
        elif start[:4] in TIFF:
            shape, pages = tiff_files.header(file)
        else:
            with _pillow(file, start) as image:
                shape, pages = (image.height, image.width), _frames(image)
        check_size(*shape)
        return (shape[0], shape[1]), pages
    except Exception as error:
        raise _as_picture_error(error) from error


def _as_picture_error(error: Exception) -> PictureError:
    """Converts errors of decoders to a PictureError that says what is wrong with the file."""
    if isinstance(error, PictureError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        pixels = int(re.search(r"\((\d+) pixels\)", str(error))[1])  # type: ignore[index]
        return PictureError(too_many(f"its {pixels}", pixels))
    what = " ".join(str(error).split())
    return PictureError(f"cannot be read: {what if 'truncated' in what else one_line(error)}; must be a complete image")


# Formats of Pillow.


class _PillowPages:
    """The pages of an open file. Those of an animation are decoded once if they are read in order, or nearly."""

    def __init__(self, file: IO[bytes]):
        self._file, self._image = file, _pillow(file, _start(file))
        self._count = _frames(self._image)
        self._is_reduced = _is_reduced(file, self._image, self._count)
        self._lossy = lossy_compression.of_image(file, self._image)
        self._next = 0  # page after the last one decoded
        self._skipped: dict[int, Picture] = {}  # decoded on the way to a later page, and not read yet

    def read(self, page: int | None) -> Picture:
        """Reads a page; for `page` see `picture_files.read`."""
        image: Any = self._image
        check_page(page, self._count)
        if self._is_reduced:
            raise PictureError(f"has more than 8 bits in {image.format}, of which its reader gives 8; {SIXTEEN_BITS}")
        deep = _deep_pixels(self._file, image) if self._count == 1 else None
        if deep is not None:
            mode, alpha, turn = f"{deep.shape[2]} x uint16", deep.shape[2] in (2, 4), read_orientation(image)
            return Picture(deep, image.format or "", mode, alpha=alpha, orientation=turn, lossy=self._lossy)
        if (page := page or 0) in self._skipped:
            return self._skipped.pop(page)
        if page < self._next:  # opened again, because Pillow's rewinding of an animated PNG is broken
            self._image, self._next = _pillow(self._file, _start(self._file)), 0
        for between in range(max(self._next, page - MOST_SKIPPED), page):  # threads will ask for them
            self._skipped[between] = self._frame(between)
        while len(self._skipped) > MOST_SKIPPED:
            del self._skipped[min(self._skipped)]
        return self._frame(page)

    def _frame(self, page: int) -> Picture:
        self._image.seek(page)
        self._next = page + 1
        return dataclasses.replace(from_frame(self._image, self._count), lossy=self._lossy)


def _pillow(file: IO[bytes], start: bytes) -> Image.Image:
    """Opens a file with Pillow and checks its size; decodes no pixels."""
    try:
        image = open_picture(file)
    except Image.UnidentifiedImageError as error:
        for pattern, remedy in READERS.items():
            if re.match(pattern, start, re.DOTALL):
                raise PictureError(f"cannot be read: {remedy}") from error
        size = file.seek(0, os.SEEK_END)
        what = f"{size} bytes of no known format" if size else "it is empty"
        raise PictureError(f"cannot be read: {what}; must be a complete image") from error
    check_size(image.height, image.width)
    return image


def _frames(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1) if image.format in ANIMATED else 1


# Pictures of 16 bits that Pillow would reduce to 8, or rescale.


def _is_reduced(file: IO[bytes], image: Any, pages: int) -> bool:
    """Whether an opened image has more than 8 bits, in a format of which only 8 can be read."""
    if image.format == "HEIF":
        return image.info.get("bit_depth", 8) > 8
    if image.format in ("AVIF", "SGI"):
        file.seek(0)
        head = file.read(AVIF_HEAD)
        if image.format == "SGI":
            return head[3] == 2  # bytes of a number
        at = head.find(b"av1C") + 6
        return at > 6 and bool(head[at] & 0x40)  # the flag `high_bitdepth`
    return image.format == "PNG" and pages > 1 and str(image.tile[0].args) in DEEP_PNG


def _deep_pixels(file: IO[bytes], image: Any) -> np.ndarray | None:
    """Pixels uint16 [H, W, bands] of such a PNG, PPM or JPEG 2000 file; None for other files."""
    if image.format == "PNG":
        return _deep_png(file, str(image.tile[0].args))
    if image.format == "PPM":
        return _deep_ppm(file, image)
    if image.format == "JPEG2000":
        return _deep_jpeg2000(file)
    return None


def _deep_png(file: IO[bytes], stored: str) -> np.ndarray | None:
    """Decodes a PNG twice: for the high bytes and, taking its numbers for little-endian ones, for the low bytes."""
    if stored not in DEEP_PNG:
        return None

    def decoded(raw_mode: str) -> np.ndarray:
        file.seek(0)
        image: Any
        with open_picture(file) as image:
            image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
            return np.array(image).astype(np.uint16)

    if stored == "LA;16B":  # four bytes of a pixel
        both = decoded("RGBA")
        return both[..., ::2] << 8 | both[..., 1::2]
    return decoded(stored) << 8 | decoded(stored.replace("16B", "16L"))


def _deep_ppm(file: IO[bytes], image: Any) -> np.ndarray | None:
    tile = image.tile[0]
    largest = tile.args[1] if isinstance(tile.args, tuple) and len(tile.args) > 1 else 0
    if "16" not in str(tile.args) and not (isinstance(largest, int) and 255 < largest <= 65535):
        return None
    bands = 3 if image.mode == "RGB" else 1
    file.seek(tile.offset)
    data, count = file.read(), image.height * image.width * bands
    plain = tile.codec_name == "ppm_plain"
    values = np.array(data.split()[:count], np.uint16) if plain else np.frombuffer(data, ">u2", count)
    return values.astype(np.uint16).reshape(image.height, image.width, bands)


def _deep_jpeg2000(file: IO[bytes]) -> np.ndarray | None:
    file.seek(0)
    data = file.read()
    sizes = data.find(b"\xff\x4f\xff\x51") + 2  # the marker with the depth of the first component
    if sizes < 2 or (data[sizes + 40] & 0x7F) < 8:
        return None
    try:
        import imagecodecs
    except ImportError as error:
        raise PictureError(f"cannot be read: has {(data[sizes + 40] & 0x7F) + 1} bits; {tiff_files.EXTRA}") from error
    return of_bands(imagecodecs.jpeg2k_decode(data), "JPEG2000").pixels


# NumPy files.


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if len(shape) not in (2, 3) or max(shape[2:], default=1) > MOST_CHANNELS or dtype.hasobject:
        raise PictureError(wrong_array(shape, dtype))
    return shape, dtype


def _npy(file: IO[bytes]) -> Picture:
    shape, _ = _npy_header(file)
    check_size(*shape[:2])
    file.seek(0)
    return of_bands(np.load(file), "NPY")


def as_npy(array: np.ndarray) -> bytes:
    """The content of a file of an array."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
