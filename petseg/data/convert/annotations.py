"""The common form of all annotation formats: images with labelled objects, and counts of what was left out."""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from petseg.classes import Classes
from petseg.data.convert.shapes import Shape
from petseg.data.folders.split_lists import USUAL_SPLITS
from petseg.errors import ConfigError, DataError
from petseg.files import printable

BACKGROUND = "background"
BACKGROUND_NAMES = (BACKGROUND, "_background_", "__background__")  # the second is LabelMe's
IGNORED_LABEL = "__ignore__"  # LabelMe's


@dataclasses.dataclass(frozen=True)
class LabelledObject:
    """An object."""

    label: str  # name of its class, as the source spells it; IGNORED_LABEL if its pixels are in no class
    shape: Shape  # its shape
    where: str  # what to call it in errors


@dataclasses.dataclass(frozen=True)
class AnnotatedImage:
    """An image and its objects."""

    name: str  # its path as the source spells it, for errors and for the name of the copy
    split: str  # its split; empty if the source has none
    picture: Path | bytes  # its file, or the content of it
    objects: Sequence[LabelledObject]  # its objects, in the order of the source
    size: tuple[int, int] | None = None  # height and width that the annotations are for; None if they state none


@dataclasses.dataclass
class Annotations:
    """The content of a source."""

    # the classes' names as the source spells them, in order
    labels: list[str] = dataclasses.field(default_factory=list)
    images: list[AnnotatedImage] = dataclasses.field(default_factory=list)  # its images
    # examples of what was left out, by the reason
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)  # other remarks

    def leave_out(self, what: str, example: str) -> None:
        """Counts what is not converted, by kind, such as "images that are missing"."""
        self.left_out.setdefault(what, []).append(example)

    def all_notes(self) -> list[str]:
        """A line for each kind of what was left out, and the other remarks."""
        counts = [
            f"left out: {len(found)} {what}, the first is {printable(found[0])}"
            for what, found in self.left_out.items()
        ]
        return [*counts, *self.notes]


def classes_of(labels: Iterable[str], where: str) -> tuple[Classes, dict[str, int]]:
    """Classes for labels, background first, and the class id of each label.

    Labels with one text are one class. A label that is named background is class 0 itself. Raises DataError if labels
    cannot be told apart in the form that names of classes must have, or are too many.
    """
    names, ids, spelled = [BACKGROUND], dict[str, int](), dict[str, str]()
    for label in dict.fromkeys(labels):
        if label == IGNORED_LABEL:
            continue
        name = re.sub(r"[^\w.+-]+", "_", label.strip()).lstrip(".")
        if not re.search(r"[^\W_]", name):
            raise DataError(f"{where}: a class is named {label!r}; must have letters or digits")
        if name.casefold() in BACKGROUND_NAMES:
            ids[label] = 0
            continue
        if (other := spelled.setdefault(name.casefold(), label)) != label:
            raise DataError(
                f"{where}: the classes {other!r} and {label!r} differ too little; rename one, or both alike"
            )
        ids[label] = len(names)
        names.append(name)
    try:
        return Classes.from_dict(names), ids
    except ConfigError as error:
        what = f"{error}, and {BACKGROUND} is one of them"
        raise DataError(f"{where}: {what}; remove or rename labels so that fewer classes remain") from error


def split_of(path: str) -> str:
    """The usual name of a split in the folders and the name of a path, innermost first; empty if there is none.

    Digits are dropped: `annotations/instances_train2017.json` is of train.
    """
    for part in reversed(path.replace("\\", "/").split("/")):
        for token in re.split(r"[^A-Za-z0-9]+", part):
            if (name := token.rstrip("0123456789").lower()) in USUAL_SPLITS:
                return name
    return ""


def stated_size(height: Any, width: Any, where: str) -> tuple[int, int] | None:
    """The height and width that annotations state; None if they state none. Raises DataError if they are no numbers."""
    try:
        return (int(height), int(width)) if height and width else None
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: states height {height!r} and width {width!r}; must be numbers of pixels") from None


def read_json(file: Path, shown: str) -> Any:
    """The content of a JSON file. Raises DataError if it cannot be read."""
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown}: must be JSON: {error}") from error


def read_lines(file: Path, shown: str) -> list[str]:
    """The lines of a text file, without spaces at their ends; empty ones are kept, so that they can be counted.

    Raises DataError if it cannot be read.
    """
    try:
        return [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{shown}: cannot be read: {error}; must be a text file in UTF-8") from error
