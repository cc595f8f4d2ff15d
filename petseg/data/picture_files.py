"""The reader of picture files: pixels [H, W, bands] in their true depth, and what else the file holds.

Images and masks, in training, checks, prediction and the demo page, are all read here. Pillow reads what it reads
exactly; tifffile reads TIFF files that Pillow would reduce (many bands, 16-bit colours, floats). Imports no TensorFlow.
"""

import dataclasses
import functools
import io
import os
import re
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import tifffile
from PIL import Image

from petseg.config.image_spec import MOST_CHANNELS
from petseg.errors import DataError, one_line
from petseg.picture_formats import exif_orientation, open_picture

MOST_PIXELS = 89_000_000  # of one page, as in Pillow: a small file can decompress to many gigabytes
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")  # formats whose frames are pages; in JPEG (MPO) and HEIF they are previews
PALETTED = ("P", "PA")
NPY, TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
READERS = {  # first bytes of formats that need a package, or that no reader here knows: what to do
    rb"....ftyp(heic|heix|hevc|mif1|msf1|heim|heis)": "is HEIC; pip install 'petseg[heif]' reads it",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "is JPEG XL; pip install pillow-jxl-plugin, and import it, or convert it to PNG",
    rb".{128}DICM": "is DICOM; must be converted to TIFF or .npy, in its own numbers",
    rb"\x1f\x8b": "is compressed by gzip, as NIfTI files are; must be converted to TIFF or .npy",
    rb"%!PS|%PDF": "is PostScript or PDF, which is not read because it is a program; must be a picture",
}
TIFF_EXTRA = "pip install 'petseg[tiff]' reads it"
# After the pixels are counted here, Pillow's own warning would say the same once more.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class PictureError(DataError):
    """A file or array cannot be read as a picture; the text does not name it, the caller does."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as its file holds it.

    Attributes:
      pixels: [H, W, bands], uint8, uint16, int32, uint32 or float32. Of a file with a palette: indices. Single bits are
        0 and 255. CMYK, YCbCr and LAB are RGB.
      format: format as Pillow names it, NPY, or ARRAY.
      mode: Pillow's mode, or number and dtype of the bands, such as `5 x uint16`.
      palette: colours of the indices, uint8 [256, 4] RGBA; None without a palette.
      alpha: whether the last band is opacity.
      orientation: EXIF orientation, 1 to 8, of pixels that are not turned yet. TIFF files are turned already.
      pages: number of pages, or frames of an animation, in the file.
    """

    pixels: np.ndarray
    format: str
    mode: str
    palette: np.ndarray | None = None
    alpha: bool = False
    orientation: int = 1
    pages: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as stored, not turned."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def upright(self) -> "Picture":
        """The picture turned as its EXIF orientation says."""
        if self.orientation == 1:
            return self
        return dataclasses.replace(self, pixels=_turned(self.pixels, self.orientation), orientation=1)

    def colors(self) -> "Picture":
        """The picture with colours in place of palette indices."""
        if self.palette is None:
            return self
        colored = self.palette[self.pixels[..., 0]]
        if self.alpha:  # an opacity of each pixel beside the palette's
            colored[..., 3] = self.pixels[..., 1]
        alpha = self.alpha or bool((self.palette[:, 3] < 255).any())
        return dataclasses.replace(self, pixels=colored[..., : 3 + alpha], palette=None, alpha=alpha)

    @functools.cached_property
    def alpha_varies(self) -> bool:
        """Whether some pixels are more opaque than others, so that opacity says something."""
        picture = self.colors()
        return picture.alpha and bool(np.ptp(picture.pixels[..., -1]) > 0)


def read(path: str | os.PathLike[str], page: int | None = None) -> Picture:
    """Reads a file.

    Args:
      path: the file.
      page: page from 0 on; None for a file that must have one page.

    Raises:
      PictureError: if it cannot be read, has too many pixels, or has several pages and `page` is None.
    """
    with _opened(path) as file:
        return _read(file, page)


def decode(data: bytes, page: int | None = None) -> Picture:
    """Reads the content of a file; see `read`."""
    return _read(io.BytesIO(data), page)


def from_pillow(image: Image.Image) -> Picture:
    """The current frame of a Pillow image."""
    _check_size(image.height, image.width)
    return _from_pillow(image, 1)


def from_array(array: np.ndarray) -> Picture:
    """A picture of an array [H, W] or [H, W, bands] of numbers, none of which is opacity.

    Raises:
      PictureError: if it is no picture.
    """
    return _of_bands(array, "ARRAY")


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
        start = file.read(132)
        file.seek(0)
        if start.startswith(NPY):
            return _npy(file)
        if start[:4] in TIFF:
            return _tiff(file, page)
        with _pillow(file, start) as image:
            pages = _frames(image)
            _check_page(page, pages)
            deep = _deep_pixels(file, image) if pages == 1 else None
            if deep is not None:
                mode, alpha, turn = f"{deep.shape[2]} x uint16", deep.shape[2] in (2, 4), exif_orientation(image)
                return Picture(deep, image.format or "", mode, alpha=alpha, orientation=turn)
            image.seek(page or 0)
            return _from_pillow(image, pages)
    except Exception as error:  # decoders raise many classes
        raise _as_picture_error(error) from error


def _header(file: IO[bytes]) -> tuple[tuple[int, int], int]:
    """Height and width of a page, and the number of pages."""
    try:
        start = file.read(132)
        file.seek(0)
        if start.startswith(NPY):
            shape, pages = _npy_header(file)[0][:2], 1
        elif start[:4] in TIFF:
            with tifffile.TiffFile(file) as tiff:
                found = _tiff_pages(tiff)
                shape, pages = (found[0].imagelength, found[0].imagewidth), len(found)
        else:
            with _pillow(file, start) as image:
                shape, pages = (image.height, image.width), _frames(image)
        _check_size(*shape)
        return (shape[0], shape[1]), pages
    except Exception as error:
        raise _as_picture_error(error) from error


def _as_picture_error(error: Exception) -> PictureError:
    """What is wrong with a file, from the errors of decoders."""
    if isinstance(error, PictureError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        pixels = int(re.search(r"\((\d+) pixels\)", str(error))[1])  # type: ignore[index]
        return PictureError(_too_many(f"its {pixels}", pixels))
    what = " ".join(str(error).split())
    return PictureError(f"cannot be read: {what if 'truncated' in what else one_line(error)}; must be a complete image")


def _check_size(height: int, width: int) -> None:
    if height * width > MOST_PIXELS:
        raise PictureError(_too_many(f"{width} x {height}", height * width))


def _too_many(what: str, pixels: int) -> str:
    return f"{what} pixels are {pixels / 1e6:.0f} million; must be at most {MOST_PIXELS / 1e6:.0f} million"


def _check_page(page: int | None, pages: int) -> None:
    if page is None and pages > 1:
        raise PictureError(f"holds {pages} pages; must hold one, or --pages=examples makes each page an example")
    if page is not None and page >= pages:
        raise PictureError(f"holds {pages} pages, and page {page + 1} was asked for")


# Formats of Pillow.


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
    _check_size(image.height, image.width)
    return image


def _frames(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1) if image.format in ANIMATED else 1


def _from_pillow(image: Image.Image, pages: int) -> Picture:
    """Decodes an opened image, or takes over the pixels of one in memory."""
    mode, kind, orientation = image.mode, image.format or "PILLOW", exif_orientation(image)
    if kind == "TIFF":
        orientation = 1  # Pillow turns it
    image.load()
    facts: dict[str, Any] = {"format": kind, "mode": mode, "orientation": orientation, "pages": pages}
    if mode in PALETTED:
        return Picture(_bands(image), **facts, palette=_palette(image), alpha=mode == "PA")
    if mode.startswith("I;16"):
        return Picture(_bands(image).astype(np.uint16), **facts)
    if mode in ("L", "RGB") and "transparency" in image.info:
        image = image.convert("RGBA" if mode == "RGB" else "LA")
    elif mode in ("RGBa", "La"):
        image = image.convert(mode.upper())
    elif mode not in ("1", "L", "LA", "RGB", "RGBA", "I", "F"):
        image = image.convert("RGB")
    pixels = _bands(image)
    if mode == "1":
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    return Picture(pixels, **facts, alpha=image.mode in ("LA", "RGBA"))


def _bands(image: Image.Image) -> np.ndarray:
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _palette(image: Image.Image) -> np.ndarray:
    """Colours of a palette, uint8 [256, 4], with the opacity that the file gives to each."""
    indices = Image.fromarray(np.arange(256, dtype=np.uint8)[None], "P")
    colors = image.getpalette("RGB") or []
    indices.putpalette(colors + [0] * (768 - len(colors)))
    if "transparency" in image.info:
        indices.info["transparency"] = image.info["transparency"]
    return np.array(indices.convert("RGBA"))[0]


# Pictures of 16 bits that Pillow would reduce to 8, or rescale.


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
    if stored not in ("RGB;16B", "RGBA;16B", "LA;16B"):
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
        raise PictureError(f"cannot be read: has {(data[sizes + 40] & 0x7F) + 1} bits; {TIFF_EXTRA}") from error
    return _of_bands(imagecodecs.jpeg2k_decode(data), "JPEG2000").pixels


# TIFF.


def _tiff_pages(tiff: tifffile.TiffFile) -> list[Any]:
    """The pages of a file without thumbnails, coarser copies and transparency masks."""
    found: Sequence[Any] = tiff.pages
    pages = [page for page in found if not page.is_reduced and not page.is_mask]
    images = (tiff.imagej_metadata or {}).get("images", 1)
    if len(pages) == 1 < images:
        raise PictureError(f"is an ImageJ stack that lists one of its {images} pages; must be an ordinary TIFF file")
    return pages or [found[0]]


def _tiff(file: IO[bytes], page: int | None) -> Picture:
    with tifffile.TiffFile(file) as tiff:
        pages = _tiff_pages(tiff)
        _check_page(page, len(pages))
        chosen = pages[page or 0]
        _check_size(chosen.imagelength, chosen.imagewidth)
        try:
            with open_picture(file) as image:
                image.seek(chosen.index)
                if _pillow_is_exact(image, chosen):
                    return dataclasses.replace(_from_pillow(image, len(pages)), orientation=1)
        except (Image.UnidentifiedImageError, SyntaxError, OSError):
            pass  # a combination of bits that Pillow does not know; tifffile says what is wrong with a damaged file
        return dataclasses.replace(_tiff_bands(chosen), pages=len(pages))


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


def _tiff_bands(page: Any) -> Picture:
    """Decodes a page with tifffile."""
    kind = tifffile.PHOTOMETRIC(page.photometric)
    if kind.name in ("PALETTE", "SEPARATED", "CIELAB", "ICCLAB", "LOGLUV", "CFA"):
        raise PictureError(f"is a TIFF file of {page.bitspersample}-bit {kind.name}; must be grey, RGB or bands")
    try:
        array = page.asarray()
    except ValueError as error:
        if "imagecodecs" in str(error):
            raise PictureError(f"cannot be read: compressed as {page.compression.name}; {TIFF_EXTRA}") from error
        raise
    if not set(page.axes) <= {"Y", "X", "S"}:
        raise PictureError(f"is a TIFF volume with axes {page.axes}; must be pages of one picture each")
    array = np.moveaxis(array, 0, -1) if page.axes.startswith("S") else array
    if kind.name == "MINISWHITE" and array.dtype.kind in "bu":
        array = ~array if array.dtype.kind == "b" else (1 << page.bitspersample) - 1 - array
    picture = _of_bands(array, "TIFF")
    tag = page.tags.get("Orientation")
    alpha = page.extrasamples[-1:] in ((1,), (2,))
    return dataclasses.replace(picture, pixels=_turned(picture.pixels, int(tag.value) if tag else 1), alpha=alpha)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, bands] turned as an EXIF orientation says."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


# Arrays.


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if len(shape) not in (2, 3) or dtype.hasobject:
        raise PictureError(_wrong_array(shape, dtype))
    return shape, dtype


def _npy(file: IO[bytes]) -> Picture:
    shape, _ = _npy_header(file)
    _check_size(*shape[:2])
    file.seek(0)
    return _of_bands(np.load(file), "NPY")


def _of_bands(array: np.ndarray, kind: str) -> Picture:
    """A picture of an array [H, W] or [H, W, bands], in one of the dtypes of pictures."""
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] > MOST_CHANNELS):
        raise PictureError(_wrong_array(array.shape, array.dtype))
    array = array[..., None] if array.ndim == 2 else array
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif array.dtype.kind == "i" or array.dtype == np.uint64:
        if not (array.min() >= -(2**31) and array.max() < 2**31):
            raise PictureError(f"holds {array.dtype} numbers beyond 32 bits; must be 32 bits or less")
        array = array.astype(np.int32)
    elif array.dtype.kind != "u":
        raise PictureError(_wrong_array(array.shape, array.dtype))
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    _check_size(*array.shape[:2])
    return Picture(array, kind, f"{array.shape[2]} x {array.dtype}")


def _wrong_array(shape: tuple[int, ...], dtype: np.dtype) -> str:
    planes_first = len(shape) == 3 and shape[0] <= MOST_CHANNELS < shape[2]
    hint = "; with the channels first: np.moveaxis(array, 0, -1)" if planes_first else ""
    return (
        f"got {dtype} {list(shape)}; must be numbers [height, width] or [height, width, channels] of 1 to "
        f"{MOST_CHANNELS} channels{hint}"
    )
