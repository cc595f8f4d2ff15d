"""Reads, checks and decodes an image file and its mask file, and encodes both for a record."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import io
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from petseg.data import mask_files
from petseg.data.folders import mask_values
from petseg.data.folders.faults import Fault, Kind
from petseg.data.folders.mask_values import MaskCoding
from petseg.data.mask_files import LossyMaskError, MaskValues
from petseg.data.mask_survey import MaskFacts
from petseg.data.picture_files import Picture, PictureError
from petseg.errors import DataError, one_line
from petseg.picture_formats import exif_orientation

T = TypeVar("T")
R = TypeVar("R")
SMALLEST_SIDE = 8
END_OF_PNG = b"IEND\xaeB`\x82"
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM")  # decoded in this process; never EPS
# Modes by format that TensorFlow decodes to the same pixels as Pillow.
DECODABLE = {
    "JPEG": ("L", "RGB"),
    "MPO": ("L", "RGB"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "BMP": ("RGB",),
}


@dataclasses.dataclass(frozen=True)
class DecodedPair:
    """A decoded image and mask.

    Attributes:
      name, mask_name: names of image and mask.
      image: a JPEG, PNG or BMP file that TensorFlow decodes; empty if there is a fault.
      mask: class ids as a PNG file; empty if there is a fault.
      ids: class ids, uint8 [H, W]; None if the mask cannot be decoded.
      size: height and width of the image; None if it cannot be read.
      modes: Pillow's modes of image and mask, such as RGB and P.
      digest: hash of the image file.
      facts: facts of the mask for a survey of all masks; None if it cannot be decoded.
      either_way: whether the image is turned by EXIF, and the mask fits it as stored too.
      faults: faults of either file.
    """

    name: str
    mask_name: str = ""
    image: bytes = b""
    mask: bytes = b""
    ids: np.ndarray | None = None
    size: tuple[int, int] | None = None
    modes: tuple[str, str] = ("", "")
    digest: bytes = b""
    facts: MaskFacts | None = None
    either_way: bool = False
    faults: tuple[Fault, ...] = ()


def decode_pair(name: str, image_data: bytes, mask_name: str, mask_data: bytes, coding: MaskCoding) -> DecodedPair:
    """Decodes and checks a pair.

    An image is rotated according to its EXIF data, unless the mask only fits the unrotated image.

    Args:
      name: name of the image, for messages.
      image_data: content of the image file.
      mask_name: name of the mask, for messages.
      mask_data: content of the mask file.
      coding: converts values of the mask to class ids.
    """
    faults: list[Fault] = []
    picture = _opened(name, image_data, faults)
    mask = read_mask(mask_name, mask_data, coding.classes.colored)
    mask_size = ids = facts = None
    if isinstance(mask, Fault):
        faults.append(mask)
    else:
        mask_size, facts = mask[0].size, MaskFacts.of(mask[1])
        try:
            ids = mask_files.ids_of(mask[1], coding)
        except DataError as error:
            faults.append(Fault(Kind.VALUES, mask_name, str(error)))
    modes = (picture.mode if picture else "", "" if isinstance(mask, Fault) else mask[0].mode)
    turned = either_way = False
    if picture:
        size = (picture.height, picture.width)
        turned = _is_turned(picture, mask_size)
        if min(size) < SMALLEST_SIDE:
            what = f"is {size[0]} x {size[1]} pixels; must be at least {SMALLEST_SIDE} x {SMALLEST_SIDE}"
            faults.append(Fault(Kind.SMALL, name, what))
        either_way = turned and size == mask_size and (size[0] == size[1] or exif_orientation(picture) < 5)
        if turned:
            picture = ImageOps.exif_transpose(picture)
            size = (picture.height, picture.width)
        if mask_size and size != mask_size:
            what = f"is {size[0]} x {size[1]} (height x width), its mask {mask_name} {mask_size[0]} x {mask_size[1]}"
            faults.append(Fault(Kind.SIZES, name, f"{what}; both must be one size"))
    image_file = mask_file = b""
    if picture and not faults:
        try:
            image_file = image_data if not turned and _is_decodable(picture, image_data) else _as_png(picture)
        except DataError as error:
            faults.append(Fault(Kind.UNREADABLE, name, str(error)))
    if ids is not None and not faults:
        mask_file = mask_values.encode_png(ids)
    shape = size if picture else None
    digest = hashlib.blake2b(image_data, digest_size=16).digest()
    return DecodedPair(
        name, mask_name, image_file, mask_file, ids, shape, modes, digest, facts, either_way, tuple(faults)
    )


def read_mask(name: str, data: bytes, colored: bool | None) -> tuple[Picture, MaskValues] | Fault:
    """Decodes a mask as `mask_files.decode` does; returns a fault if that fails."""
    try:
        return mask_files.decode(data, colored)
    except PictureError as error:
        return Fault(Kind.UNREADABLE, name, str(error))
    except LossyMaskError as error:
        return Fault(Kind.INEXACT, name, str(error))
    except DataError as error:
        return Fault(Kind.VALUES, name, str(error))


def map_in_order(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Applies a function in threads and yields the results in order; a bounded number is computed ahead."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque[concurrent.futures.Future[R]] = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _opened(name: str, data: bytes, faults: list[Fault]) -> Image.Image | None:
    """Decodes an image; adds a fault and returns None if that fails."""
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)  # noqa: TID251
        picture.load()
    except Exception as error:  # Pillow's decoders raise many classes
        what = " ".join(str(error).split()) if "truncated" in str(error) else one_line(error)
        if "cannot identify" in what:
            what = f"{len(data)} bytes of no known format" if data else "it is empty"
        faults.append(Fault(Kind.UNREADABLE, name, f"cannot be read: {what}; must be a complete image"))
        return None
    return picture


def _is_turned(picture: Image.Image, mask_size: tuple[int, int] | None) -> bool:
    """Whether to rotate an image according to EXIF. Pillow has rotated TIFF files already."""
    orientation = exif_orientation(picture)
    if orientation == 1 or picture.format == "TIFF":
        return False
    swaps = orientation >= 5
    return not (swaps and mask_size == (picture.height, picture.width) and picture.width != picture.height)


def _is_decodable(picture: Image.Image, data: bytes) -> bool:
    """Whether TensorFlow decodes a file to the same pixels as Pillow."""
    if picture.format == "BMP" and (len(data) < 30 or struct.unpack("<H", data[28:30])[0] != 24):
        return False
    if picture.format == "PNG" and END_OF_PNG not in data:
        return False  # its pixels are complete, but TensorFlow refuses it
    return picture.mode in DECODABLE.get(picture.format or "", ())


def _as_png(picture: Image.Image) -> bytes:
    """Encodes an image as an RGB PNG file with 8 bits per channel.

    Raises:
      DataError: if its pixels are not within 8 or 16 bits.
    """
    if picture.mode.startswith("I") or picture.mode == "F":
        pixels = np.asarray(picture, np.float64)
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 65535) or picture.mode == "F":
            raise DataError(
                f"has mode {picture.mode} and pixels of neither 8 nor 16 bits; must have 8 or 16 bits per channel"
            )
        picture = Image.fromarray((pixels / 257).round().astype(np.uint8))
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def read_file(name: str, path: Path) -> bytes | Fault:
    """Reads a file; returns a fault if that fails."""
    try:
        return path.read_bytes()
    except OSError as error:
        return Fault(Kind.UNREADABLE, name, f"cannot be read: {error.strerror}; must be a complete image")
