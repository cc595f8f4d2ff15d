"""Writes pictures as signed PNG, JPEG and TIFF files, with their georeference."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from petseg import files as files_lib
from petseg.deployment.georeference import NONE, Georeference, Tag
from petseg.deployment.signed_files import TIFF_SOFTWARE, signed
from petseg.errors import DataError

LONGEST_JPEG_SIDE = 65_500  # pixels; the limit of libjpeg


def write(file: Path, picture: Image.Image, georeference: Georeference = NONE) -> None:
    """Writes a picture in the format of the file's suffix, .png, .jpg or .tif, and the files of its georeference.

    Raises:
      DataError: if the format cannot hold the picture.
      Exception: Pillow's encoders raise OSError, ValueError, struct.error and more.
    """
    data = io.BytesIO()
    if file.suffix == ".tif":
        _encode_tiff(data, picture, georeference.tags)
    elif file.suffix == ".png":
        picture.save(data, "PNG")
    elif max(picture.size) <= LONGEST_JPEG_SIDE:
        picture.save(data, "JPEG", quality=92)
    else:
        raise DataError(
            f"{picture.width} x {picture.height} pixels do not fit into JPEG, whose sides are at most "
            f"{LONGEST_JPEG_SIDE}; cut the photograph into parts"
        )
    files_lib.write_bytes(file, signed(data.getvalue()))
    for beside, content in georeference.sidecars(file).items():
        files_lib.write_bytes(beside, content)


def _encode_tiff(data: io.BytesIO, picture: Image.Image, tags: Sequence[Tag]) -> None:
    pixels, palette, photometric = np.asarray(picture), None, "minisblack"
    if picture.mode == "P":
        colors = np.zeros((256, 3), np.uint16)
        given = np.array(picture.getpalette("RGB"), np.uint16).reshape(-1, 3)
        colors[: len(given)] = given * 257
        palette, photometric = colors.T, "palette"
    elif picture.mode == "RGB":
        photometric = "rgb"
    tifffile.imwrite(
        data, pixels, photometric=photometric, colormap=palette, compression="zlib", metadata=None,
        software=TIFF_SOFTWARE, extratags=tags,
    )  # fmt: skip
