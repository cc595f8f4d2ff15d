"""Georeference of pictures: the tags of GeoTIFFs, and world and projection files beside pictures."""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile

from petseg.data.exif_orientation import ORIENTATION, read_orientation
from petseg.data.picture_formats import open_picture

logger = logging.getLogger(__name__)
# ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory, GeoDoubleParams, GeoAsciiParams, RPCCoefficient
GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737, 50844)
TIFF_SUFFIXES, JPEG2000_SUFFIXES = (".tif", ".tiff"), (".jp2", ".j2k", ".jpx", ".jpf")
PROJECTION, AUXILIARY = ".prj", ".aux.xml"
AUXILIARY_KEPT = ("SRS", "GeoTransform", "GCPList", "GeodataXform")  # the rest is statistics of the picture
IN_JPEG2000 = (bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03"), b"gml.root-instance")  # GeoJP2; GML
JPEG2000_HEADER = 2**16  # bytes, which hold the boxes before the pixels
MOST_NAMED = 8  # files in one line of the log

Tag = tuple[int, int, int, Any, bool]  # an entry of tifffile's `extratags`: code, type, count, value, once


@dataclasses.dataclass(frozen=True)
class Georeference:
    """The georeference of a picture.

    Attributes:
      tags: the tags of a GeoTIFF; empty for other files.
      world, projection, auxiliary: contents of the world file (such as .tfw), the .prj and the .aux.xml file beside the
        picture; empty if there is none. The last one without statistics of the picture.
    """

    tags: tuple[Tag, ...] = ()
    world: bytes = b""
    projection: bytes = b""
    auxiliary: bytes = b""

    @property
    def suffix(self) -> str:
        """Suffix of an output picture that has this georeference."""
        return ".tif" if self.tags else ".png"

    def sidecars(self, file: Path) -> dict[Path, bytes]:
        """Paths and contents of the files that belong beside an output picture."""
        found = {
            file.with_suffix(_world_suffixes(file)[0]): self.world,
            file.with_suffix(PROJECTION): self.projection,
            file.with_name(file.name + AUXILIARY): self.auxiliary,
        }
        return {path: content for path, content in found.items() if content}


NONE = Georeference()


def find(pictures: Sequence[Path]) -> dict[Path, Georeference]:
    """The georeference of each picture that has one; logs which pictures have one that their masks cannot keep."""
    found, lost = {}, []
    listed: dict[Path, dict[str, str]] = {}
    for file in pictures:
        if file.parent not in listed:
            listed[file.parent] = {name.lower(): name for name in os.listdir(file.parent)}
        tags, is_turned = _tiff_tags(file)
        try:
            georeference = Georeference(tags, **_read_sidecars(file, listed[file.parent]))
        except (OSError, ElementTree.ParseError):
            lost.append(file)
            continue
        if _is_in_jpeg2000(file) or (georeference != NONE and (is_turned or _is_turned(file))):
            lost.append(file)
        elif georeference != NONE:
            found[file] = georeference
    if lost:
        named = ", ".join(file.name for file in lost[:MOST_NAMED]) + (" ..." if len(lost) > MOST_NAMED else "")
        reason = "it is inside JPEG 2000, or beside it cannot be read, or an orientation tag turns the picture"
        logger.warning("the masks of %d pictures have no georeference, since %s: %s", len(lost), reason, named)
    return found


def sidecar_names(picture: Path) -> set[str]:
    """The lower-case names that world, projection and auxiliary files of a picture may have."""
    return {name for names in _sidecar_names(picture).values() for name in names}


def _tiff_tags(file: Path) -> tuple[tuple[Tag, ...], bool]:
    """The geographic tags of a TIFF file, and whether its orientation tag turns it; none of an unreadable file."""
    if file.suffix.lower() not in TIFF_SUFFIXES:
        return (), False
    try:
        with tifffile.TiffFile(file) as tiff:
            page: Any = tiff.pages.first
            tags = [page.tags[code] for code in GEO_TAGS if code in page.tags]
            is_turned = ORIENTATION in page.tags and page.tags[ORIENTATION].value != 1
            return tuple((tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags), is_turned
    except Exception:  # tifffile raises many classes; the reader of the picture reports the reason
        return (), False


def _read_sidecars(picture: Path, names: Mapping[str, str]) -> dict[str, bytes]:
    """The contents of the files beside a picture, by attribute of `Georeference`."""
    contents: dict[str, bytes] = {}
    for what, candidates in _sidecar_names(picture).items():
        for name in (names[name] for name in candidates if name in names):
            content = picture.with_name(name).read_bytes()
            contents.setdefault(what, _without_statistics(content) if what == "auxiliary" else content)
    return contents


def _sidecar_names(picture: Path) -> dict[str, list[str]]:
    stem, name = picture.stem.lower(), picture.name.lower()
    return {
        "world": [f"{base}{suffix}" for suffix in _world_suffixes(picture) for base in (stem, name)],
        "projection": [f"{base}{PROJECTION}" for base in (stem, name)],
        "auxiliary": [f"{base}{AUXILIARY}" for base in (name, stem)],
    }


def _world_suffixes(picture: Path) -> tuple[str, ...]:
    """Suffixes of a picture's world file: .tfw, .tifw and .wld for .tif."""
    suffix = picture.suffix.lower()
    return f"{suffix[:2]}{suffix[-1:]}w", f"{suffix}w", ".wld"


def _without_statistics(auxiliary: bytes) -> bytes:
    """The georeference in an .aux.xml file; empty if there is none."""
    if b"<!DOCTYPE" in auxiliary:  # entities could expand without limit
        return b""
    root = ElementTree.fromstring(auxiliary)
    for child in [child for child in root if child.tag not in AUXILIARY_KEPT]:
        root.remove(child)
    return ElementTree.tostring(root) if len(root) else b""


def _is_in_jpeg2000(file: Path) -> bool:
    if file.suffix.lower() not in JPEG2000_SUFFIXES:
        return False
    with file.open("rb") as opened:
        header = opened.read(JPEG2000_HEADER)
    return any(mark in header for mark in IN_JPEG2000)


def _is_turned(file: Path) -> bool:
    if file.suffix.lower() in TIFF_SUFFIXES:
        return False  # known from its tags
    try:
        with open_picture(file) as picture:
            return read_orientation(picture) != 1
    except Exception:  # Pillow raises many classes; the reader of the picture reports the reason
        return False
