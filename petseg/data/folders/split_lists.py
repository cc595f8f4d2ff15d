"""Text files `<split>.txt` that list the pictures of a split, one on each line.

A line names the picture with the longest path suffix in common: `0.jpg`, `a/0`, or a path on another machine. A mask or
a label may follow behind a space.
"""

import codecs
import collections
import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from petseg.data.folders.faults import Fault, Kind
from petseg.data.folders.file_patterns import SUFFIXES, PictureFile, composed, printable

FOLDERS = ("", "splits", "ImageSets/Segmentation")  # the last is that of PASCAL VOC
USUAL_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "trainval")
SPLIT_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
_PATH_WITH_ENDING = re.compile(rf".+?(?:{'|'.join(map(re.escape, SUFFIXES))})(?=\s|$)", re.IGNORECASE)
_OTHER_ENDING = re.compile(r"\.[A-Za-z]\w{1,4}$")  # such as .mat and .npy
SHOWN = 80  # characters of a line


@dataclasses.dataclass
class SplitLists:
    """What the lists of splits in a folder say.

    Attributes:
      splits: paths of pictures by split; empty if there are no lists.
      faults: lines that do not name one picture, and lists that cannot be read.
      notes: text files that were not taken for lists.
    """

    splits: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    faults: list[Fault] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Line:
    """A line of a list.

    Attributes:
      text: the line.
      where: its list, and its number among the lines that are not empty, from 1.
      folders: the folders in its path, the last one first.
      common: how many of those the picture has too.
      pictures: paths of the pictures that it may mean; one, if all is well.
    """

    text: str
    where: tuple[str, int]
    folders: tuple[str, ...] = ()
    common: int = 0
    pictures: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"entry {self.where[1]} '{printable(self.text)[:SHOWN]}'"

    @property
    def split(self) -> str:
        return Path(self.where[0]).stem

    def fault(self, what: str) -> Fault:
        number, text = self.where[1], printable(self.text)[:SHOWN]
        return Fault(Kind.LISTED, self.where[0], f"entry {number} is '{text}'; {what}", self.split)

    def contradicts(self, other: "_Line") -> bool:
        """Whether two lines that name one picture, one of them by its bare name, have different folders before it."""
        both = zip(self.folders, other.folders, strict=False)
        return not (self.common and other.common) and any(mine != its for mine, its in both)


def has_split_lists(root: Path, named: Collection[str]) -> bool:
    """Whether there are files with the names of lists."""
    return any(_is_list(text, named) for folder in FOLDERS for text in _texts(root / folder))


def read_split_lists(
    root: Path, pictures: Iterable[PictureFile], fixed_folders: int, named: Collection[str]
) -> SplitLists:
    """Reads the lists of splits.

    A text is a list if its name is a usual one of a split, or a flag names that split. Beside such lists a text with a
    usual name in its own, such as `train_aug.txt`, is one too if each of its lines names a picture.

    Args:
      root: the folder of the data set.
      pictures: its pictures.
      fixed_folders: how many folders all their paths begin with; those need not be in a list.
      named: the splits that flags name.
    """
    names = _Names(pictures, fixed_folders)
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
    if others:
        what = f"{', '.join(others)}: each line names a picture, but this is not the usual name of a list of a split"
        found.notes.append(f"{what}; if it is one, --train_split or --eval_split must name it")
    return found


def _texts(folder: Path) -> list[Path]:
    return [text for text in sorted(folder.glob("*.txt")) if SPLIT_NAME.fullmatch(text.stem) and text.stem != "all"]


def _is_list(text: Path, named: Collection[str]) -> bool:
    return text.stem.lower() in USUAL_SPLITS or text.stem in named


def _names_pictures_alone(text: Path, names: "_Names") -> bool:
    try:
        lines = _lines(text)
    except OSError:
        return False
    return bool(lines) and all(names.find(line, ("", 0)).pictures for line in lines)


def _read(root: Path, text: Path, names: "_Names") -> list[_Line] | Fault:
    where = text.relative_to(root).as_posix()
    try:
        return [names.find(line, (where, number)) for number, line in enumerate(_lines(text), 1)]
    except OSError as error:
        return Fault(Kind.UNREADABLE, where, f"cannot be read: {error.strerror}; must be a list of pictures", text.stem)


def _lines(text: Path) -> list[str]:
    """The lines of a text that are not empty.

    Raises:
      OSError: if it cannot be read.
    """
    data = text.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as Windows PowerShell writes
        content = data.decode("utf-16", "replace")
    else:
        content = data.decode("utf-8-sig", "surrogateescape")  # so that names that are not UTF-8 are those of files
    return [line.strip() for line in content.splitlines() if line.strip()]


class _Names:
    """Finds pictures by the ends of their paths."""

    def __init__(self, pictures: Iterable[PictureFile], fixed_folders: int):
        self._fixed = fixed_folders
        self._parts: dict[str, list[str]] = {}  # of each path, the last one first
        self._by_name: dict[str, dict[str, None]] = collections.defaultdict(dict)
        for picture in pictures:
            parts = self._parts[picture.path] = _parts(picture.path)
            for name in (parts[0], _without_ending(parts[0]), composed(picture.name)):
                self._by_name[name][picture.path] = None

    def find(self, text: str, where: tuple[str, int]) -> _Line:
        """A line with the pictures that it may mean."""
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
        """How many folders a line and a picture have in common; None if they differ where pictures differ too."""
        count = 0
        while count < min(len(given), len(folders)) and given[count] == folders[count]:
            count += 1
        return None if count < len(given) and count < len(folders) - self._fixed else count


def _paths_in(line: str) -> list[str]:
    """What may be the path of the picture in a line, the likeliest first."""
    if with_ending := _PATH_WITH_ENDING.match(line):
        return [with_ending[0]]
    first = line.split()[0]
    return [first, line] if re.search(r"\s.*/", line) else [line, first]


def _parts(path: str) -> list[str]:
    """The file name and the folders of a path, the last one first."""
    return [part for part in composed(path).replace("\\", "/").split("/")[::-1] if part not in ("", ".")]


def _without_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if stem and f"{dot}{ending}".lower() in SUFFIXES else name


def _combined(read: Mapping[Path, list[_Line] | Fault]) -> SplitLists:
    """Splits and faults of lists."""
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
            if picture in in_this:
                what = f"must be another picture than {printable(picture)}, which {in_this[picture]} names too"
                found.faults.append(line.fault(what))
            elif (other := in_any.setdefault(picture, line)).contradicts(line):
                what = f"must be another picture than {printable(picture)}, which {other} of {other.where[0]} names too"
                found.faults += [dataclasses.replace(line.fault(what), split=each.split) for each in (line, other)]
            in_this.setdefault(picture, line)
        found.splits[text.stem] = sorted(in_this)
    return found


def _wanted(line: _Line) -> str:
    if not line.pictures:
        return "must be the name of a picture"
    shown = ", ".join(map(printable, line.pictures[:3])) + (", ..." if len(line.pictures) > 3 else "")
    return f"{len(line.pictures)} pictures end so, {shown}; must be the path of one"
