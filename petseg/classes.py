"""The classes of a data set: names, colours, values in masks, and foreground."""

import collections
import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petseg.errors import ConfigError

IGNORED = 255  # class id of ignored pixels: weight 0, not counted
LONGEST_NAME = 100  # bytes of a class name
UNNAMED = "class_"  # beginning of the names of classes that are inferred from masks
UNKNOWN = 254  # class id, while reading data, of values of no class
MIN_CLASSES, MAX_CLASSES = 2, 254

Color = tuple[int, int, int]
# Okabe and Ito's colours, distinct for colour-blind readers too; for classes without colours.
DISTINCT_COLORS: tuple[Color, ...] = (
    (0, 114, 178), (213, 94, 0), (240, 228, 66), (0, 158, 115), (86, 180, 233), (230, 159, 0), (204, 121, 167),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SegmentationClass:
    """One class."""

    name: str  # its name, without spaces and slashes, because it is used in tags and file names
    value: int | Color  # its value in masks: 0 to 65535, or a colour
    color: Color  # its colour in figures
    # share that is foreground, 0 to 1: opacity in cut-outs. Scores of foreground versus the rest count classes
    # from .5 as foreground. A class with a share between 0 and 1 is a border
    foreground: float = 0.0
    more_values: tuple[int | Color, ...] = ()  # further values in masks that are the same class

    @property
    def values(self) -> tuple[int | Color, ...]:
        """All its values in masks."""
        return (self.value, *self.more_values)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a data set; the index of a class in `members` is its id.

    Raises ConfigError if they contradict each other.
    """

    members: tuple[SegmentationClass, ...]  # the C classes, 2 to 254
    # values, or colours, of ignored pixels in masks. If classes have colours, three numbers are one colour
    ignored: tuple[int | Color, ...] = (IGNORED,)

    def __post_init__(self) -> None:
        if not MIN_CLASSES <= len(self.members) <= MAX_CLASSES:
            raise ConfigError(f"classes: there are {len(self.members)}; must be {MIN_CLASSES} to {MAX_CLASSES}")
        if self.colored and _is_color(self.ignored):
            object.__setattr__(self, "ignored", (_value(self.ignored, "ignored"),))
        for what in ("name", "values", "color"):
            seen: dict[Any, str] = {}
            for each in self.members:
                found = getattr(each, what)
                for key in found if what == "values" else (found,):
                    if key in seen:
                        both = f"{seen[key]} and {each.name}"
                        kind = what.removesuffix("s")
                        raise ConfigError(f"classes: {both} have one {kind}, {key}; each must have another")
                    seen[key] = each.name
        for each in self.members:
            if ignored := set(each.values).intersection(self.ignored):
                raise ConfigError(
                    f"classes: {each.name} has value {ignored.pop()}, which is ignored; must be one or the other"
                )
        values = [*self._values, *(value for value in self.ignored if value != IGNORED)]
        if len({isinstance(value, tuple) for value in values}) > 1:
            raise ConfigError("classes: some have numbers as values, others colours; all must have the same kind")

    def __len__(self) -> int:
        return len(self.members)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.members)

    @property
    def _values(self) -> list[int | Color]:
        return [value for each in self.members for value in each.values]

    @property
    def _meanings(self) -> dict[int | Color, str]:
        """The name of its class, or `no class`, for each value in masks."""
        names = {value: each.name for each in self.members for value in each.values}
        return names | dict.fromkeys(self.ignored, "no class")

    def check_meanings(self, other: "Classes | None", where: str) -> None:
        """Raises ConfigError if other classes give a value another meaning than these, which are those of a run."""
        meanings = other._meanings if other else {}
        for value, meaning in self._meanings.items():
            if meanings.get(value, meaning) != meaning and not meaning.startswith(UNNAMED):
                raise ConfigError(
                    f"{where}: value {value} in masks is {meanings[value]}, but in the run it was {meaning}; must be "
                    "the same"
                )

    @property
    def palette(self) -> np.ndarray:
        """Colours by class id, uint8 [256, 3]; black for other ids."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = [each.color for each in self.members]
        return table

    @property
    def colored(self) -> bool:
        """Whether masks hold colours instead of numbers."""
        return isinstance(self.members[0].value, tuple)

    @property
    def foreground(self) -> np.ndarray:
        """Share of each class that is foreground, float32 [C]."""
        return np.array([each.foreground for each in self.members], np.float32)

    @property
    def foreground_name(self) -> str:
        """Name of the foreground: of its only class, or `foreground`; empty if no class is foreground."""
        names = [each.name for each in self.members if each.foreground == 1]
        return names[0] if len(names) == 1 else ("foreground" if self.foreground.max() >= 0.5 else "")

    def binary_foreground(self) -> int:
        """Id of the foreground class of two classes, to which a threshold applies.

        Raises ConfigError if there are more classes, or not exactly one of the two is foreground.
        """
        ids = np.flatnonzero(self.foreground == 1)
        if len(self) != 2 or len(ids) != 1:
            found = f"got {len(self)}: {', '.join(self.names[:8])}{', ...' if len(self) > 8 else ''}"
            raise ConfigError(f"--threshold: must come with two classes, one of them foreground; {found}")
        return int(ids[0])

    @property
    def borders(self) -> np.ndarray:
        """Ids of the classes that are partly foreground."""
        return np.flatnonzero((self.foreground > 0) & (self.foreground < 1))

    @property
    def without_display_colors(self) -> "Classes":
        """The classes with default display colours, to compare names, values and foreground."""
        plain = (dataclasses.replace(each, color=distinct_color(i)) for i, each in enumerate(self.members))
        return dataclasses.replace(self, members=tuple(plain))

    def to_dict(self) -> dict[str, Any]:
        """The content of a classes file."""
        return {
            "classes": [
                {key: _as_lists(value) for key, value in vars(each).items() if value != ()} for each in self.members
            ],
            "ignored": _as_lists(self.ignored),
        }

    @classmethod
    def from_dict(cls, content: Any, *, stored: bool = False) -> "Classes":
        """Creates classes from the content of a classes file or from `to_dict`.

        A class needs only a name: its value defaults to its position, its colour to the next of a palette. If neither
        of two classes has the key `foreground`, the second is foreground.

        Args:
          content: a list of classes, or a dictionary with the keys `classes` and `ignored`.
          stored: whether a run stored it; names that only earlier versions accepted are then valid.

        Raises:
          ConfigError: if it is invalid.
        """
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = {"classes": content}
        if not isinstance(content, Mapping) or not isinstance(content.get("classes"), list):
            raise ConfigError('classes: must be {"classes": [{"name": ..., "value": ...}, ...]}')
        _refuse_unknown(content, ("classes", "ignored"))
        entries = [{"name": entry} if isinstance(entry, str) else entry for entry in content["classes"]]
        members = _members(entries)
        if len(members) == 2 and not any("foreground" in entry for entry in entries):
            members = (members[0], dataclasses.replace(members[1], foreground=1.0))
        ignored = content.get("ignored", [IGNORED])
        ignored = ignored if isinstance(ignored, list) else [ignored]
        if "ignored" not in content:
            taken = {value for each in members for value in each.values}
            ignored = [value for value in ignored if value not in taken]
        if not stored:
            _check_file_names(members)
        return cls(members, tuple(_value(value, "ignored") for value in ignored))

    @classmethod
    def read(cls, file: Path) -> "Classes":
        """Reads a classes file. Raises ConfigError if it is missing or invalid."""
        try:
            # json skips the BOM of bytes
            return cls.from_dict(json.loads(file.read_bytes(), object_pairs_hook=_without_repeated_keys))
        except OSError as error:
            raise ConfigError(f"--classes={file}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"--classes={file}: must be JSON: {error}") from error
        except ConfigError as error:
            raise ConfigError(f"--classes={file}: {error}") from error


def distinct_color(number: int) -> Color:
    """A default colour, different for each class id."""
    if number < len(DISTINCT_COLORS):
        return DISTINCT_COLORS[number]
    # As in PASCAL VOC's palette: the bits of the number, distributed over the three channels from the highest down.
    number, color = number - len(DISTINCT_COLORS) + 1, [0, 0, 0]
    for bit in range(7, -1, -1):
        for channel in range(3):
            color[channel] |= (number >> channel & 1) << bit
        number >>= 3
    return color[0], color[1], color[2]


def _members(entries: Sequence[Any]) -> tuple[SegmentationClass, ...]:
    """Parses the classes; those without a colour get an unused one."""
    numbers = any(map(_is_surely_numbers, enumerate(entries)))
    members = [_member(i, entry, numbers=numbers) for i, entry in enumerate(entries)]
    without = [not isinstance(entry, Mapping) or "color" not in entry for entry in entries]
    given = {member.color for member, lacks in zip(members, without, strict=True) if not lacks}
    free = (color for color in map(distinct_color, itertools.count()) if color not in given)
    return tuple(
        dataclasses.replace(member, color=next(free)) if lacks and not isinstance(member.value, tuple) else member
        for member, lacks in zip(members, without, strict=True)
    )


def _is_surely_numbers(entry: tuple[int, Any]) -> bool:
    """Whether the value of a class is a number or a list of numbers; three numbers could also be a colour."""
    value = entry[1].get("value", entry[0]) if isinstance(entry[1], Mapping) else None
    return type(value) is int or (isinstance(value, list) and len(value) != 3 and all(type(n) is int for n in value))


def _member(number: int, entry: Any, *, numbers: bool) -> SegmentationClass:
    where = f"classes: class {number}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f'{where} is {entry!r}; must be {{"name": ..., "value": ...}}')
    _refuse_unknown(entry, [field.name for field in dataclasses.fields(SegmentationClass)])
    name = entry.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name):
        raise ConfigError(f"{where} has name {name!r}; must be a text of letters, digits, _, ., + and -")
    value, *more = _values(entry.get("value", number), name, numbers=numbers)
    if "more_values" in entry:  # as `to_dict` writes several values
        more += _values(entry["more_values"], name, numbers=True)
    given = entry.get("color", value if isinstance(value, tuple) else distinct_color(number))
    if not isinstance(given, list | tuple) or not _is_color(given):
        raise ConfigError(f"classes: {name} has color {given!r}; must be three numbers of 0 to 255")
    color = given[0], given[1], given[2]
    foreground = entry.get("foreground", 0.0)
    if not isinstance(foreground, bool | int | float) or not 0 <= foreground <= 1:
        raise ConfigError(
            f"classes: {name} has foreground {foreground!r}; must be true, false, or a fraction from 0 to 1"
        )
    return SegmentationClass(name, value, color, float(foreground), tuple(more))


def _values(given: Any, name: str, *, numbers: bool) -> list[int | Color]:
    """The values of a class: one, or a list of them. Three numbers are three values if `numbers`, else a colour."""
    if not isinstance(given, list) or not given or not (numbers or isinstance(given[0], list)):
        return [_value(given, name)]
    if len(set(map(str, given))) < len(given):
        raise ConfigError(
            f"classes: {name} has value {given!r}, which repeats a value; must be several values, since another class "
            "has a number as its value, and all must have the same kind"
        )
    return [_value(each, name) for each in given]


def _value(value: Any, name: str) -> int | Color:
    if type(value) is int and 0 <= value <= 65535:
        return value
    if isinstance(value, list | tuple) and _is_color(value):
        return value[0], value[1], value[2]
    raise ConfigError(
        f"classes: {name} has value {value!r}; must be a number of 0 to 65535, or a colour [red, green, blue], or a "
        "list of numbers or colours"
    )


def _as_lists(value: Any) -> Any:
    """Tuples, also nested ones, as lists, for JSON."""
    return [_as_lists(each) for each in value] if isinstance(value, tuple) else value


def _is_color(values: Any) -> bool:
    return len(values) == 3 and all(type(value) is int and 0 <= value <= 255 for value in values)


def _check_file_names(members: Sequence[SegmentationClass]) -> None:
    """Raises ConfigError for names that cannot be file names in one folder, also if case is ignored."""
    seen: dict[str, str] = {}
    for name in (each.name for each in members):
        if name.startswith("."):
            raise ConfigError(f"classes: name {name!r} begins with a dot; must not, since names become file names")
        if len(name.encode()) > LONGEST_NAME:
            raise ConfigError(
                f"classes: name {name[:20]}... is {len(name.encode())} bytes long; must be at most {LONGEST_NAME}, "
                "since names become parts of file names"
            )
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise ConfigError(
                f"classes: {other} and {name} differ only in upper and lower case; must differ otherwise, since names "
                "become file names"
            )


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of JSON, of whose repeated keys `json` would keep the last without a word."""
    for key, count in collections.Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ConfigError(f"classes: the key {key!r} is there twice in one pair of braces; must be there once")
    return dict(pairs)


def _refuse_unknown(entry: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in entry:
        if key not in known:
            raise ConfigError(f"classes: unknown key {key!r}; must be one of {', '.join(known)}")


PETS = Classes(
    (
        SegmentationClass("pet", 1, (213, 94, 0), foreground=1.0),
        SegmentationClass("background", 2, (0, 114, 178)),
        SegmentationClass("border", 3, (240, 228, 66), foreground=0.5),
    )
)  # Oxford-IIIT Pet's trimap
