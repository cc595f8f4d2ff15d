"""Signs PNG, JPEG, TIFF and npz files with a digest, so that petseg recognises the files that it wrote."""

import hashlib
import re
import struct
import zipfile
import zlib
from pathlib import Path

LABEL = b"petseg\0"
TIFF_SOFTWARE = "petseg " + "0" * 64  # the tag Software of a TIFF file, whose zeros `signed` replaces by the digest
_PNG, _JPEG, _TIFF, _ZIP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", (b"II", b"MM"), b"PK\3\4"
_END_OF_PNG = 12  # bytes of the last chunk of a PNG
_TIFF_SIGNATURE = re.compile(rb"petseg ([0-9a-f]{64})")


def signed(picture: bytes) -> bytes:
    """Adds a digest of all other bytes to the bytes of a PNG or JPEG, or of a TIFF whose software is TIFF_SOFTWARE."""
    if picture.startswith(_TIFF):
        return picture.replace(TIFF_SOFTWARE.encode(), b"petseg " + _digest(picture), 1)
    comment = _comment(picture)
    offset = _comment_offset(picture)
    return picture[:offset] + comment + picture[offset:]


def archive_signature(archive: zipfile.ZipFile) -> bytes:
    """The comment that signs an npz file: a digest of the names, sizes and checksums of its members."""
    members = [(member.filename, member.file_size, member.CRC) for member in archive.infolist()]
    return LABEL + _digest(repr(members).encode())


def is_signed(file: Path) -> bool:
    """Whether petseg signed a file that is unchanged since."""
    with file.open("rb") as opened:
        if opened.read(len(_ZIP)) == _ZIP:
            return _is_signed_archive(file)
    data = file.read_bytes()
    if data.startswith(_TIFF):
        found = _TIFF_SIGNATURE.search(data)
        return bool(found) and data == signed(data[: found.start(1)] + b"0" * 64 + data[found.end(1) :])  # type: ignore
    if not data.startswith((_PNG, _JPEG)) or LABEL not in data:
        return False
    length = len(_comment(data))
    offset = _comment_offset(data) - (length if data.startswith(_PNG) else 0)
    return data == signed(data[:offset] + data[offset + length :])


def _is_signed_archive(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.comment == archive_signature(archive)
    except zipfile.BadZipFile:
        return False


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _comment_offset(picture: bytes) -> int:
    """Offset of the comment: before the last chunk of a PNG, after the start marker of a JPEG."""
    return len(picture) - _END_OF_PNG if picture.startswith(_PNG) else len(_JPEG)


def _comment(picture: bytes) -> bytes:
    text = LABEL + _digest(picture)
    if picture.startswith(_PNG):
        return struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text))
    return b"\xff\xfe" + struct.pack(">H", 2 + len(text)) + text
