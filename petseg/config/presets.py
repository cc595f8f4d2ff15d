"""Presets: flag files in petseg/presets, by name."""

import re
from collections.abc import Sequence
from pathlib import Path

from petseg.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "presets"
_FLAG = re.compile(r"--?preset(?:=(?P<name>.*))?", re.DOTALL)


def names() -> tuple[str, ...]:
    """Names of all presets."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.cfg")))


def preset_file(name: str) -> Path:
    """Returns the file of a preset. Raises ConfigError if there is no preset of that name."""
    if name not in names():
        raise ConfigError(f"--preset={name}: must be one of {', '.join(names())}")
    return FOLDER / f"{name}.cfg"


def summary(name: str) -> str:
    """Description of a preset: the comment at the start of its file, up to the scores."""
    lines = preset_file(name).read_text().splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#")).partition(" Scores ")[0]


def as_flagfiles(arguments: Sequence[str]) -> list[str]:
    """Replaces each --preset=NAME, or --preset NAME, by --flagfile=FILE.

    Raises ConfigError if there is no such preset.
    """
    found, rest = [], iter(arguments)
    for argument in rest:
        match = _FLAG.fullmatch(argument)
        if match:
            name = match["name"] if match["name"] is not None else next(rest, "")
            argument = f"--flagfile={preset_file(name)}"
        found.append(argument)
    return found


def includes_preset(arguments: Sequence[str]) -> bool:
    """Whether an argument is --preset."""
    return any(_FLAG.fullmatch(argument) for argument in arguments)


def file_at(path: str) -> Path:
    """The file at a path, or else, for a bare name that the current folder lacks, that of the presets folder."""
    file = Path(path).expanduser()
    packaged = FOLDER / path
    return packaged if path == file.name and not file.exists() and packaged.is_file() else file
