"""Encodes pictures as signed PNG and JPEG files."""

import io

from PIL import Image

from petseg.deployment.signed_files import signed
from petseg.errors import DataError

LONGEST_JPEG_SIDE = 65_500  # pixels; the limit of libjpeg


def encoded(picture: Image.Image, suffix: str) -> bytes:
    """The content of a signed file with this suffix, .png or .jpg.

    Raises:
      DataError: if the format cannot hold the picture.
      Exception: Pillow's encoders raise OSError, ValueError, struct.error and more.
    """
    data = io.BytesIO()
    if suffix == ".png":
        picture.save(data, "PNG")
    elif max(picture.size) <= LONGEST_JPEG_SIDE:
        picture.save(data, "JPEG", quality=92)
    else:
        raise DataError(
            f"{picture.width} x {picture.height} pixels do not fit into JPEG, whose sides are at most "
            f"{LONGEST_JPEG_SIDE}; cut the photograph into parts"
        )
    return signed(data.getvalue())
