"""Photographs as people see them: turned by EXIF, whatever their kind of pixels."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_image(file: Path) -> np.ndarray:
    """The picture in a file as people see it, uint8 [H, W, 3]; see `as_people_see_it`.

    Raises:
      Exception: whatever Pillow raises at what it cannot read.
    """
    with Image.open(file) as opened:
        return as_people_see_it(opened)


def as_people_see_it(opened: Image.Image) -> np.ndarray:
    """A picture as uint8 [H, W, 3].

    It is turned as its EXIF orientation says; grey, palettes and 16 bits become 8-bit RGB; what is transparent becomes
    white; of an animation, the first frame is taken.

    Raises:
      Exception: whatever Pillow raises at what it cannot read.
    """
    picture: Image.Image = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I"):  # 16 bits of grey, or 32 that hold 16
        values = np.asarray(picture).astype(np.int64)
        picture = Image.fromarray((np.clip(values, 0, 65535) / 257).round().astype(np.uint8))
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("RGB"))
