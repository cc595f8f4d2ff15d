"""The recipes that come with the package, files of flags in petseg/presets, by name."""

import re
from collections.abc import Sequence
from pathlib import Path

from petseg.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "presets"
_FLAG = re.compile(r"--?preset(?:=(?P<name>.*))?", re.DOTALL)


def names() -> tuple[str, ...]:
    """The presets there are."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.cfg")))


def find(name: str) -> Path:
    """The file of a preset.

    Raises:
      ConfigError: if there is none of that name.
    """
    if name not in names():
        raise ConfigError(f"--preset={name}: must be one of {', '.join(names())}")
    return FOLDER / f"{name}.cfg"


def summary(name: str) -> str:
    """What a preset is: how its file begins, up to the scores."""
    lines = find(name).read_text().splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#")).partition(" Scores ")[0]


def as_flagfiles(arguments: Sequence[str]) -> list[str]:
    """The same arguments with --flagfile=FILE in place of each --preset=NAME, or --preset NAME.

    Raises:
      ConfigError: if there is no such preset.
    """
    found, rest = [], iter(arguments)
    for argument in rest:
        match = _FLAG.fullmatch(argument)
        if match:
            name = match["name"] if match["name"] is not None else next(rest, "")
            argument = f"--flagfile={find(name)}"
        found.append(argument)
    return found


def includes_preset(arguments: Sequence[str]) -> bool:
    """Whether some argument asks for a preset."""
    return any(_FLAG.fullmatch(argument) for argument in arguments)


def file_at(path: str) -> Path:
    """The file that a flag names: a path, or the name of a file among the presets that the current folder lacks."""
    file = Path(path).expanduser()
    packaged = FOLDER / path
    return packaged if path == file.name and not file.exists() and packaged.is_file() else file
