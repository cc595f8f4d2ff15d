"""Converts pictures to a run's images (channels, pixel dtype), and to files in the records of a data set.

NumPy only; the graph that decodes the records is in `example_decoding`.
"""

import dataclasses
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from petseg.config.image_spec import ImageSpec
from petseg.data import picture_files
from petseg.data.folders.mask_values import encode_png
from petseg.data.picture import Picture, PictureError, PixelError
from petseg.data.picture_files import FileContent
from petseg.errors import DataError

logger = logging.getLogger(__name__)
PERCENTILES = (0.1, 99.9)
UNUSED_OPACITY = "has a varying alpha channel, which is not used: the training images have none"
STANDARDISED = 4  # bound of pixel values with mean 0 and deviation 1
LUMA = (299, 587, 114)  # thousandths of red, green and blue in grey (ITU-R 601)
END_OF_PNG = b"IEND\xaeB`\x82"
DTYPE_TEXT = {"uint8": "8 bits", "uint16": "16 bits", "float32": "floats or 32 bits"}
# Modes by format of the files that TensorFlow decodes to the same pixels; others are stored as PNG.
DECODABLE = {
    "JPEG": ("L", "RGB"),
    "MPO": ("L", "RGB"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "3 x uint16", "4 x uint16"),
    "BMP": ("RGB",),
}


@dataclasses.dataclass(frozen=True)
class Bands:
    """Bands of an image file, with colours in place of palette indices."""

    dtype: str  # one of `image_spec.DTYPES`; 32-bit integers count as float32
    count: int  # number of bands without opacity
    alpha: bool = False  # whether there is a band of opacity

    @classmethod
    def of(cls, picture: Picture) -> "Bands":
        """The bands of a picture."""
        picture = picture.colors()
        dtype = str(picture.pixels.dtype)
        return cls(dtype if dtype in ("uint8", "uint16") else "float32", picture.pixels.shape[2] - picture.alpha,
                   picture.alpha)  # fmt: skip

    @property
    def channels(self) -> int:
        """Channels by default: grey counts as RGB, opacity is left out."""
        return 3 if self.count in (1, 3) else self.count

    def gives(self, channels: int) -> bool:
        """Whether an image of `channels` channels can be made from the bands."""
        as_colors = self.count in (1, 3) and channels in (1, 3)
        return as_colors or channels == self.count or (self.alpha and channels == self.count + 1)

    def is_used_alpha(self, channels: int) -> bool:
        """Whether opacity is one of so many channels."""
        return self.alpha and channels == self.count + 1

    @property
    def is_stacked(self) -> bool:
        """Whether a record holds the bands one below the other, because no file format has such pixels."""
        plain = self.count in (1, 3) or (self.count == 4 and not self.alpha)
        return self.dtype == "float32" or not plain

    @property
    def planes(self) -> int:
        """Number of grey pictures one below the other in a record: two of 16 bits make a float."""
        return (self.count + self.alpha) * (2 if self.dtype == "float32" else 1) if self.is_stacked else 1

    def __str__(self) -> str:
        bands = f"{self.count} channel{'s' if self.count > 1 else ''}" + (" and opacity" if self.alpha else "")
        return f"{bands} of {DTYPE_TEXT[self.dtype]}"


class BandCounts:
    """Which bands the images of a data set have: how many have each, the first of them, how many vary in opacity."""

    def __init__(self, rows: Iterable[Iterable] = ()):
        self._found: dict[Bands, list] = {}
        for dtype, count, alpha, number, varying, name in rows:
            self._found[Bands(dtype, count, alpha)] = [number, varying, name]

    def add(self, bands: Bands, name: str, *, varies: bool) -> None:
        """Counts an image."""
        entry = self._found.setdefault(bands, [0, 0, name])
        entry[0] += 1
        entry[1] += varies

    def rows(self) -> list[list]:
        """JSON values, from which a copy can be made."""
        return [[*dataclasses.astuple(bands), *entry] for bands, entry in self._found.items()]

    def __add__(self, other: "BandCounts") -> "BandCounts":
        total = BandCounts(self.rows())
        for bands, (number, varying, name) in other._found.items():
            entry = total._found.setdefault(bands, [0, 0, name])
            entry[0] += number
            entry[1] += varying
        return total

    def resolve(self, channels: int, dtype: str) -> tuple[int, Bands]:
        """The number of channels and the bands of all images.

        Args:
          channels: --channels, 0 for those of the data.
          dtype: --image_dtype, "auto" for that of the data.

        Raises:
          DataError: if an image differs from the rest, or does not have what the flags say; names it.
        """
        if not self._found:
            return channels or 3, Bands("uint8" if dtype == "auto" else dtype, 3)
        usual, (_, _, name) = max(self._found.items(), key=lambda item: item[1][0])
        for bands, (_, _, other) in self._found.items():
            if bands.dtype != usual.dtype:
                raise DataError(f"{other}: has {bands}, {name} has {usual}; all images must have one bit depth")
        if dtype not in ("auto", usual.dtype):
            raise DataError(f"{name}: has {usual}; must have {DTYPE_TEXT[dtype]}, as --image_dtype or the run says")
        wanted = channels or usual.channels
        for bands, (_, _, other) in self._found.items():
            if not bands.gives(wanted):
                flag = f"must have {wanted}, as --channels says" if channels else f"{name} has {usual}"
                raise DataError(f"{other}: has {bands}; {flag}; all images must have the same channels")
            if bands.planes != usual.planes:
                raise DataError(f"{other}: has {bands}, {name} has {usual}; all images must have the same channels")
        return wanted, usual

    def alpha_note(self, channels: int) -> str:
        """A note on opacity that varies and is not used; empty if there is none, or if --channels leaves it out."""
        varying = [(entry[1], entry[2], bands) for bands, entry in self._found.items() if entry[1]]
        if channels or not varying:
            return ""
        count, name, bands = sum(each[0] for each in varying), varying[0][1], varying[0][2]
        return (
            f"{count} images have a varying alpha channel ({name}), which is not used: --channels={bands.count + 1} "
            f"uses it, --channels={bands.channels} leaves it out without this note"
        )


def to_image(picture: Picture, channels: int) -> np.ndarray:
    """An upright image [H, W, channels] of a picture, with its pixel values.

    Raises PictureError if the picture has other channels.
    """
    picture, bands = picture.upright().colors(), Bands.of(picture)
    if not bands.gives(channels):
        raise PictureError(f"has {bands}; must have {channels} channel{'s' if channels > 1 else ''}")
    pixels = picture.pixels
    if pixels.dtype in (np.int32, np.uint32):
        pixels = pixels.astype(np.float32)
    if bands.is_used_alpha(channels):
        return pixels
    pixels = pixels[..., : bands.count]
    if channels == 3 and bands.count == 1:
        return np.repeat(pixels, 3, axis=-1)
    return luma(pixels) if channels == 1 and bands.count == 3 else pixels


def luma(pixels: np.ndarray) -> np.ndarray:
    """Grey [..., 1] of RGB [..., 3], of the same dtype; integers are rounded."""
    if pixels.dtype.kind == "f":
        return pixels @ (np.array(LUMA, np.float32)[:, None] / 1000)
    return ((pixels.astype(np.int64) @ np.array(LUMA)[:, None] + 500) // 1000).astype(pixels.dtype)


def prepared(
    picture: Picture, spec: ImageSpec, name: str = "image", on_unused_opacity: Callable[[], None] | None = None
) -> np.ndarray:
    """An image [H, W, C] of a picture, upright and in transport format, uint8 or uint16.

    Args:
      on_unused_opacity: called if opacity varies and is not one of the channels; None: that is logged with the name.

    Raises:
      PictureError: if the picture has other channels or numbers than the run's images.
    """
    bands = Bands.of(picture)
    if bands.dtype != spec.dtype:
        raise PictureError(
            f"has {bands}; the network was trained on images of {DTYPE_TEXT[spec.dtype]}; must have the same bit "
            "depth, since values of another one have another meaning"
        )
    image = to_image(picture, spec.channels)
    check_finite(image)
    check_scale(image, spec)
    if picture.alpha_varies and not bands.is_used_alpha(spec.channels):
        if on_unused_opacity:
            on_unused_opacity()
        else:
            logger.info("%s: %s", name, UNUSED_OPACITY)
    return spec.encode(image)


def for_people(picture: Picture) -> np.ndarray:
    """Three channels of a picture for display, uint8 [H, W, 3]; beyond 8 bits, its own range is scaled to [0, 255]."""
    picture = picture.upright().colors()
    count = picture.pixels.shape[2] - picture.alpha
    pixels = picture.pixels[..., [min(channel, count - 1) for channel in range(3)]]
    if pixels.dtype == np.uint8:
        return pixels
    pixels = np.nan_to_num(pixels.astype(np.float64), posinf=0, neginf=0)
    low, high = np.percentile(pixels, PERCENTILES)
    return (np.clip((pixels - low) / max(high - low, 1e-30), 0, 1) * 255).round().astype(np.uint8)


def check_finite(pixels: np.ndarray) -> None:
    """Raises PixelError if some pixel values are NaN or infinite."""
    if pixels.dtype.kind == "f" and (bad := int((~np.isfinite(pixels)).any(axis=-1).sum())):
        raise PixelError(
            f"holds NaN or infinite values in {bad} pixels; must be finite: replace them, and ignore these pixels in "
            "the mask"
        )


def check_scale(pixels: np.ndarray, spec: ImageSpec) -> None:
    """Raises PixelError if pixel values [..., C] are on another scale than those of the training images.

    They are if the range would make most of them white, or all of them black, or if they are centred on 0.
    """
    if spec.dtype == "uint8":
        return
    low, high = np.array(spec.low), np.array(spec.high)
    is_larger = np.mean(pixels > 2 * high - low) > 0.5
    is_fraction = pixels.dtype.kind == "f" and low.min() >= 0 and high.min() > 100 and 0 < pixels.max() <= 1
    if is_larger or is_fraction or (low.min() >= 0 and _is_centred(pixels, high.max())):
        raise PixelError(
            f"holds values from {pixels.min():g} to {pixels.max():g}; must be on the scale of the training images, "
            f"whose --intensity_range is {low.min():g} to {high.max():g}"
        )


def _is_centred(pixels: np.ndarray, high: float) -> bool:
    """Whether pixel values seem to be normalised around 0, such as to [-1, 1], where others are 0 to `high`.

    Only on the scales of 8-bit images: a window of physical values clips negative ones on purpose.
    """
    if high > 256 or np.abs(pixels).max() > max(high, STANDARDISED):
        return False
    return bool(np.mean(pixels < -high / 4) > 0.01)  # resampling alone makes few and small ones


# Files in records.


def record_file(picture: Picture, data: bytes) -> bytes:
    """A file with the pixels of a picture that TensorFlow decodes: its own file if that will do, or a PNG.

    Args:
      data: content of its file; empty if the file holds other pages, or pixels that are turned.
    """
    bands = Bands.of(picture)
    if data and not bands.is_stacked and _is_decodable(picture, data):
        return data
    picture = picture.colors()
    pixels = picture.pixels
    if not bands.is_stacked:
        if bands.count == 1 and bands.alpha:  # TensorFlow decodes grey with opacity only as RGBA
            pixels = pixels[..., [0, 0, 0, 1]]
        return _png(pixels)
    if bands.dtype == "float32":
        height, width, count = pixels.shape
        pixels = np.ascontiguousarray(pixels, "<f4").view("<u2").reshape(height, width, 2 * count)
    return _png(np.concatenate(np.moveaxis(pixels, -1, 0))[..., None])


def _is_decodable(picture: Picture, data: bytes) -> bool:
    if picture.format == "BMP" and (len(data) < 30 or struct.unpack("<H", data[28:30])[0] != 24):
        return False
    if picture.format == "PNG" and END_OF_PNG not in data:
        return False  # its pixels are complete, but TensorFlow refuses it
    return picture.mode in DECODABLE.get(picture.format, ())


def _png(pixels: np.ndarray) -> bytes:
    """A PNG of pixels [H, W, 1, 3 or 4] of 8 or 16 bits."""
    height, width, bands = pixels.shape
    if pixels.dtype == np.uint8:
        return encode_png(np.ascontiguousarray(pixels[..., 0] if bands == 1 else pixels))
    # Pillow writes no colours of 16 bits. Each row: filter 0 (none), then numbers with the high byte first.
    rows = np.ascontiguousarray(pixels, ">u2").view(np.uint8).reshape(height, -1)
    filtered = np.pad(rows, ((0, 0), (1, 0)))
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[bands], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 3)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def joined(counts: Mapping[str, BandCounts], splits: Iterable[str]) -> BandCounts:
    """The counts of some splits together; of all if none of them has any."""
    chosen = [each for split, each in counts.items() if split in splits] or list(counts.values())
    return sum(chosen, BandCounts())


def read(
    file: str | os.PathLike[str] | FileContent,
    spec: ImageSpec,
    page: int | None = None,
    *,
    on_unused_opacity: Callable[[], None] | None = None,
) -> np.ndarray:
    """An image [H, W, C] of a file in transport format; raises PictureError as `picture_files.read` and `prepared`."""
    picture = file.picture(page) if isinstance(file, FileContent) else picture_files.read(file, page)
    return prepared(picture, spec, str(file), on_unused_opacity)
