"""Recognises annotations that are not masks, to name the command that converts them. Reads only parts of files."""

import itertools
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

HEAD = 65536  # bytes at the beginning and at the end of a JSON file that are looked at
LOOKED_AT = 50  # JSON files
DEPTH = 2  # folders below the data set's


def detected_format(folder: Path) -> str:
    """`yolo`, `coco` or `labelme` if a folder holds such annotations; otherwise empty."""
    if _has_yolo(folder):
        return "yolo"
    for file in itertools.islice(_files(folder, ".json"), LOOKED_AT):
        keys = _keys(file)
        if {"shapes"} < keys & {"shapes", "imagePath", "imageData", "imageHeight"}:
            return "labelme"
        if len(keys & {"images", "annotations", "categories"}) >= 2:
            return "coco"
    return ""


def conversion_hint(folder: str) -> str:
    """A clause with the command that converts a folder's annotations; empty if it has none that are known."""
    name = detected_format(Path(folder).expanduser())
    if not name:
        return ""
    target = f"{folder.rstrip('/')}-masks"
    shown = {"yolo": "YOLO", "coco": "COCO", "labelme": "LabelMe"}[name]
    return f"; it has {shown} annotations, from which masks are made by: " + shlex.join(
        ["python", "-m", "petseg.data.convert", f"--from={name}", folder, f"--to={target}"]
    )


def _has_yolo(folder: Path) -> bool:
    described = [*_files(folder, ".yaml", depth=0), *_files(folder, ".yml", depth=0)]
    if any(re.search(rb"^names\s*:", file.read_bytes()[:HEAD], re.MULTILINE) for file in described):
        return True
    return (folder / "classes.txt").is_file() and (folder / "labels").is_dir()


def _files(folder: Path, suffix: str, depth: int = DEPTH) -> Iterator[Path]:
    """Files with a suffix in a folder and the folders below it, outermost first."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    yield from (Path(entry) for entry in entries if entry.is_file() and entry.name.lower().endswith(suffix))
    for entry in entries:
        if depth and entry.is_dir():
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
