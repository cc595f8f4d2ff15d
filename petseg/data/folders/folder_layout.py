"""Which picture belongs to which mask, and to which split: by the names of files, of which none is opened.

Without patterns: `images/<split>/` and `masks/<split>/`; or `images/` and `masks/`, with a list `<split>.txt` of names
for each split; or, where there is neither, four fifths, a tenth and a tenth by a hash of the name.
"""

import dataclasses
import glob
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from petseg.config import DataConfig
from petseg.data.folders.faults import Fault, Kind
from petseg.errors import ConfigError, DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm", ".pgm")
USUAL_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "trainval")
LIST_FOLDERS = ("", "splits", "ImageSets/Segmentation")  # the last is that of PASCAL VOC
SPLIT_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
HASHED_SPLITS = ("train",) * 8 + ("val", "test")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture and its mask; `name` and `mask_name` are their paths below the folder, with forward slashes."""

    name: str
    image: Path
    mask_name: str
    mask: Path


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a folder holds.

    Attributes:
      root: the folder.
      splits: pairs by the name of the split, in the order of their names; no split is empty.
      origin: what decided the splits, in words.
      faults: names that go wrong.
      notes: what may be meant, and may be not.
    """

    root: Path
    splits: Mapping[str, tuple[Pair, ...]]
    origin: str
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.resolve().name


@dataclasses.dataclass(frozen=True)
class _File:
    """A file that a pattern matches: its path below the root, and what the parts of the pattern stand for."""

    path: str
    name: str
    split: str = ""
    folder: str = ""


class _Pattern:
    """A glob in which `{split}` and `{name}` stand for parts of a path, and `**` for any folders.

    Args:
      text: the pattern, below the root.
    """

    def __init__(self, text: str):
        self.text = text
        parts = re.split(r"(\{split\}|\{name\}|\*\*/|\*|\?|\[[^]/]+\])", text)
        self._glob = text.replace("{split}", "*").replace("{name}", "*")
        self._regex = re.compile("".join(self._of_part(parts, i) for i in range(len(parts))))

    @staticmethod
    def _of_part(parts: Sequence[str], i: int) -> str:
        part, before = parts[i], parts[:i]
        if part in ("{split}", "{name}"):
            group = part[1:-1]
            return f"(?P={group})" if part in before else f"(?P<{group}>[^/]+)"
        if part == "**/":
            return "(?:.*/)?" if part in before else "(?P<folder>(?:.*/)?)"
        if part.startswith("["):
            return part.replace("[!", "[^")
        return {"*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))

    def uses(self, part: str) -> bool:
        return part in self.text

    def files(self, root: Path) -> list[_File]:
        """Pictures that match, by their paths."""
        found = []
        for path in sorted(glob.glob(self._glob, root_dir=root, recursive=True)):
            path = path.replace(os.sep, "/")
            match = self._regex.fullmatch(path)
            if match and path.lower().endswith(SUFFIXES):
                parts = {key: value for key, value in match.groupdict().items() if value}
                found.append(_File(path, **{"name": Path(path).stem, **parts}))
        return found

    def filled(self, file: _File) -> str:
        """The pattern with what a file stands for."""
        text = self.text.replace("{split}", file.split).replace("{name}", file.name).replace("**/", file.folder, 1)
        return f"{text[:-2]}.png" if text.endswith(".*") else text


def find(config: DataConfig) -> Layout:
    """Looks for the pairs of a folder.

    Raises:
      ConfigError: if there is no such folder, or a pattern cannot be used.
      DataError: if there is no picture.
    """
    root = Path(config.data_dir).expanduser()
    if not root.is_dir():
        raise ConfigError(f"--data_dir={config.data_dir}: must be a folder, with pictures and masks below it")
    images, masks, stray = _patterns(config, root)
    pictures = images.files(root)
    candidates = masks.files(root)
    partners = _partners(images, masks, pictures, candidates)
    used = {mask.path for found in partners.values() for mask in found}
    pictures = [picture for picture in pictures if picture.path not in used]  # masks that the pictures' pattern matches
    if not pictures:
        raise DataError(
            f"{config.data_dir}: {images.text} matches no picture; --image_files must say where they are; they must "
            f"end in {', '.join(SUFFIXES[:7])}"
        )
    if not candidates:
        raise DataError(
            f"{config.data_dir}: {masks.text} matches no mask, and {images.text} {len(pictures)} pictures; "
            "--mask_files must say where their masks are"
        )
    splits, origin, faults, notes = _splits(root, images, pictures)
    faults += [Fault(Kind.AMBIGUOUS, path, "is beside the folders of the splits; must be in one") for path in stray]
    meant = {path for paths in splits.values() for path in paths}
    by_path = {picture.path for picture in pictures}
    unused = [mask for mask in candidates if mask.path not in used and mask.path not in by_path]
    faults += [
        Fault(Kind.NO_PICTURE, mask.path, f"is the mask of no picture that {images.text} matches") for mask in unused
    ]
    lonely = [picture for picture in pictures if picture.path in meant and not partners[picture.path]]
    hint = _hint(images, lonely, unused)
    faults += [
        Fault(Kind.NO_MASK, picture.path, f"has no mask; must be {masks.filled(picture)}{hint}") for picture in lonely
    ]
    faults += _ambiguous({picture.path: partners[picture.path] for picture in pictures if picture.path in meant})
    pairs = {
        path: Pair(path, root / path, partners[path][0].path, root / partners[path][0].path)
        for path in meant
        if len(partners[path]) == 1
    }
    whole = {
        split: tuple(pairs[path] for path in sorted(splits[split]) if path in pairs)
        for split in sorted(splits, key=lambda split: ([*USUAL_SPLITS, split].index(split), split))
    }
    faults.sort(key=lambda fault: list(Kind).index(fault.kind))
    return Layout(root, {split: of_it for split, of_it in whole.items() if of_it}, origin, tuple(faults), notes)


def _patterns(config: DataConfig, root: Path) -> tuple[_Pattern, _Pattern, list[str]]:
    """Patterns of pictures and masks, and pictures that stand beside the folders of splits."""
    if config.image_files:
        images, masks = _Pattern(config.image_files), _Pattern(config.mask_files)
        for part in ("{split}", "**/"):
            if masks.uses(part) and not images.uses(part):
                raise ConfigError(
                    f"--mask_files={masks.text}: has {part}; --image_files={images.text} must have it too"
                )
        return images, masks, []
    for name, flag in (("images", "--image_files"), ("masks", "--mask_files")):
        if not (root / name).is_dir():
            raise DataError(
                f"{config.data_dir}: has no folder {name}; must have images and masks, or {flag} say where they are"
            )
    flat, nested = _Pattern("images/*"), _Pattern("images/{split}/**/*")
    if nested.files(root):
        return nested, _Pattern("masks/{split}/**/{name}.*"), [picture.path for picture in flat.files(root)]
    return flat, _Pattern("masks/{name}.*"), []


def _partners(
    images: _Pattern, masks: _Pattern, pictures: Iterable[_File], candidates: Iterable[_File]
) -> dict[str, list[_File]]:
    """The masks of each picture, by its path."""

    def key(file: _File) -> tuple[str, str, str]:
        both = [images.uses(part) and masks.uses(part) for part in ("{split}", "**/")]
        return file.split * both[0], file.folder * both[1], file.name

    by_key: dict[tuple[str, str, str], list[_File]] = {}
    for mask in candidates:
        by_key.setdefault(key(mask), []).append(mask)
    return {picture.path: by_key.get(key(picture), []) for picture in pictures}


def _ambiguous(partners: Mapping[str, Sequence[_File]]) -> list[Fault]:
    """Pictures with several masks, and masks of several pictures."""
    faults, first = [], dict[str, str]()
    for path, masks in sorted(partners.items()):
        names = [mask.path for mask in masks]
        if len(names) > 1:
            faults.append(Fault(Kind.AMBIGUOUS, path, f"has {len(names)} masks, {', '.join(names)}; must be one"))
        elif names and first.setdefault(names[0], path) != path:
            what = f"has the mask of {first[names[0]]} too, {names[0]}; each must have its own"
            faults.append(Fault(Kind.AMBIGUOUS, path, what))
    return faults


def _hint(images: _Pattern, pictures: Sequence[_File], masks: Sequence[_File]) -> str:
    """What flags would find the masks, where those of pictures without one have the picture's name and more."""
    for picture in pictures[:1]:
        for mask in masks:
            folder, _, file = mask.path.rpartition("/")
            if picture.name in file and (not picture.split or picture.split in folder):
                pattern = f"{folder}/{file.replace(picture.name, '{name}', 1)}"
                if picture.split:
                    pattern = pattern.replace(picture.split, "{split}", 1)
                return f"; if {mask.path} is it: --image_files='{images.text}' --mask_files='{pattern}'"
    return ""


def _splits(
    root: Path, images: _Pattern, pictures: Sequence[_File]
) -> tuple[dict[str, list[str]], str, list[Fault], tuple[str, ...]]:
    """Paths of pictures by split; what decided it; faults; notes.

    Raises:
      ConfigError: if a split has a name with which it cannot be asked for.
    """
    splits: dict[str, list[str]] = {}
    if images.uses("{split}"):
        for picture in pictures:
            splits.setdefault(picture.split, []).append(picture.path)
        wrong = sorted(name for name in splits if not SPLIT_NAME.fullmatch(name) or name == "all")
        if wrong:
            raise ConfigError(
                f"{root}: {images.text} finds a split named {wrong[0]!r}; a name must be of letters, digits and _, "
                "begin with a letter, and not be all"
            )
        return splits, f"folders, {images.text}", [], ()
    lists = next((found for folder in LIST_FOLDERS if (found := _lists(root / folder, pictures))), None)
    if lists:
        splits, faults = lists
        outside = len(pictures) - len(set().union(*splits.values()))
        notes = (f"{outside} pictures are in no list of a split, and so left out",) if outside else ()
        return splits, "lists, " + ", ".join(f"{split}.txt" for split in splits), faults, notes
    for picture in pictures:
        digest = hashlib.sha256(f"{picture.folder}{picture.name}".encode()).digest()
        splits.setdefault(HASHED_SPLITS[digest[0] % len(HASHED_SPLITS)], []).append(picture.path)
    return splits, "80/10/10 by a hash of the name", [], ()


def _lists(folder: Path, pictures: Sequence[_File]) -> tuple[dict[str, list[str]], list[Fault]] | None:
    """What the files `<split>.txt` in a folder say; None if there are none.

    A text is such a list if its name is that of a split everywhere, or if one of its lines names a picture.
    """
    by_name: dict[str, str] = {}
    for picture in reversed(pictures):  # so that the first has a name that several would have
        file = Path(picture.path)
        for name in (picture.name, file.stem, file.name, os.path.splitext(picture.path)[0], picture.path):
            by_name[name] = picture.path
    splits: dict[str, list[str]] = {}
    faults = []
    for text in sorted(folder.glob("*.txt")):
        if not SPLIT_NAME.fullmatch(text.stem) or text.stem == "all":
            continue
        lines = [line.strip() for line in text.read_text(errors="replace").splitlines() if line.strip()]
        found = [next((by_name[name] for name in _names(line) if name in by_name), "") for line in lines]
        if not any(found) and text.stem not in USUAL_SPLITS:
            continue
        splits[text.stem] = sorted({path for path in found if path})
        for number, (line, path) in enumerate(zip(lines, found, strict=True), 1):
            if not path:
                what = f"entry {number} is {line[:80]!r}; must be the name of a picture"
                faults.append(Fault(Kind.LISTED, text.name, what))
    return (splits, faults) if splits else None


def _names(line: str) -> list[str]:
    """What a line of a list may mean: a name, or a path on another machine; perhaps with more behind a space."""
    names = [line, line.removeprefix("./")]
    if line.split()[0] != line:
        names.append(line.split()[0])
    return [*names, *(Path(name).name for name in names), *(Path(name).stem for name in names)]
