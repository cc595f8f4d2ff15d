"""EXIF orientation: how the stored pixels of a picture must be rotated and flipped to be upright."""

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # EXIF tag


def read_orientation(picture: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 (upright) if it is missing or cannot be parsed."""
    try:
        orientation = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises many classes; the pixels may still be valid
        return 1
    return orientation if orientation in range(1, 9) else 1


def apply_orientation(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, bands] rotated and flipped according to an EXIF orientation."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
