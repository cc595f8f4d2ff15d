"""The picture formats that petseg reads. All code opens pictures through `open_picture`.

Pillow's own default is every format it knows, and one of them starts another program: for EPS it runs Ghostscript, also
on a file that is named `photo.jpg`.
"""

import os
from typing import IO

from PIL import Image

# Formats of pictures whose decoders run in this process. HEIF and JXL are there if a plugin has registered them.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF", "JXL",
    "MPO", "DIB", "TGA", "PCX", "SGI", "QOI", "PSD", "DDS", "ICO", "ICNS",
)  # fmt: skip

ORIENTATION = 0x0112  # EXIF's tag


def open_picture(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Opens a picture as `PIL.Image.open` does, in one of `FORMATS` only; pixels are decoded later.

    Raises:
      Exception: what Pillow raises for files it cannot read; its decoders use many classes.
    """
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])  # noqa: TID251


def exif_orientation(picture: Image.Image) -> int:
    """The orientation in a picture's EXIF data, 1 to 8; 1, upright, without it or where its header cannot be parsed."""
    try:
        orientation = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises many classes; the pixels are sound, and other programs show them too
        return 1
    return orientation if orientation in range(1, 9) else 1


def suffixes() -> frozenset[str]:
    """File name suffixes of the readable formats, in lower case, as Pillow and its plugins have registered them."""
    known = Image.registered_extensions()
    readable = {name for name in FORMATS if name in Image.OPEN} | {"MPO"}  # MPO is opened as JPEG
    return frozenset(suffix for suffix, name in known.items() if name in readable)
