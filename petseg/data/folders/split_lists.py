"""Reads text files `<split>.txt` that list the images of a split, one per line.

A line matches the image with the longest common path suffix: `0.jpg`, `a/0`, or a path on another machine. A mask or a
label may follow after a space, or after a comma if the name has its ending.
"""

import codecs
import collections
import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from petseg.data.folders.faults import Fault, Kind
from petseg.data.folders.file_patterns import SUFFIXES, PictureFile, composed
from petseg.files import printable

FOLDERS = ("", "splits", "ImageSets/Segmentation")  # the last is that of PASCAL VOC
USUAL_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "trainval")
SPLIT_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
_PATH_WITH_ENDING = re.compile(rf".+?(?:{'|'.join(map(re.escape, SUFFIXES))})(?=[\s,;]|$)", re.IGNORECASE)
_OTHER_ENDING = re.compile(r"\.[A-Za-z]\w{1,4}$")  # such as .mat and .npy
LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".lst", ".list")  # only the first is read
SHOWN = 80  # characters of a line


@dataclasses.dataclass
class SplitLists:
    """The content of all lists of splits."""

    # paths of images by split; empty if there are no lists
    splits: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    # lines that do not match exactly one image, and lists that cannot be read
    faults: list[Fault] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)  # text files that look like lists but are not used
    # the mask that a line names after its image, by the path of the image
    masks: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Line:
    """A line of a list."""

    text: str  # the line
    where: tuple[str, int]  # the list, and the number of the line from 1, empty lines not counted
    folders: tuple[str, ...] = ()  # the folders in its path, innermost first
    common: int = 0  # how many of these also lead to the image
    pictures: tuple[str, ...] = ()  # paths of the matching images; must be one

    def __str__(self) -> str:
        return f"entry {self.where[1]} '{printable(self.text)[:SHOWN]}'"

    @property
    def split(self) -> str:
        return Path(self.where[0]).stem

    def fault(self, what: str) -> Fault:
        number, text = self.where[1], printable(self.text)[:SHOWN]
        return Fault(Kind.LISTED, self.where[0], f"entry {number} is '{text}'; {what}", self.split)

    def contradicts(self, other: "_Line") -> bool:
        """Whether two lines match one image, one by its file name alone, but name different folders."""
        both = zip(self.folders, other.folders, strict=False)
        return not (self.common and other.common) and any(mine != its for mine, its in both)


def has_split_lists(root: Path, named: Collection[str]) -> bool:
    """Whether there are files with the names of lists of splits."""
    return any(_is_list(text, named) for folder in FOLDERS for text in _texts(root / folder))


def read_split_lists(
    root: Path, pictures: Iterable[PictureFile], fixed_folders: int, named: Collection[str]
) -> SplitLists:
    """Reads the lists of splits.

    A text file is a list if its name is a usual name of a split, or the name of a split in a flag. Beside such lists, a
    file whose name contains a usual one, such as `train_aug.txt`, is a list too if each of its lines matches an image.

    Args:
      fixed_folders: number of leading folders that all images share; lists may omit them.
    """
    names = _ImageIndex(pictures, fixed_folders)
    others = []
    for folder in FOLDERS:
        texts = _texts(root / folder)
        lists = [text for text in texts if _is_list(text, named)]
        more = [text for text in texts if text not in lists and _names_pictures_alone(text, names)]
        if lists:
            lists += [text for text in more if any(usual in text.stem.lower() for usual in USUAL_SPLITS)]
        others += [text.relative_to(root).as_posix() for text in more if text not in lists]
        if lists:
            found = _combined({text: _read(root, text, names) for text in sorted(lists)})
            break
    else:
        found = SplitLists()
        near = sorted([*root.glob("*"), *root.glob("*/*")])
        unread = [printable(text.relative_to(root).as_posix()) for text in near if _is_other_list(text)]
        if unread:
            must = "lists of splits must be such as train.txt or splits/train.txt, with one name a line"
            found.notes.append(f"{', '.join(unread)}: not read; {must}")
    if others:
        what = f"{', '.join(others)}: each line names an image, but this is not a usual name of a split"
        found.notes.append(f"{what}; to use it, --train_split or --eval_split must name it")
    return found


def _texts(folder: Path) -> list[Path]:
    return [
        text for text in sorted(folder.glob("*.[tT][xX][tT]")) if SPLIT_NAME.fullmatch(text.stem) and text.stem != "all"
    ]


def _is_list(text: Path, named: Collection[str]) -> bool:
    return text.stem.lower() in USUAL_SPLITS or text.stem in named


def _is_other_list(text: Path) -> bool:
    return text.stem.lower() in USUAL_SPLITS and text.suffix.lower() in LIST_SUFFIXES


def _names_pictures_alone(text: Path, names: "_ImageIndex") -> bool:
    try:
        lines = _lines(text)
    except OSError:
        return False
    return bool(lines) and all(names.match(line, ("", 0)).pictures for line in lines)


def _read(root: Path, text: Path, names: "_ImageIndex") -> list[_Line] | Fault:
    where = text.relative_to(root).as_posix()
    try:
        return [names.match(line, (where, number)) for number, line in enumerate(_lines(text), 1)]
    except OSError as error:
        return Fault(Kind.UNREADABLE, where, f"cannot be read: {error.strerror}; must be a list of images", text.stem)


def _lines(text: Path) -> list[str]:
    """The non-empty lines of a text file. Raises OSError if it cannot be read."""
    data = text.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # written by Windows PowerShell
        content = data.decode("utf-16", "replace")
    else:
        content = data.decode("utf-8-sig", "surrogateescape")  # as Python decodes file names
    return [line.strip() for line in content.splitlines() if line.strip()]


class _ImageIndex:
    """Finds images by path suffixes."""

    def __init__(self, pictures: Iterable[PictureFile], fixed_folders: int):
        self._fixed = fixed_folders
        self._parts: dict[str, list[str]] = {}  # of each path, innermost first
        self._by_name: dict[str, dict[str, None]] = collections.defaultdict(dict)
        for picture in pictures:
            parts = self._parts[picture.path] = _parts(picture.path)
            for name in (parts[0], _without_ending(parts[0]), composed(picture.name)):
                self._by_name[name][picture.path] = None

    def match(self, text: str, where: tuple[str, int]) -> _Line:
        """A line with the images that it matches."""
        lines = [self._by_path(text, where, path) for path in _paths_in(text)]
        return next((line for line in lines if line.pictures), lines[0])

    def _by_path(self, text: str, where: tuple[str, int], path: str) -> _Line:
        file, *folders = _parts(path) or [""]
        found = {**self._by_name.get(file, {}), **self._by_name.get(_without_ending(file), {})}
        found = found or self._by_name.get(_OTHER_ENDING.sub("", file), {})
        scores = {
            picture: (common, self._parts[picture][0] == file)
            for picture in found
            if (common := self._common(folders, self._parts[picture][1:])) is not None
        }
        best = max(scores.values(), default=(0, False))
        pictures = tuple(picture for picture, score in scores.items() if score == best)
        return _Line(text, where, tuple(folders), best[0], pictures)

    def _common(self, given: Sequence[str], folders: Sequence[str]) -> int | None:
        """The number of common folders of a line and an image; None if they differ before the fixed folders."""
        count = 0
        while count < min(len(given), len(folders)) and given[count] == folders[count]:
            count += 1
        return None if count < len(given) and count < len(folders) - self._fixed else count


def _paths_in(line: str) -> list[str]:
    """Candidates for the path of the image in a line, the likeliest first."""
    if with_ending := _PATH_WITH_ENDING.match(line):
        return [with_ending[0]]
    first = line.split()[0]
    return [first, line] if re.search(r"\s.*/", line) else [line, first]


def _mask_in(line: str) -> str:
    """The path of a mask after that of the image; empty without."""
    image = _PATH_WITH_ENDING.match(line)
    mask = _PATH_WITH_ENDING.match(line[image.end() :].strip(" \t,;")) if image else None
    return mask[0] if mask else ""


def contradict(listed: str, used: str) -> bool:
    """Whether two paths of a mask have another file name or another last folder."""
    return any(mine != its for mine, its in zip(_parts(listed)[:2], _parts(used)[:2], strict=False))


def _parts(path: str) -> list[str]:
    """The file name and the folders of a path, innermost first."""
    return [part for part in composed(path).replace("\\", "/").split("/")[::-1] if part not in ("", ".")]


def _without_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if stem and f"{dot}{ending}".lower() in SUFFIXES else name


def _combined(read: Mapping[Path, list[_Line] | Fault]) -> SplitLists:
    """Combines lists; adds faults for lines that match no image or several, and for repeated images."""
    found, in_any = SplitLists(), dict[str, _Line]()
    for text, lines in read.items():
        found.splits[text.stem] = []
        if isinstance(lines, Fault):
            found.faults.append(lines)
            continue
        in_this: dict[str, _Line] = {}
        for line in lines:
            if len(line.pictures) != 1:
                found.faults.append(line.fault(_wanted(line)))
                continue
            picture = line.pictures[0]
            if mask := _mask_in(line.text):
                found.masks[picture] = mask
            if picture in in_this:
                what = f"must be another image than {printable(picture)}, which {in_this[picture]} names too"
                found.faults.append(line.fault(what))
            elif (other := in_any.setdefault(picture, line)).contradicts(line):
                what = f"must be another image than {printable(picture)}, which {other} of {other.where[0]} names too"
                found.faults += [dataclasses.replace(line.fault(what), split=each.split) for each in (line, other)]
            in_this.setdefault(picture, line)
        found.splits[text.stem] = sorted(in_this)
    return found


def _wanted(line: _Line) -> str:
    if not line.pictures:
        return "must be the name of an image"
    shown = ", ".join(map(printable, line.pictures[:3])) + (", ..." if len(line.pictures) > 3 else "")
    return f"{len(line.pictures)} images match, {shown}; must be the path of one"
