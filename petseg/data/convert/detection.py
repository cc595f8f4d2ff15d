"""Recognises annotations that are not masks, to name the command that converts them. Reads only parts of files."""

import contextlib
import itertools
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from petseg.data.convert import masks_per_class
from petseg.data.convert.picture_search import pictures_below
from petseg.data.folders.file_patterns import composed

HEAD = 65536  # bytes at the beginning and at the end of a JSON file that are looked at
LOOKED_AT = 50  # JSON files
DEPTH = 2  # folders below the data set's
SHOWN = {
    "yolo": "YOLO annotations",
    "coco": "COCO annotations",
    "labelme": "LabelMe annotations",
    "masks_per_class": "a mask for each class of a picture",
}


def detected_format(folder: Path) -> str:
    """The value of --from if a folder holds annotations that are not masks; otherwise empty."""
    if has_masks_per_class(folder):
        return "masks_per_class"
    if _has_yolo(folder):
        return "yolo"
    for file in itertools.islice(_files(folder, ".json"), LOOKED_AT):
        keys = _keys(file)
        if {"shapes"} < keys & {"shapes", "imagePath", "imageData", "imageHeight"}:
            return "labelme"
        if len(keys & {"images", "annotations", "categories"}) >= 2:
            return "coco"
    return ""


def has_masks_per_class(folder: Path) -> bool:
    """Whether some of a folder's first pictures have masks of several classes, or in folders of classes."""
    images, masks = folder / "images", folder / "masks"
    if not (images.is_dir() and masks.is_dir()):
        return False
    by_name: dict[str, list[Path]] = {}
    for file in pictures_below(images):
        by_name.setdefault(composed(file.stem), []).append(file)
    labels: dict[Path, set[str]] = {}
    for mask in itertools.islice(pictures_below(masks), LOOKED_AT):
        picture, label = masks_per_class.match(mask, masks, images, by_name)
        if picture:
            labels.setdefault(picture, set()).add(label)
            if mask.stem == picture.stem and mask.parent.name == label:
                return True
    return any(len(several) > 1 for several in labels.values())


def conversion_hint(folder: str) -> str:
    """A clause with the command that converts a folder's annotations; empty if it has none that are known."""
    name = detected_format(Path(folder).expanduser())
    return _command(name, folder) if name else ""


def masks_per_class_hint(folder: Path) -> str:
    """As `conversion_hint`, for folders with masks that are not of one picture each."""
    return _command("masks_per_class", str(folder)) if has_masks_per_class(folder) else ""


def _command(name: str, folder: str) -> str:
    folder = os.path.expanduser(folder)  # since a quoted ~ would not be expanded
    target = f"{folder.rstrip('/')}-masks"
    return f"; it has {SHOWN[name]}, from which masks are made by: " + shlex.join(
        ["python", "-m", "petseg.data.convert", f"--from={name}", folder, f"--to={target}"]
    )


def _has_yolo(folder: Path) -> bool:
    described = [*_files(folder, ".yaml", depth=0), *_files(folder, ".yml", depth=0)]
    for file in described:
        with contextlib.suppress(OSError):
            if re.search(rb"^names\s*:", file.read_bytes()[:HEAD], re.MULTILINE):
                return True
    return (folder / "classes.txt").is_file() and (folder / "labels").is_dir()


def _files(folder: Path, suffix: str, depth: int = DEPTH) -> Iterator[Path]:
    """Files with a suffix in a folder and the folders below it, outermost first."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    yield from (Path(entry) for entry in entries if Path(entry).is_file() and entry.name.lower().endswith(suffix))
    for entry in entries:
        if depth and Path(entry).is_dir():
            yield from _files(Path(entry), suffix, depth - 1)


def _keys(file: Path) -> set[str]:
    """Names that look like keys in the first and last bytes of a JSON file, which may be large."""
    try:
        with open(file, "rb") as opened:
            data = opened.read(HEAD)
            if (size := opened.seek(0, os.SEEK_END)) > HEAD:
                opened.seek(max(HEAD, size - HEAD))
                data += opened.read()
    except OSError:
        return set()
    return {key.decode() for key in re.findall(rb'"(\w{1,20})"\s*:', data)}
