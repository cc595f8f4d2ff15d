"""Pictures that say that petseg wrote them, so that it never confuses a user's file with one of its own."""

import hashlib
import struct
import zlib
from pathlib import Path

LABEL = b"petseg\0"
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_END_OF_PNG = 12  # bytes of the chunk that ends each PNG


def signed(picture: bytes) -> bytes:
    """A PNG or JPEG with a comment, in the way of its format, that holds a digest of all other bytes."""
    comment = _comment(picture)
    place = _place(picture)
    return picture[:place] + comment + picture[place:]


def is_signed(file: Path) -> bool:
    """Whether a file is one that `signed` made, and nobody has changed it since."""
    data = file.read_bytes()
    if not data.startswith((_PNG, _JPEG)) or LABEL not in data:
        return False
    length = len(_comment(data))
    place = _place(data) - (length if data.startswith(_PNG) else 0)
    return data == signed(data[:place] + data[place + length :])


def _place(picture: bytes) -> int:
    """Where the comment begins: before the end of a PNG, after the start of a JPEG."""
    return len(picture) - _END_OF_PNG if picture.startswith(_PNG) else len(_JPEG)


def _comment(picture: bytes) -> bytes:
    text = LABEL + hashlib.sha256(picture).hexdigest().encode()
    if picture.startswith(_PNG):
        return struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text))
    return b"\xff\xfe" + struct.pack(">H", 2 + len(text)) + text
