"""Reads TIFF files: by Pillow where it is exact, by tifffile where Pillow loses bands, 16-bit colours or floats."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import tifffile
from PIL import Image

from petseg.config.image_spec import MOST_CHANNELS
from petseg.data import lossy_compression
from petseg.data.exif_orientation import apply_orientation
from petseg.data.picture import Picture, PictureError, check_page, check_size, from_frame, of_bands, wrong_array
from petseg.data.picture_formats import open_picture

EXTRA = "pip install 'petseg[tiff]' reads it"


def header(file: IO[bytes]) -> tuple[tuple[int, int], int]:
    """Height and width of the first page, and the number of pages."""
    with tifffile.TiffFile(file) as tiff:
        pages = _pages(tiff)
        return (pages[0].imagelength, pages[0].imagewidth), len(pages)


class TiffPages:
    """The pages of an open file, which is parsed once. They are turned upright."""

    def __init__(self, file: IO[bytes]):
        self._file, self._tiff = file, tifffile.TiffFile(file)
        self._pages = _pages(self._tiff)
        self._image: Image.Image | None = None
        with contextlib.suppress(Image.UnidentifiedImageError, SyntaxError, OSError):
            self._image = open_picture(file)  # else tifffile says what is wrong with a damaged file

    def read(self, page: int | None) -> Picture:
        """Reads a page; for `page` see `picture_files.read`."""
        check_page(page, len(self._pages))
        chosen = self._pages[page or 0]
        check_size(chosen.imagelength, chosen.imagewidth)
        lossy, pages = lossy_compression.of_tiff(self._file, chosen), len(self._pages)
        try:
            if self._image:
                self._image.seek(chosen.index)
                if _pillow_is_exact(self._image, chosen):
                    return dataclasses.replace(from_frame(self._image, pages), orientation=1, lossy=lossy)
        except (Image.UnidentifiedImageError, SyntaxError, OSError):
            pass  # a combination of bits that Pillow does not know, or a damaged file
        return dataclasses.replace(_bands(chosen), pages=pages, lossy=lossy)


def _pages(tiff: tifffile.TiffFile) -> list[Any]:
    """The pages of a file without thumbnails, coarser copies and transparency masks."""
    found: Sequence[Any] = tiff.pages
    pages = [page for page in found if not page.is_reduced and not page.is_mask]
    images = (tiff.imagej_metadata or {}).get("images", 1)
    if len(pages) == 1 < images:
        raise PictureError(f"is an ImageJ stack that lists one of its {images} pages; must be an ordinary TIFF file")
    return pages or [found[0]]


def _pillow_is_exact(image: Image.Image, page: Any) -> bool:
    """Whether Pillow gives all bands of a page in their depth."""
    bits, bands, mode = page.bitspersample, page.samplesperpixel, image.mode
    if page.sampleformat != 1:
        return False
    if mode.startswith("I;16"):
        return bands == 1 and bits in (12, 16) and page.photometric == tifffile.PHOTOMETRIC.MINISBLACK
    expected = {"1": 1, "L": 1, "P": 1, "RGB": 3, "RGBA": 4, "RGBa": 4, "LA": 2, "CMYK": 4, "YCbCr": 3, "LAB": 3}
    if bits == () or bits > 8 or bands != expected.get(mode):
        return False
    return mode not in ("RGBA", "RGBa", "LA") or page.extrasamples[-1:] in ((1,), (2,))


def _bands(page: Any) -> Picture:
    """Decodes a page with tifffile."""
    kind = tifffile.PHOTOMETRIC(page.photometric)
    if kind.name in ("PALETTE", "SEPARATED", "CIELAB", "ICCLAB", "LOGLUV", "CFA"):
        raise PictureError(f"is a TIFF file of {page.bitspersample}-bit {kind.name}; must be grey, RGB or bands")
    if not set(page.axes) <= {"Y", "X", "S"}:
        raise PictureError(f"is a TIFF volume with axes {page.axes}; must be pages of one picture each")
    if page.samplesperpixel > MOST_CHANNELS:  # before a small file is decompressed to many gigabytes
        raise PictureError(wrong_array(page.shape, page.dtype))
    try:
        array = page.asarray()
    except ValueError as error:
        if "imagecodecs" in str(error):
            raise PictureError(f"cannot be read: compressed as {page.compression.name}; {EXTRA}") from error
        raise
    array = np.moveaxis(array, 0, -1) if page.axes.startswith("S") else array
    if kind.name == "MINISWHITE" and array.dtype.kind in "bu":
        array = ~array if array.dtype.kind == "b" else (1 << page.bitspersample) - 1 - array
    picture = of_bands(array, "TIFF")
    tag = page.tags.get("Orientation")
    alpha = page.extrasamples[-1:] in ((1,), (2,))
    upright = apply_orientation(picture.pixels, int(tag.value) if tag else 1)
    return dataclasses.replace(picture, pixels=upright, alpha=alpha)
