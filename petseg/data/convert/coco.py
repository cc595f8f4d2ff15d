"""Reads COCO's instance annotations: JSON files with `images`, `annotations` and `categories`."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petseg.data.convert.annotations import (
    IGNORED_LABEL,
    AnnotatedImage,
    Annotations,
    LabelledObject,
    read_json,
    split_of,
    stated_size,
)
from petseg.data.convert.picture_search import PictureIndex, files_below
from petseg.data.convert.shapes import Polygons, RunLength, Shape
from petseg.errors import DataError

KEYS = ("images", "annotations", "categories")


def read(source: Path, pictures: PictureIndex, image_dir: Path | None) -> Annotations:
    """Reads one JSON file, or those in a folder.

    Files named `instances...` are preferred, because COCO's `person_keypoints...` repeat them. The split is that in a
    file's name or folders. Raises DataError if there is no such file, or it is invalid.
    """
    contents = _contents(source)
    found = Annotations()
    splits = {file: split_of(file.name if file == source else str(file.relative_to(source))) for file in contents}
    if len(set(splits.values())) > 1 and "" in splits.values():
        bare = next(file.name for file, split in splits.items() if not split)
        raise DataError(f"{bare}: its name and folders name no split, unlike those of others; name one, such as train")
    merged: dict[tuple[str, str], AnnotatedImage] = {}
    for file, content in contents.items():
        for image in _File(file, content, found).images(source, pictures, image_dir, splits[file]):
            key = image.split, str(image.picture)
            if key in merged:
                image = dataclasses.replace(image, objects=[*merged[key].objects, *image.objects])
            merged[key] = image
    found.images = list(merged.values())
    return found


def _contents(source: Path) -> dict[Path, Any]:
    """The JSON files with instances and their contents."""
    files = [source] if source.is_file() else files_below(source, ".json")
    preferred = [file for file in files if file.name.startswith("instances")]
    contents = {file: read_json(file, file.name) for file in preferred or files}
    found = {
        file: content
        for file, content in contents.items()
        if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in KEYS)
    }
    if not found:
        raise DataError(
            f"{source}: {len(files)} JSON files, none of COCO's form; one must have the lists {', '.join(KEYS)}"
        )
    return found


class _File:
    """One file: checks its categories, and reads its images."""

    def __init__(self, file: Path, content: Mapping[str, Any], found: Annotations):
        self.file, self.found = file, found
        self._images: Sequence[Any] = self._dictionaries(content, "images", ("id", "file_name"))
        self._annotations = self._dictionaries(content, "annotations", ("image_id", "category_id"))
        if any("segments_info" in annotation for annotation in content["annotations"]):
            raise DataError(f"{file.name}: these are panoptic annotations; must be instances, with `segmentation`")
        categories = self._dictionaries(content, "categories", ("id", "name"))
        self._names = {category["id"]: str(category["name"]) for category in categories}
        used = {annotation["category_id"] for annotation in self._annotations}
        parents = {str(each.get("supercategory")) for each in categories if each.get("supercategory") != each["name"]}
        for number, name in list(self._names.items()):  # Roboflow's files have such a one, the whole data set
            if number not in used and name in parents:
                found.leave_out("categories that only group others", self._names.pop(number))
        labels = [self._names[number] for number in sorted(self._names, key=lambda each: (str(type(each)), each))]
        if repeated := [name for name, count in collections.Counter(labels).items() if count > 1]:
            found.notes.append(f"{file.name}: several categories are named {', '.join(repeated)}; they are one class")
        found.labels += [label for label in labels if label not in found.labels]

    def _dictionaries(self, content: Mapping[str, Any], key: str, needed: Sequence[str]) -> list[dict[str, Any]]:
        """The entries of a list. Raises DataError if one lacks a key that it must have."""
        for number, entry in enumerate(content[key]):
            values = entry if isinstance(entry, dict) else {}
            lacking = [name for name in needed if not isinstance(values.get(name), int | float | str)]
            if lacking and "segments_info" not in values:  # panoptic
                raise DataError(f"{self.file.name}: {key}[{number}] has no {lacking[0]}; must have {', '.join(needed)}")
        for number, count in collections.Counter(entry.get("id") for entry in content[key]).items():
            if count > 1 and "id" in needed:
                raise DataError(f"{self.file.name}: {count} {key} have the id {number!r}; each must have its own")
        return content[key]

    def images(self, source: Path, pictures: PictureIndex, image_dir: Path | None, split: str) -> list[AnnotatedImage]:
        """The images whose files exist, with their objects."""
        objects = self._objects()
        found = []
        near = [image_dir] if image_dir else [self.file.parent, self.file.parent / "images", source, source / "images"]
        for image in self._images:
            name = str(image["file_name"])
            picture = pictures.find(name, near, split)
            if picture is None:
                self.found.leave_out("images that the annotations name and that are missing", name)
                continue
            size = stated_size(image.get("height"), image.get("width"), f"{self.file.name}: {name}")
            found.append(AnnotatedImage(name, split, picture, objects[image["id"]], size))
        return found

    def _objects(self) -> dict[Any, list[LabelledObject]]:
        """The objects by image."""
        known = {image["id"] for image in self._images}
        objects: dict[Any, list[LabelledObject]] = collections.defaultdict(list)
        for number, annotation in enumerate(self._annotations):
            where = f"{self.file.name}: annotation {annotation.get('id', number)}"
            if annotation["image_id"] not in known:
                self.found.leave_out("annotations of images that the file does not list", where)
                continue
            label = self._names.get(annotation["category_id"])
            if label is None:
                raise DataError(f"{where} has category_id {annotation['category_id']!r}, which no category has")
            shape = self._shape(annotation.get("segmentation"), where)
            if shape is not None:
                label = IGNORED_LABEL if annotation.get("iscrowd") or annotation.get("ignore") else label
                objects[annotation["image_id"]].append(LabelledObject(label, shape, where))
        self._check([each for several in objects.values() for each in several])
        return objects

    def _check(self, objects: Sequence[LabelledObject]) -> None:
        """Raises DataError if all objects together do not mean what the format says."""
        if objects and all(each.label == IGNORED_LABEL for each in objects):
            raise DataError(
                f"{self.file.name}: iscrowd or ignore is 1 for all {len(objects)} objects, whose pixels would be in "
                "no class; it must be 0 for single objects (CVAT writes 1 for masks)"
            )
        polygons = [each.shape for each in objects if isinstance(each.shape, Polygons)]
        if polygons and all(part.max() <= 1 for shape in polygons for part in shape.parts):
            raise DataError(
                f"{self.file.name}: all its polygons lie between 0 and 1, as shares of width and height; must be pixels"
            )

    def _shape(self, segmentation: Any, where: str) -> Shape | None:
        """The shape of a `segmentation`; None, and counted, if it has no area."""
        if not segmentation:
            self.found.leave_out("annotations without a segmentation, boxes for example", where)
            return None
        try:
            if isinstance(segmentation, dict):
                height, width = (int(side) for side in segmentation["size"])
                counts = segmentation["counts"]
                return RunLength((height, width), counts if isinstance(counts, str) else list(counts))
            flat = not isinstance(segmentation[0], list)
            parts = [np.asarray(part, np.float64) for part in ([segmentation] if flat else segmentation)]
            if any(part.ndim != 1 or len(part) % 2 for part in parts):
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            must = "must be lists x, y, x, y, ..., or a dictionary of size and counts"
            raise DataError(f"{where} has a segmentation that is neither polygons nor run lengths; {must}") from None
        polygons = [part.reshape(-1, 2) for part in parts if len(part) >= 6]
        if not polygons:
            self.found.leave_out("polygons of fewer than three points", where)
            return None
        return Polygons(polygons)
