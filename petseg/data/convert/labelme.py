"""Reads LabelMe's annotations: a JSON file for each picture."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from petseg.data.convert.annotations import (
    AnnotatedImage,
    Annotations,
    LabelledObject,
    read_json,
    read_lines,
    split_of,
    stated_size,
)
from petseg.data.convert.picture_search import PictureIndex, files_below, pictures_below
from petseg.data.convert.shapes import Circle, Patch, Polygons, Shape, rectangle
from petseg.data.folders.file_patterns import SUFFIXES
from petseg.data.picture_formats import open_picture
from petseg.errors import DataError

LABELS_FILE = "labels.txt"
WITHOUT_AREA = ("point", "points", "line", "linestrip")


def read(source: Path, pictures: PictureIndex, image_dir: Path | None) -> Annotations:
    """Reads one JSON file, or all in a folder and its subfolders, of which `train`, `val` and so on are splits.

    Classes are in the order of `labels.txt` if the folder has it, else of the alphabet. A picture without a JSON file
    is not known to be without objects, so it is left out. Raises DataError if there is no such file, or it is invalid.
    """
    files = [source] if source.is_file() else files_below(source, ".json")
    found, used = Annotations(), set[Path]()
    for file in files:
        shown = file.name if file == source else str(file.relative_to(source))
        content = read_json(file, shown)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            found.leave_out("JSON files that are not LabelMe's", shown)
            continue
        image = _image(file, shown, content, pictures, image_dir, found)
        if image is None:
            found.leave_out("images that the annotations name and that are missing", f"{content.get('imagePath')}")
        else:
            found.images.append(image)
            used.update({image.picture} if isinstance(image.picture, Path) else ())
    if not found.images and not found.left_out.get("images that the annotations name and that are missing"):
        raise DataError(f"{source}: {len(files)} JSON files, none is LabelMe's; one must have `shapes`")
    for picture in pictures_below(image_dir or source) if source.is_dir() or image_dir else []:
        if picture not in used:
            found.leave_out("pictures without a JSON file", pictures.shown(picture))
    found.labels = _labels(source, found)
    return found


def _labels(source: Path, found: Annotations) -> list[str]:
    used = {each.label for image in found.images for each in image.objects}
    file = source / LABELS_FILE
    listed = list(filter(None, read_lines(file, LABELS_FILE))) if file.is_file() else []
    return [*listed, *sorted(used.difference(listed))]


def _image(
    file: Path,
    shown: str,
    content: Mapping[str, Any],
    pictures: PictureIndex,
    image_dir: Path | None,
    found: Annotations,
) -> AnnotatedImage | None:
    """The image of a file: the one it names, else one of its own name beside it, else the one in it; None without."""
    path = str(content.get("imagePath") or "")
    near = [image_dir] if image_dir else [file.parent]
    picture: Path | bytes | None = pictures.find(path, near, split_of(shown))
    if picture is None:
        beside = (file.with_suffix(end) for suffix in SUFFIXES for end in (suffix, suffix.upper()))
        picture = next((each for each in beside if each.is_file()), None)
    if picture is None and content.get("imageData"):
        picture = _decoded(content["imageData"], f"{shown}: imageData")
    if picture is None:
        return None
    size = stated_size(content.get("imageHeight"), content.get("imageWidth"), shown)
    name = shown
    if isinstance(picture, Path) and picture.is_relative_to(pictures.root):
        name = str(picture.relative_to(pictures.root))
    objects = [
        LabelledObject(str(shape.get("label") or ""), area, f"{shown}: shape {number}")
        for number, shape in enumerate(content["shapes"])
        if (area := _shape(shape, f"{shown}: shape {number}", found))
    ]
    return AnnotatedImage(name, split_of(str(Path(shown).parent)), picture, objects, size)


def _shape(entry: Any, where: str, found: Annotations) -> Shape | None:
    """A shape; None, and counted, if it has no area."""
    try:
        kind = entry.get("shape_type") or "polygon"  # early versions had polygons alone
        if kind in WITHOUT_AREA:
            found.leave_out(f"shapes of type {kind}, which have no area", where)
            return None
        points = np.asarray(entry["points"], np.float64).reshape(-1, 2)
        if kind in ("polygon", "rotation", "oriented_rectangle"):
            if len(points) < 3:
                found.leave_out("polygons of fewer than three points", where)
                return None
            return Polygons([points])
        if kind == "rectangle" and len(points) >= 2:
            return rectangle(points)
        if kind == "circle" and len(points) == 2:
            return Circle((points[0, 0], points[0, 1]), float(np.hypot(*(points[1] - points[0]))))
        if kind == "mask" and len(points):
            pixels = _mask(entry["mask"], where)
            return Patch(round(points[0, 1]), round(points[0, 0]), pixels)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where} cannot be read: {type(error).__name__}: {error}; must be a shape") from error
    raise DataError(f"{where} has type {kind!r} and {len(points)} points; must be a shape that LabelMe writes")


def _mask(text: Any, where: str) -> np.ndarray:
    """The pixels of a shape of type mask, bool [h, w]."""
    try:
        with open_picture(io.BytesIO(_decoded(text, where))) as picture:
            return np.asarray(picture.convert("L")) > 0
    except DataError:
        raise
    except Exception as error:  # Pillow raises many classes
        raise DataError(f"{where} has a mask that cannot be read; must be a PNG file in base64") from error


def _decoded(text: Any, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} is no base64; must be a file in base64, or null") from error
