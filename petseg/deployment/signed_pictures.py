"""Signs PNG and JPEG files with a digest, so that petseg recognises the files that it wrote."""

import hashlib
import struct
import zlib
from pathlib import Path

LABEL = b"petseg\0"
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_END_OF_PNG = 12  # bytes of the last chunk of a PNG


def signed(picture: bytes) -> bytes:
    """Adds a comment with a digest of all other bytes to the bytes of a PNG or JPEG file."""
    comment = _comment(picture)
    offset = _comment_offset(picture)
    return picture[:offset] + comment + picture[offset:]


def is_signed(file: Path) -> bool:
    """Whether a file was made by `signed` and is unchanged."""
    data = file.read_bytes()
    if not data.startswith((_PNG, _JPEG)) or LABEL not in data:
        return False
    length = len(_comment(data))
    offset = _comment_offset(data) - (length if data.startswith(_PNG) else 0)
    return data == signed(data[:offset] + data[offset + length :])


def _comment_offset(picture: bytes) -> int:
    """Offset of the comment: before the last chunk of a PNG, after the start marker of a JPEG."""
    return len(picture) - _END_OF_PNG if picture.startswith(_PNG) else len(_JPEG)


def _comment(picture: bytes) -> bytes:
    text = LABEL + hashlib.sha256(picture).hexdigest().encode()
    if picture.startswith(_PNG):
        return struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text))
    return b"\xff\xfe" + struct.pack(">H", 2 + len(text)) + text
