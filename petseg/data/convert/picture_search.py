"""Finds the pictures that annotations name, in folders that may have been moved; reads their sizes."""

import collections
import dataclasses
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from petseg.data import picture_files, picture_formats
from petseg.data.convert.annotations import split_of
from petseg.data.exif_orientation import apply_orientation, read_orientation
from petseg.data.folders.file_patterns import SUFFIXES, composed
from petseg.data.picture import PictureError
from petseg.errors import DataError
from petseg.files import printable


@dataclasses.dataclass(frozen=True)
class PictureHeader:
    """The header of a picture."""

    stored: tuple[int, int]  # height and width of the stored pixels
    orientation: int  # the EXIF orientation, 1 to 8
    suffix: str  # file name suffix of its format

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width after rotation by EXIF."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored

    def turned(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the stored pixels, uint8 [H, W], as one of the upright picture."""
        return apply_orientation(mask[..., None], self.orientation)[..., 0]


def read_header(picture: Path | bytes, name: str) -> PictureHeader:
    """Reads the header of a picture. Raises DataError if it is no picture."""
    try:
        data = picture if isinstance(picture, bytes) else picture.read_bytes()
        stored = picture_files.size_in_header(data)
    except OSError as error:
        raise DataError(f"{printable(name)}: cannot be read: {error.strerror}") from error
    except PictureError as error:
        raise DataError(f"{printable(name)}: {error}") from error
    try:
        with picture_formats.open_picture(io.BytesIO(data)) as opened:
            orientation, kind = read_orientation(opened), opened.format or ""
    except Exception:  # Pillow raises many classes; other readers know the file
        orientation, kind = 1, ""
    return PictureHeader(stored, orientation, ".jpg" if kind in ("JPEG", "MPO") else f".{kind.lower()}")


def pictures_below(folder: Path) -> list[Path]:
    """The pictures in a folder and its subfolders, sorted."""
    return [file for file in files_below(folder) if file.name.lower().endswith(SUFFIXES)]


def files_below(folder: Path, suffix: str = "") -> list[Path]:
    """The files in a folder and its subfolders that end in `suffix`, sorted; hidden ones are left out."""
    found: list[Path] = []
    seen: set[str] = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(where, name) for name in names if name.lower().endswith(suffix) and not name.startswith(".")]
    return sorted(found)


class PictureIndex:
    """The pictures below a folder, found by paths that may be those of another machine."""

    def __init__(self, root: Path):
        self.root = root
        self._by_name: dict[str, list[Path]] = collections.defaultdict(list)
        for file in pictures_below(root):
            self._by_name[composed(file.name)].append(file)

    def find(self, text: str, near: Iterable[Path], split: str = "") -> Path | None:
        """The picture that a path names: relative to one of some folders, else the one with the longest common suffix.

        Raises DataError if several pictures match.
        """
        if os.path.isabs(text) and os.path.isfile(text):
            return Path(text)
        parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts:
            return None
        for folder in near:
            if (file := folder.joinpath(*parts)).is_file():
                return file
        found = self._by_name.get(composed(parts[-1]), [])
        common = {file: _common_suffix(parts, file.parts) for file in found}
        found = [file for file in found if common[file] == max(common.values())]
        if len(found) > 1 and split:
            found = [file for file in found if split_of(self.shown(file)) == split] or found
        if len(found) > 1:
            names = ", ".join(self.shown(file) for file in found[:3])
            raise DataError(f"{printable(text)}: {len(found)} pictures match, {names}; must be the path of one")
        return found[0] if found else None

    def shown(self, file: Path) -> str:
        """The printable path of a file, relative to the folder if it is below it."""
        return printable(os.path.relpath(file, self.root) if file.is_relative_to(self.root) else str(file))


def _common_suffix(first: Sequence[str], second: Sequence[str]) -> int:
    """The number of equal parts at the end of two paths."""
    count = 0
    for mine, its in zip(reversed(first), reversed(second), strict=False):
        if composed(mine) != composed(its):
            break
        count += 1
    return count
