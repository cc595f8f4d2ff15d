"""Writes images, masks and classes.json from annotations."""

import collections
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from petseg.classes import IGNORED, Classes
from petseg.data.convert.annotations import IGNORED_LABEL, AnnotatedImage, Annotations, classes_of
from petseg.data.convert.picture_search import PictureHeader, read_header
from petseg.data.folders.file_patterns import SUFFIXES, composed
from petseg.data.folders.folder_files import CLASSES_FILE, map_with_progress
from petseg.errors import DataError
from petseg.files import printable

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Counts:
    """What was written."""

    # number of images by split; the split "" if there are none
    images: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    objects: int = 0  # number of objects
    ignored: int = 0  # number of objects whose pixels are in no class
    invisible: int = 0  # number of objects without a pixel of their own in the image
    overlaps: int = 0  # number of pixels in objects of several classes
    overlapping: int = 0  # number of images with such pixels
    empty: int = 0  # number of images without objects
    renamed: int = 0  # number of images whose copies have other names
    turned: int = 0  # number of images that were annotated as stored, not as EXIF turns them
    # number of images that EXIF turns without another size, so that it does not tell how they were annotated
    unclear: int = 0

    def notes(self) -> list[str]:
        """A line for each count that a user should know."""
        lines = (
            (self.overlaps, f"{self.overlaps} pixels in {self.overlapping} images are of objects of several classes; "
             "the smaller object is on top"),
            (self.empty, f"{self.empty} images have no object and are background alone"),
            (self.ignored, f"{self.ignored} crowds and ignored areas have the value {IGNORED}, in no class"),
            (self.invisible, f"{self.invisible} objects cover no pixel of their image"),
            (self.turned, f"{self.turned} images are annotated as stored, and their masks turned as EXIF says"),
            (self.unclear, f"{self.unclear} images are turned by EXIF to the same size; their annotations are taken to "
             "be of the turned image, as viewers show it"),
            (self.renamed, f"{self.renamed} images are renamed, since others have the same name"),
        )  # fmt: skip
        return [line for count, line in lines if count]


def write(annotations: Annotations, where: str, folder: Path, *, link: bool) -> tuple[Classes, Counts]:
    """Writes the images as they are, masks as PNG files of class ids, and the classes.

    Raises DataError if there is nothing to convert, or an annotation contradicts its image, and OSError if a file
    cannot be written.
    """
    images = annotations.images
    if not images:
        raise DataError(f"{where}: none of its images exists{_example(annotations)}; --image_dir must be their folder")
    if not any(image.objects for image in images):
        raise DataError(f"{where}: no image has an object with a mask{_example(annotations)}; must have some")
    classes, ids = classes_of(annotations.labels, where)
    names = _names(images)
    counts = Counts()
    for split in {image.split for image in images}:
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)

    def convert(number: int) -> Counts:
        return _convert(images[number], names[number], folder, ids, link=link)

    for one in map_with_progress(range(len(images)), convert, len(images), f"converting {where}"):
        for field in dataclasses.fields(Counts):
            setattr(counts, field.name, getattr(counts, field.name) + getattr(one, field.name))
    # Like a hand-written classes file: names and values only, so that its reader chooses the colours.
    entries = [{"name": each.name, "value": each.value} for each in classes.members]
    text = json.dumps({"classes": entries, "ignored": [IGNORED]}, indent=2, ensure_ascii=False)
    (folder / CLASSES_FILE).write_text(text + "\n", "utf-8")
    return classes, counts


def _example(annotations: Annotations) -> str:
    """What was left out, to explain why nothing is left."""
    return "".join(f"; {note}" for note in annotations.all_notes()[:1])


def _names(images: Sequence[AnnotatedImage]) -> list[str]:
    """A file name without suffix for each image, unique in its split: its own, else with its folders, else a number."""

    def key(image: AnnotatedImage, name: str) -> tuple[str, str]:
        return image.split, composed(name).casefold()

    stems = [Path(image.name.replace("\\", "/")).stem for image in images]
    repeated = collections.Counter(key(image, stem) for image, stem in zip(images, stems, strict=True))
    taken = {place for place, count in repeated.items() if count == 1}
    names = []
    for image, stem in zip(images, stems, strict=True):
        name = stem
        if repeated[key(image, stem)] > 1:
            path = os.path.splitext(image.name.replace("\\", "/"))[0]
            base = name = "_".join(part for part in path.split("/") if part not in ("", ".", ".."))
            number = 2
            while key(image, name) in taken:
                name, number = f"{base}_{number}", number + 1
            taken.add(key(image, name))
        names.append(name)
    return names


def _convert(image: AnnotatedImage, name: str, folder: Path, ids: Mapping[str, int], *, link: bool) -> Counts:
    """Writes an image and its mask."""
    header = read_header(image.picture, image.name)
    suffix = header.suffix if isinstance(image.picture, bytes) else image.picture.suffix
    if suffix.lower() not in SUFFIXES:
        raise DataError(f"{printable(image.name)}: is a {suffix} file; must be one of {', '.join(SUFFIXES)}")
    mask, counts = _mask(image, header, ids)
    counts.images[image.split] += 1
    counts.renamed += name != Path(image.name.replace("\\", "/")).stem
    _place(image.picture, folder / "images" / image.split / f"{name}{suffix}", link=link)
    Image.fromarray(mask).save(folder / "masks" / image.split / f"{name}.png", compress_level=3)
    return counts


def _place(picture: Path | bytes, target: Path, *, link: bool) -> None:
    """Writes the bytes of a picture, unchanged."""
    if isinstance(picture, bytes):
        target.write_bytes(picture)
    elif link:
        os.link(os.path.realpath(picture), target)
    else:
        shutil.copyfile(picture, target)


def _mask(image: AnnotatedImage, header: PictureHeader, ids: Mapping[str, int]) -> tuple[np.ndarray, Counts]:
    """Class ids of an upright image, uint8 [H, W].

    Annotation tools show pictures as EXIF turns them, so annotations are taken to be of the upright picture, unless
    the size that they state only fits the stored one.
    """
    size = image.size or header.upright
    if size not in (header.upright, header.stored):
        raise DataError(
            f"{printable(image.name)}: is {header.upright[0]} x {header.upright[1]} (height x width), and annotated as "
            f"{size[0]} x {size[1]}; must be the picture that was annotated"
        )
    mask, counts = _paint(image, size, ids)
    counts.unclear = int(header.orientation > 1 and header.upright == header.stored and bool(image.objects))
    if size != header.upright:
        counts.turned = 1
        mask = header.turned(mask)
    return mask, counts


def _paint(image: AnnotatedImage, size: tuple[int, int], ids: Mapping[str, int]) -> tuple[np.ndarray, Counts]:
    """Paints objects from the largest to the smallest; of one size, the later is on top."""
    regions = []
    for each in image.objects:
        try:
            regions.append((each.shape.drawn(*size), IGNORED if each.label == IGNORED_LABEL else ids[each.label]))
        except DataError as error:
            raise DataError(f"{each.where}: {error}") from error
    mask = np.zeros(size, np.uint8)
    painted, contested = np.zeros(size, bool), np.zeros(size, bool)
    for region, number in sorted(regions, key=lambda each: -each[0].area):
        pixels = region.pixels()
        contested |= pixels & painted & (mask != number)
        painted |= pixels
        mask[pixels] = number
    counts = Counts(
        objects=len(regions),
        ignored=sum(number == IGNORED for _, number in regions),
        invisible=sum(not region.area for region, _ in regions),
        overlaps=int(contested.sum()),
        overlapping=int(contested.any()),
        empty=int(not regions),
    )
    return mask, counts
