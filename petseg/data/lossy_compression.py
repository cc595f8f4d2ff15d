"""Detects lossy compression from a file's headers; masks must not have it. Imports no TensorFlow."""

import os
from typing import IO, Any

from tifffile import COMPRESSION

ALWAYS = {"JPEG": "JPEG", "MPO": "JPEG", "AVIF": "AVIF", "HEIF": "HEIF"}  # these are hardly ever lossless
HEADERS = 2**16  # bytes, which hold the headers of a JPEG or JPEG 2000 image


def of_image(file: IO[bytes], image: Any) -> str:
    """The name of the lossy compression of an image that Pillow opened; empty if there is none."""
    if image.format == "WEBP":
        return "WEBP" if _is_lossy_webp(file) else ""
    if image.format == "JPEG2000":
        file.seek(0)
        return _of_jpeg2000(file.read(HEADERS))
    if image.format == "DDS" and image.tile[0].codec_name == "bcn":
        return "DDS"
    return ALWAYS.get(image.format, "")


def of_tiff(file: IO[bytes], page: Any) -> str:
    """The name of the lossy compression of a page of tifffile; empty if there is none."""
    name = COMPRESSION(page.compression).name
    if not page.dataoffsets:
        return ""
    file.seek(page.dataoffsets[0])
    start = file.read(min(page.databytecounts[0], HEADERS))
    if name.startswith("WEBP"):
        return "WEBP" if start[12:16] != b"VP8L" else ""
    if "JPEG2000" in name or "JP2000" in name:
        return _of_jpeg2000(start)
    if name in ("JPEG", "OJPEG", "ALT_JPEG", "JPEG_99"):
        return "" if b"\xff\xc3" in start else "JPEG"  # the marker of lossless JPEG
    return name if name in ("JPEG_LOSSY", "JPEG_2000_LOSSY") else ""


def _of_jpeg2000(data: bytes) -> str:
    """Of the two wavelets, the irreversible one rounds. The reversible one is exact unless its code was cut off."""
    sizes = data.find(b"\xff\x4f\xff\x51")
    coding = data.find(b"\xff\x52", sizes)
    is_reversible = 0 <= sizes < coding and data[coding + 13 : coding + 14] == b"\x01"
    return "" if is_reversible else "JPEG 2000"


def _is_lossy_webp(file: IO[bytes]) -> bool:
    """Whether any image of the file, or of its animation, is of the lossy kind."""
    file.seek(12)
    while len(chunk := file.read(8)) == 8:
        kind, size = chunk[:4], int.from_bytes(chunk[4:], "little")
        if kind == b"VP8 ":
            return True
        file.seek(16 if kind == b"ANMF" else size + size % 2, os.SEEK_CUR)  # the chunks of a frame follow its header
    return False
