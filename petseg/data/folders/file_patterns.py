"""Glob patterns with placeholders `{split}`, `{name}` and `{group}`: finds image files and the placeholders' values.

File names are compared in Unicode's composed form (NFC), because file systems store names composed or decomposed.
Names that are not UTF-8 match too.
"""

import dataclasses
import functools
import glob
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from petseg.errors import ConfigError
from petseg.files import printable

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".npy", ".jp2", ".avif", ".heic",
    ".jfif", ".jpe", ".j2k", ".jpx", ".heif", ".pbm", ".pnm", ".tga", ".jxl",
)  # fmt: skip
_PART = re.compile(r"(\{split\}|\{name\}|\{group\}|\*\*/|\*|\?|\[!?[^/][^]/]*\])")


def composed(text: str) -> str:
    """Normalizes a name to NFC, the form in which names are compared."""
    return unicodedata.normalize("NFC", text)


@dataclasses.dataclass(frozen=True)
class PictureFile:
    """An image or mask file that matches a pattern."""

    path: str  # path relative to the root, with forward slashes
    name: str  # value of `{name}`; if the pattern has none, the file name without suffix
    split: str = ""  # value of `{split}`; empty if the pattern has none
    folder: str = ""  # value of `**/`; empty if the pattern has none

    @property
    def shown(self) -> str:
        """The printable path."""
        return printable(self.path)


class Pattern:
    """A glob pattern with the placeholders `{split}`, `{name}` and `{group}`, and `**/` for any folders.

    Raises ConfigError if its brackets are not a set of characters.
    """

    def __init__(self, text: str, flag: str = ""):
        self.text = text
        parts = _PART.split(composed(text))
        self._glob = _as_glob(parts)
        try:
            self._regex = re.compile("".join(_as_regex(parts, i) for i in range(len(parts))), re.DOTALL)
        except re.error as error:
            raise ConfigError(
                f"{flag}={text}: its brackets are not a set of characters ({error.msg}); must be like [0-9] or [!ab]"
            ) from error

    def uses(self, part: str) -> bool:
        return part in self.text

    @property
    def fixed_folders(self) -> int:
        """The number of leading folders without wildcards or placeholders."""
        return len(re.split(r"[*?\[{]", self.text)[0].split("/")) - 1

    def files(self, root: Path) -> list[PictureFile]:
        """The matching files with the suffix of an image, sorted by path."""
        found = []

        @functools.cache
        def leads_back(folder: str) -> bool:
            """Whether a link in the path of a folder leads to a folder above it, so that its files come again."""
            if not folder:
                return False
            above = os.path.dirname(folder)
            if leads_back(above):
                return True
            here, target = os.path.realpath(root / above), os.path.realpath(root / folder)
            return os.path.commonpath([here, target]) == target

        for path in sorted(glob.glob(self._glob, root_dir=root, recursive=True)):
            path = path.replace(os.sep, "/")
            match = self._regex.fullmatch(path) or self._regex.fullmatch(composed(path))
            if match and path.lower().endswith(SUFFIXES) and not leads_back(os.path.dirname(path)):
                parts = {key: value for key, value in match.groupdict().items() if value and key != "group"}
                found.append(PictureFile(path, **{"name": Path(path).stem, **parts}))
        return found

    def group_in(self, name: str) -> str:
        """The value of `{group}` in a name, the shortest possible one; empty if the name does not match.

        A pattern without folders is one of file names, in any folder.
        """
        match = self._regex.fullmatch(composed(name if "/" in self.text else name.rpartition("/")[2]))
        return match["group"] if match else ""

    def filled(self, file: PictureFile) -> str:
        """The pattern with the values of a file in place of its placeholders, for messages."""
        text = self.text.replace("{split}", file.split).replace("{name}", file.name).replace("**/", file.folder, 1)
        return printable(f"{text[:-2]}.png" if text.endswith(".*") else text)


def _as_glob(parts: Sequence[str]) -> str:
    """A glob for a superset of the matches, whichever Unicode form the names have."""
    wild = {"{split}": "*", "{name}": "*", "{group}": "*", "**/": "\0"}
    text = "".join("*" if part[:1] == "[" and not part.isascii() else wild.get(part, part) for part in parts)
    return re.sub(r"\*+", "*", re.sub(r"[^\x00-\x7f]+", "*", text)).replace("\0", "**/")


def _as_regex(parts: Sequence[str], i: int) -> str:
    part, before = parts[i], parts[:i]
    if part in ("{split}", "{name}", "{group}"):
        group, repeat = part[1:-1], "+?" if part == "{group}" else "+"
        return f"(?P={group})" if part in before else f"(?P<{group}>[^/]{repeat})"
    if part == "**/":
        return "(?:.*/)?" if part in before else "(?P<folder>(?:.*/)?)"
    if i % 2 and part.startswith("["):
        negated = part.startswith("[!")
        characters = re.sub(r"([\\\[\]&~|^])", r"\\\1", part[1 + negated : -1])
        return f"[^/{characters}]" if negated else f"[{characters}]"
    return {"*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
