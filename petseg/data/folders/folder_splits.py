"""Assigns the images of a folder to splits: by folders, by lists, or by a hash of the name."""

import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from petseg.data.folders import split_lists
from petseg.data.folders.faults import Fault
from petseg.data.folders.file_patterns import Pattern, PictureFile
from petseg.data.folders.split_lists import SPLIT_NAME
from petseg.errors import ConfigError

HASHED_SPLITS = ("train",) * 8 + ("val", "test")


@dataclasses.dataclass(frozen=True)
class Splits:
    """The images of each split."""

    paths: dict[str, list[str]]  # paths of images by split
    origin: str  # description of what decided the splits
    faults: tuple[Fault, ...] = ()  # faults in lists of splits
    notes: tuple[str, ...] = ()  # possible mistakes
    hashed: bool = False  # whether a hash of the names decided the splits, so that all belong together
    # the mask that a list names, by the path of the image
    masks: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def members(self) -> dict[str, list[str]]:
        """The splits of each image that is in any, by its path."""
        found: dict[str, list[str]] = {}
        for split, paths in self.paths.items():
            for path in paths:
                found.setdefault(path, []).append(split)
        return found


def find_splits(root: Path, images: Pattern, pictures: Collection[PictureFile], named: Collection[str]) -> Splits:
    """Assigns images to splits. Raises ConfigError if no split has a valid name."""
    if images.uses("{split}"):
        return _splits_of_folders(root, images, pictures)
    lists = split_lists.read_split_lists(root, pictures, images.fixed_folders, named)
    if lists.splits:
        outside = len(pictures) - len(set().union(*lists.splits.values()))
        notes = (f"{outside} images are in no split list and are left out",) if outside else ()
        origin = "lists, " + ", ".join(f"{split}.txt" for split in lists.splits)
        return Splits(lists.splits, origin, tuple(lists.faults), (*notes, *lists.notes), masks=lists.masks)
    splits: dict[str, list[str]] = {}
    for picture in pictures:
        digest = hashlib.sha256(os.fsencode(f"{picture.folder}{picture.name}")).digest()
        splits.setdefault(HASHED_SPLITS[digest[0] % len(HASHED_SPLITS)], []).append(picture.path)
    return Splits(splits, "80/10/10 by a hash of the name", (), tuple(lists.notes), hashed=True)


def _splits_of_folders(root: Path, images: Pattern, pictures: Iterable[PictureFile]) -> Splits:
    splits: dict[str, list[str]] = {}
    for picture in pictures:
        splits.setdefault(picture.split, []).append(picture.path)
    wrong = sorted(name for name in splits if not SPLIT_NAME.fullmatch(name) or name == "all")
    must = "a name must be of letters, digits and _, begin with a letter, and not be all"
    if len(wrong) == len(splits):
        raise ConfigError(f"{root}: {images.text} finds a split named {wrong[0]!r}; {must}")
    notes = tuple(f"{images.text} finds a split named {name!r}, which is left out; {must}" for name in wrong)
    good = {name: paths for name, paths in splits.items() if name not in wrong}
    return Splits(good, f"folders, {images.text}", (), notes)
