"""Allow-list of image formats. All code opens image files by `open_picture`.

Pillow opens every format it knows by default, whatever the file is named, and runs Ghostscript for EPS.
"""

import contextlib
import functools
import os
from typing import IO

from PIL import Image

# Formats that are decoded in this process. HEIF needs pillow-heif, JXL a plugin.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF", "JXL",
    "MPO", "DIB", "TGA", "PCX", "SGI", "QOI", "PSD", "DDS", "ICO", "ICNS",
)  # fmt: skip


def open_picture(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Opens an image like `PIL.Image.open`, in one of `FORMATS` only; decodes no pixels.

    Raises Exception if Pillow cannot read the file; its decoders raise many classes.
    """
    _register_plugins()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])  # noqa: TID251


def suffixes() -> frozenset[str]:
    """Lower-case file name suffixes of the readable formats, as registered by Pillow and its plugins."""
    _register_plugins()
    known = Image.registered_extensions()
    readable = {name for name in FORMATS if name in Image.OPEN} | {"MPO"}  # MPO is opened as JPEG
    return frozenset(suffix for suffix, name in known.items() if name in readable) | {".npy"}


@functools.cache
def _register_plugins() -> None:
    """Registers Pillow's formats, and HEIF if `pillow-heif` is installed."""
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
