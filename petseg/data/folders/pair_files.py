"""Reads, checks and decodes an image file and its mask file, and encodes both for a record."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from petseg.data import images, mask_files, weight_map_files
from petseg.data.folders import mask_values
from petseg.data.folders.faults import Fault, Kind
from petseg.data.folders.mask_values import MaskCoding
from petseg.data.images import Bands
from petseg.data.mask_files import LossyMaskError, MaskValues
from petseg.data.mask_survey import MaskFacts
from petseg.data.picture import Picture, PictureError
from petseg.data.picture_files import FileContent
from petseg.errors import DataError

T = TypeVar("T")
R = TypeVar("R")
SMALLEST_SIDE = 8


@dataclasses.dataclass(frozen=True)
class DecodedPair:
    """A decoded image and mask, and the weight map if there is one."""

    name: str
    mask_name: str = ""
    image: bytes = b""  # a file for a record, as `images.record_file` makes it; empty if there is a fault
    mask: bytes = b""  # class ids as a PNG file; empty if there is a fault
    ids: np.ndarray | None = None
    size: tuple[int, int] | None = None
    modes: tuple[str, str] = ("", "")  # Pillow's modes of image and mask, such as RGB and P
    digest: bytes = b""  # hash of the image file, or of a page of it
    picture: Picture | None = None  # the upright image; None if it cannot be read
    facts: MaskFacts | None = None  # facts of the mask for a survey of all masks; None if it cannot be decoded
    either_way: bool = False  # whether the image is turned by EXIF, and the mask fits it as stored too
    faults: tuple[Fault, ...] = ()  # faults of any file
    weight_name: str = ""  # name of the weight map; empty without
    weight: Picture | None = None  # the weight map; None without, or if it cannot be used
    # its file for a record, as `images.record_file` makes it; empty without, or if there is a fault
    weight_file: bytes = b""

    @property
    def bands(self) -> Bands | None:
        """The bands of the image; None if it cannot be read."""
        return Bands.of(self.picture) if self.picture else None


def decode_pair(
    name: str,
    image: FileContent | bytes,
    mask_name: str,
    mask: FileContent | bytes,
    coding: MaskCoding,
    page: int | None = None,
    weight: tuple[str, FileContent] | None = None,
) -> DecodedPair:
    """Decodes and checks a pair.

    An image is turned according to its EXIF data, as in prediction. A mask or weight map that only fits the image as
    stored is turned with it.

    Args:
      page: page of all files, from 0 on; None for files of one page.
    """
    image, mask = (each if isinstance(each, FileContent) else FileContent(each) for each in (image, mask))
    faults: list[Fault] = []
    stored = _read(name, image, page, faults)
    of_mask = _read(mask_name, mask, page, faults)
    picture = stored.upright() if stored else None
    either_way = False
    if of_mask:
        of_mask = _turned_with(stored, of_mask.upright())
        if stored and picture:
            either_way = of_mask.size == stored.size == picture.size and picture.pixels is not stored.pixels
    found = values_of(mask_name, of_mask, coding.classes.colored) if of_mask else None
    ids = facts = None
    if isinstance(found, Fault):
        faults.append(found)
    elif found:
        facts = MaskFacts.of(found)
        try:
            ids = mask_files.ids_of(found, coding)
        except DataError as error:
            faults.append(Fault(Kind.VALUES, mask_name, str(error)))
    if picture:
        height, width = picture.size
        if min(picture.size) < SMALLEST_SIDE:
            what = f"is {height} x {width} pixels; must be at least {SMALLEST_SIDE} x {SMALLEST_SIDE}"
            faults.append(Fault(Kind.SMALL, name, what))
        if facts and of_mask and picture.size != of_mask.size:
            of = "{} x {}".format(*of_mask.size)
            what = f"is {height} x {width} (height x width), its mask {mask_name} {of}; both must be one size"
            faults.append(Fault(Kind.SIZES, name, what))
    weight_map = None
    if weight is not None and (read := _read(weight[0], weight[1], page, faults)):
        mask_size = of_mask.size if of_mask and facts else None
        weight_map = _weight_map(weight[0], _turned_with(stored, read.upright()), mask_name, mask_size, faults)
    image_file = mask_file = weight_file = b""
    if picture and stored and not faults:
        try:
            images.check_finite(picture.pixels)
            as_it_is = page is None and picture.pixels is stored.pixels
            image_file = images.record_file(picture, image.data() if as_it_is else b"")
        except PictureError as error:
            faults.append(Fault(Kind.IMAGES, name, str(error)))
    if ids is not None and not faults:
        mask_file = mask_values.encode_png(ids)
    if weight_map and not faults:
        weight_file = images.record_file(weight_map, b"")
    return DecodedPair(
        name,
        mask_name,
        image_file,
        mask_file,
        ids,
        picture.size if picture else None,
        (stored.mode if stored else "", of_mask.mode if of_mask and facts else ""),
        image.digest(page),
        picture,
        facts,
        either_way,
        tuple(faults),
        weight[0] if weight else "",
        weight_map,
        weight_file,
    )


def _turned_with(image: Picture | None, other: Picture) -> Picture:
    """A mask or weight map, turned as EXIF turns its image if it only fits the image as stored."""
    only_stored = image is not None and other.size == image.size != image.upright().size
    return dataclasses.replace(other, orientation=image.orientation).upright() if image and only_stored else other


def _weight_map(
    name: str, picture: Picture, mask_name: str, mask_size: tuple[int, int] | None, faults: list[Fault]
) -> Picture | None:
    """The weight map of a picture; adds a fault and returns None if it cannot be used."""
    try:
        weight = weight_map_files.of_picture(picture)
        if mask_size and weight.size != mask_size:
            height, width = weight.size
            what = f"is {height} x {width} (height x width), its mask {mask_name} {mask_size[0]} x {mask_size[1]}"
            raise PictureError(f"{what}; both must be one size")
        return weight
    except PictureError as error:
        faults.append(Fault(Kind.WEIGHTS, name, str(error)))
        return None


def read_values(name: str, mask: FileContent, colored: bool | None, page: int | None = None) -> MaskValues | Fault:
    """The values of a mask, rotated according to its own EXIF data; a fault if it cannot be read or is no mask."""
    faults: list[Fault] = []
    picture = _read(name, mask, page, faults)
    return values_of(name, picture.upright(), colored) if picture else faults[0]


def values_of(name: str, picture: Picture, colored: bool | None) -> MaskValues | Fault:
    """The values of a mask, as `mask_files.of_picture`; a fault if it is no mask."""
    try:
        return mask_files.of_picture(picture, colored)
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


def _read(name: str, file: FileContent, page: int | None, faults: list[Fault]) -> Picture | None:
    """Decodes a file; adds a fault and returns None if that fails."""
    try:
        return file.picture(page)
    except PictureError as error:
        faults.append(Fault(Kind.UNREADABLE, name, str(error)))
        return None
