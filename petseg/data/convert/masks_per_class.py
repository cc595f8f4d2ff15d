"""Reads binary masks, one for each class of a picture.

`masks/CLASS/NAME.png`, `masks/NAME/CLASS.png`, or `masks/NAME_CLASS.png`, in any subfolders that the pictures have too,
such as those of splits. A mask holds black and one other colour.
"""

import collections
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from petseg.data import mask_files, picture_files
from petseg.data.convert.annotations import AnnotatedImage, Annotations, LabelledObject, split_of
from petseg.data.convert.picture_search import PictureIndex, pictures_below, read_header
from petseg.data.convert.shapes import Region, Shape, pixel_region
from petseg.data.folders.file_patterns import composed
from petseg.data.picture import PictureError
from petseg.errors import DataError

SEPARATORS = "_-. "


@dataclasses.dataclass(frozen=True)
class MaskFile(Shape):
    """A binary mask in a file."""

    file: Path

    def drawn(self, height: int, width: int) -> Region:
        pixels = _read(self.file)
        if pixels.shape != (height, width):
            of_mask = f"is {pixels.shape[0]} x {pixels.shape[1]} (height x width)"
            raise DataError(f"{of_mask}, its picture {height} x {width}; both must be one size")
        return pixel_region(pixels)


def read(source: Path, pictures: PictureIndex, image_dir: Path | None, mask_dir: Path | None) -> Annotations:
    """Reads the pictures of a folder, and the masks of another, or of the same.

    Raises DataError if there are no pictures, or no masks.
    """
    images, masks = _folder(source, image_dir, "images"), _folder(source, mask_dir, "masks")
    if source.is_file():
        raise DataError(f"{source}: must be a folder with the folders images and masks")
    found = Annotations()
    files = pictures_below(images)
    by_name: dict[str, list[Path]] = collections.defaultdict(list)
    for file in files:
        by_name[composed(file.stem)].append(file)
    objects: dict[Path, list[LabelledObject]] = {}
    matched: set[Path] = set()
    for mask in pictures_below(masks):
        if masks == images and mask.suffix.lower() in (".jpg", ".jpeg"):
            continue  # a picture
        picture, label = match(mask, masks, images, by_name)
        if picture is not None and picture != mask:
            shown = os.path.relpath(mask, source)
            objects.setdefault(picture, []).append(LabelledObject(label, MaskFile(mask), shown))
            matched.add(mask)
        elif mask not in files:
            found.leave_out("masks without a picture", os.path.relpath(mask, source))
    for file in files:
        if file not in matched:
            name = os.path.relpath(file, images)
            of_it = objects.get(file, [])
            split, size = split_of(os.path.dirname(name)), _size(file, [each.shape for each in of_it])
            found.images.append(AnnotatedImage(name, split, file, of_it, size))
    found.labels = sorted({each.label for several in objects.values() for each in several})
    if not objects:
        raise DataError(
            f"{source}: no mask belongs to a picture; must be masks/CLASS/NAME.png or masks/NAME_CLASS.png, for "
            "images/NAME.jpg; --image_dir and --mask_dir name other folders"
        )
    return found


def match(mask: Path, masks: Path, images: Path, by_name: Mapping[str, Iterable[Path]]) -> tuple[Path | None, str]:
    """The picture of a mask and the class's name; None if there is none."""
    folders, stem = mask.relative_to(masks).parts[:-1], composed(mask.stem)

    def beside(name: str, others: tuple[str, ...]) -> Path | None:
        """The picture of a name whose folders are the given ones."""
        found = [file for file in by_name.get(name, ()) if file.relative_to(images).parts[:-1] == others]
        return found[0] if len(found) == 1 else None

    for i in range(len(folders)):  # a folder for each class, or for each picture
        others = folders[:i] + folders[i + 1 :]
        if file := beside(stem, others):
            return file, folders[i]
        if (file := beside(composed(folders[i]), others)) and i == len(folders) - 1:
            return file, stem
    if masks != images and beside(stem, folders):  # a mask of the whole picture
        return None, ""
    for end in range(len(stem) - 1, 0, -1):  # the longest name of a picture
        if stem[end] in SEPARATORS and stem[end + 1 :] and (file := beside(stem[:end], folders)):
            return file, stem[end + 1 :]
    return None, ""


def _size(picture: Path, masks: Sequence[Shape]) -> tuple[int, int] | None:
    """The size of the picture as stored, if EXIF turns it and its first mask fits it only so; otherwise None."""
    header = read_header(picture, picture.name)
    first = masks[0].file if masks and isinstance(masks[0], MaskFile) and header.orientation > 1 else None
    return header.stored if first and read_header(first, first.name).stored == header.stored else None


def _folder(source: Path, given: Path | None, usual: str) -> Path:
    return given or (source / usual if (source / usual).is_dir() else source)


def _read(file: Path) -> np.ndarray:
    """The pixels of a binary mask that are not black, bool [H, W].

    Raises DataError if it is lossy, or holds more than black and one other colour; the text follows the file's name.
    """
    try:
        picture = picture_files.read(file).colors()
    except PictureError as error:
        raise DataError(str(error)) from error
    mask_files.check_exact(picture)
    if picture.alpha_varies:
        raise DataError("has pixels of several opacities; must be black and one other colour, all opaque")
    values = picture.pixels[..., : picture.pixels.shape[2] - picture.alpha]
    inside = (values != 0).any(-1)
    others = values[inside]
    if len(others) and (others != others[0]).any():
        other = others[(others != others[0]).any(-1)][0]
        raise DataError(f"holds {_shown(others[0])} and {_shown(other)}; must be black and one other colour")
    return inside


def _shown(value: np.ndarray) -> str:
    return ",".join(f"{each:g}" for each in value)
