"""Reads YOLO's segmentation labels: data.yaml, and a text file of normalized polygons for each picture."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from petseg.data.convert.annotations import AnnotatedImage, Annotations, LabelledObject, read_lines, split_of
from petseg.data.convert.picture_search import PictureIndex, pictures_below
from petseg.data.convert.shapes import Polygons
from petseg.errors import DataError

SPLITS = ("train", "val", "test")
CLASSES_FILE = "classes.txt"  # of exports without a YAML file
LARGEST_SHARE = 2.0  # of a side; greater numbers are pixels


def read(source: Path, pictures: PictureIndex, image_dir: Path | None) -> Annotations:
    """Reads a data set: a YAML file with `names`, or its folder, or a folder with `classes.txt`.

    A picture without a text file has no objects, as the format has it. Raises DataError if classes or pictures are
    missing, or a line is no polygon.
    """
    file, content = _description(source)
    names = _names(content, file)
    found = Annotations(labels=list(names.values()))
    if repeated := sorted({name for name in found.labels if found.labels.count(name) > 1}):
        found.notes.append(f"{file.name}: several classes are named {', '.join(repeated)}; they are one class")
    used = set()
    for split, members in _splits(content, file, pictures, image_dir, found).items():
        for picture in members:
            labels = label_file(picture, pictures.root)
            used.add(labels)
            objects = _objects(labels, pictures.shown(labels), names) if labels.is_file() else []
            found.images.append(AnnotatedImage(pictures.shown(picture), split, picture, objects))
    folders = {labels.parent for labels in used if labels.parent.is_dir()}
    for labels in sorted({text for folder in folders for text in folder.glob("*.txt")} - used):
        if labels.name != CLASSES_FILE:
            found.leave_out("label files without a picture", pictures.shown(labels))
    return found


def label_file(picture: Path, root: Path) -> Path:
    """The text file of a picture: the last folder `images` becomes `labels`."""
    parts = list(picture.relative_to(root).parts) if picture.is_relative_to(root) else list(picture.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return root.joinpath(*parts).with_suffix(".txt")


def _description(source: Path) -> tuple[Path, Mapping[str, Any]]:
    """The file that names the classes, and its content; `classes.txt` becomes `names`."""
    if source.is_file():
        return source, _read_yaml(source)
    for file in sorted([*source.glob("*.yaml"), *source.glob("*.yml")], key=lambda each: each.name != "data.yaml"):
        content = _read_yaml(file)
        if "names" in content:
            return file, content
    file = source / CLASSES_FILE
    if file.is_file():
        return file, {"names": list(filter(None, read_lines(file, CLASSES_FILE)))}
    raise DataError(f"{source}: no file names the classes; must have data.yaml with `names`, or {CLASSES_FILE}")


def _read_yaml(file: Path) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{file.name}: cannot be read: {' '.join(str(error).split())}; must be YAML") from error
    if not isinstance(content, dict):
        raise DataError(f"{file.name}: must be YAML with `names`, `train` and `val`")
    if "kpt_shape" in content:
        raise DataError(f"{file.name}: has kpt_shape, so its labels are keypoints; must be those of segmentation")
    return content


def _names(content: Mapping[str, Any], file: Path) -> dict[int, str]:
    """Names of the classes by their numbers in label files."""
    names = content.get("names")
    entries = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else ()
    try:
        found = {int(number): str(name) for number, name in entries}
    except (TypeError, ValueError):
        found = {}
    if not found:
        raise DataError(f"{file.name}: names is {names!r}; must be a list of names, or numbers with names")
    return dict(sorted(found.items()))


def _splits(
    content: Mapping[str, Any], file: Path, pictures: PictureIndex, image_dir: Path | None, found: Annotations
) -> dict[str, list[Path]]:
    """The pictures of each split; of the split "" if nothing tells splits."""
    root = file.parent
    if not any(content.get(split) for split in SPLITS):
        folder = image_dir or (root / "images" if (root / "images").is_dir() else root)
        splits: dict[str, list[Path]] = {}
        for picture in pictures_below(folder):
            splits.setdefault(split_of(str(picture.relative_to(folder).parent)), []).append(picture)
        return splits
    base = root / str(content.get("path") or "")
    bases = [image_dir] if image_dir else [base if base.is_dir() else root, root]
    splits = {}
    for split in SPLITS:
        named = content.get(split) or []
        for text in map(str, named if isinstance(named, list) else [named]):
            place = _place(text, bases)
            if place is None:
                if split == "train":
                    raise DataError(f"{file.name}: train is {text}, which does not exist; must be a folder or a list")
                found.notes.append(f"{file.name}: {split} is {text}, which does not exist; there is no split {split}")
                continue
            splits.setdefault(split, []).extend(_members(place, pictures, found))
    return splits


def _place(text: str, bases: Iterable[Path]) -> Path | None:
    """The folder or list of a split; Roboflow's files lead one folder too far up."""
    text = text.replace("\\", "/")
    places = [base / each for base in bases for each in (text, text.removeprefix("../"))]
    return next((place for place in places if place.exists()), None)


def _members(place: Path, pictures: PictureIndex, found: Annotations) -> list[Path]:
    """The pictures in a folder, or those that a text file lists."""
    if place.is_dir():
        return pictures_below(place)
    named = {line: pictures.find(line, [place.parent]) for line in read_lines(place, place.name) if line}
    for line in (line for line, picture in named.items() if picture is None):
        found.leave_out("images that the annotations name and that are missing", line)
    return [picture for picture in named.values() if picture]


def _objects(file: Path, shown: str, names: Mapping[int, str]) -> list[LabelledObject]:
    """The polygons of a label file. Raises DataError if a line is a box, or no polygon."""
    objects = []
    for number, line in enumerate(read_lines(file, shown), 1):
        if not line:
            continue
        where = f"{shown}: line {number}"
        try:
            label, *values = (float(word) for word in line.split())
        except ValueError:
            raise DataError(f"{where} is {line[:60]!r}; must be numbers: class x y x y ...") from None
        if len(values) == 4:
            raise DataError(f"{where} is a box, of 5 numbers, without a mask; must be a polygon: class x y x y x y ...")
        if len(values) < 6 or len(values) % 2:
            raise DataError(f"{where} has {len(values) + 1} numbers; must be class x y x y x y ..., 7 or more")
        if label not in names:
            raise DataError(f"{where} has class {label:g}; must be {', '.join(map(str, list(names)[:12]))} of `names`")
        if not all(math.isfinite(value) and abs(value) <= LARGEST_SHARE for value in values):
            raise DataError(f"{where} holds {max(values, key=abs):g}; must be fractions of width and height, 0 to 1")
        points = np.array(values).reshape(-1, 2)
        objects.append(LabelledObject(names[int(label)], Polygons([points], normalized=True), where))
    return objects
