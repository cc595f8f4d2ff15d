"""Reads, checks and decodes an image file and its mask file, and encodes both for a record."""

import collections
import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from petseg.data import images, mask_files, picture_files, weight_files
from petseg.data.folders import mask_values
from petseg.data.folders.faults import Fault, Kind
from petseg.data.folders.mask_values import MaskCoding
from petseg.data.images import DTYPE_TEXT, Bands
from petseg.data.mask_files import LossyMaskError, MaskValues
from petseg.data.mask_survey import MaskFacts
from petseg.data.picture import Picture, PictureError
from petseg.errors import DataError

T = TypeVar("T")
R = TypeVar("R")
SMALLEST_SIDE = 8


@dataclasses.dataclass(frozen=True)
class DecodedPair:
    """A decoded image and mask, and the weight map if there is one.

    Attributes:
      name, mask_name: names of image and mask.
      image: a file for a record, as `images.record_file` makes it; empty if there is a fault.
      mask: class ids as a PNG file; empty if there is a fault.
      ids: class ids, uint8 [H, W]; None if the mask cannot be decoded.
      size: height and width of the image; None if it cannot be read.
      modes: Pillow's modes of image and mask, such as RGB and P.
      digest: hash of the image file, or of a page of it.
      picture: the upright image; None if it cannot be read.
      facts: facts of the mask for a survey of all masks; None if it cannot be decoded.
      either_way: whether the image is turned by EXIF, and the mask fits it as stored too.
      faults: faults of any file.
      weight_name: name of the weight map; empty without.
      weight: the weight map; None without, or if it cannot be used.
      weight_file: its file for a record, as `images.record_file` makes it; empty without, or if there is a fault.
    """

    name: str
    mask_name: str = ""
    image: bytes = b""
    mask: bytes = b""
    ids: np.ndarray | None = None
    size: tuple[int, int] | None = None
    modes: tuple[str, str] = ("", "")
    digest: bytes = b""
    picture: Picture | None = None
    facts: MaskFacts | None = None
    either_way: bool = False
    faults: tuple[Fault, ...] = ()
    weight_name: str = ""
    weight: Picture | None = None
    weight_file: bytes = b""

    @property
    def bands(self) -> Bands | None:
        """The bands of the image; None if it cannot be read."""
        return Bands.of(self.picture) if self.picture else None


def decode_pair(
    name: str,
    image_data: bytes,
    mask_name: str,
    mask_data: bytes,
    coding: MaskCoding,
    page: int | None = None,
    weight: tuple[str, bytes] | None = None,
) -> DecodedPair:
    """Decodes and checks a pair.

    An image is rotated according to its EXIF data, unless the mask only fits the unrotated image.

    Args:
      name: name of the image, for messages.
      image_data: content of the image file.
      mask_name: name of the mask, for messages.
      mask_data: content of the mask file.
      coding: converts values of the mask to class ids.
      page: page of all files, from 0 on; None for files of one page.
      weight: name and content of the weight map; None without.
    """
    faults: list[Fault] = []
    picture = _read(name, image_data, page, faults)
    mask = read_mask(mask_name, mask_data, coding.classes.colored, page)
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
    size: tuple[int, int] | None = None
    either_way = False
    if picture:
        stored = picture
        picture = upright(stored, mask_size)
        size, turned = picture.size, picture.pixels is not stored.pixels
        if min(size) < SMALLEST_SIDE:
            what = f"is {size[0]} x {size[1]} pixels; must be at least {SMALLEST_SIDE} x {SMALLEST_SIDE}"
            faults.append(Fault(Kind.SMALL, name, what))
        either_way = turned and stored.size == mask_size and (size[0] == size[1] or stored.orientation < 5)
        if mask_size and size != mask_size:
            what = f"is {size[0]} x {size[1]} (height x width), its mask {mask_name} {mask_size[0]} x {mask_size[1]}"
            faults.append(Fault(Kind.SIZES, name, f"{what}; both must be one size"))
    weight_map = None if weight is None else _weight_map(*weight, page, mask_name, mask_size, faults)
    image_file = mask_file = weight_file = b""
    if picture and not faults:
        try:
            images.check_finite(picture.pixels)
            as_it_is = page is None and picture.pixels is stored.pixels
            image_file = images.record_file(picture, image_data if as_it_is else b"")
        except PictureError as error:
            faults.append(Fault(Kind.IMAGES, name, str(error)))
    if ids is not None and not faults:
        mask_file = mask_values.encode_png(ids)
    if weight is not None and weight_map and not faults:
        weight_file = images.record_file(weight_map, b"")
    of_page = b"" if page is None else str(page).encode()
    digest = hashlib.blake2b(image_data + of_page, digest_size=16).digest()
    return DecodedPair(
        name, mask_name, image_file, mask_file, ids, size, modes, digest, picture, facts, either_way, tuple(faults),
        weight[0] if weight else "", weight_map, weight_file,
    )  # fmt: skip


def _weight_map(
    name: str, data: bytes, page: int | None, mask_name: str, mask_size: tuple[int, int] | None, faults: list[Fault]
) -> Picture | None:
    """Decodes a weight map; adds a fault and returns None if it cannot be used."""
    try:
        weight = weight_files.decode(data, page)
        if mask_size and weight.size != mask_size:
            height, width = weight.size
            what = f"is {height} x {width} (height x width), its mask {mask_name} {mask_size[0]} x {mask_size[1]}"
            raise PictureError(f"{what}; both must be one size")
        return weight
    except PictureError as error:
        faults.append(Fault(Kind.WEIGHTS, name, str(error)))
        return None


class WeightDepths:
    """The depths of the weight maps of a data set, which must be the same within a split.

    Attributes:
      dtypes: dtype by split, of those with weight maps.
    """

    def __init__(self) -> None:
        self.dtypes, self._first = dict[str, str](), dict[str, str]()

    def add(self, split: str, pair: DecodedPair) -> list[Fault]:
        """Adds a pair; returns the fault of a weight map of another depth."""
        if pair.weight is None:
            return []
        dtype = pair.weight.pixels.dtype.name
        first, usual = self._first.setdefault(split, pair.weight_name), self.dtypes.setdefault(split, dtype)
        if dtype == usual:
            return []
        what = f"holds {DTYPE_TEXT[dtype]}, {first} {DTYPE_TEXT[usual]}; weight maps must be of one depth"
        return [Fault(Kind.WEIGHTS, pair.weight_name, what, split)]


def read_mask(
    name: str, data: bytes, colored: bool | None, page: int | None = None
) -> tuple[Picture, MaskValues] | Fault:
    """Decodes a mask as `mask_files.decode` does; returns a fault if that fails."""
    try:
        return mask_files.decode(data, colored, page)
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


def _read(name: str, data: bytes, page: int | None, faults: list[Fault]) -> Picture | None:
    """Decodes an image; adds a fault and returns None if that fails."""
    try:
        return picture_files.decode(data, page)
    except PictureError as error:
        faults.append(Fault(Kind.UNREADABLE, name, str(error)))
        return None


def upright(picture: Picture, mask_size: tuple[int, int] | None) -> Picture:
    """An image turned as its EXIF orientation says, unless only as it is stored it has the size of its mask."""
    fits_stored = picture.orientation >= 5 and picture.size == mask_size and picture.size[0] != picture.size[1]
    return dataclasses.replace(picture, orientation=1) if fits_stored else picture.upright()


def read_file(name: str, path: Path) -> bytes | Fault:
    """Reads a file; returns a fault if that fails."""
    try:
        return path.read_bytes()
    except OSError as error:
        return Fault(Kind.UNREADABLE, name, f"cannot be read: {error.strerror}; must be a complete image")
