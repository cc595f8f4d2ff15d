"""The folder of the demo page: what was uploaded to it, and the pictures that were made of that."""

import os
import stat
import time
from pathlib import Path
from typing import Any

IN_USE = 60  # seconds for which a new file is never deleted: somebody waits for what is made of it


class Uploads:
    """The files that the page may read and show, and how many bytes they may take.

    Args:
      folder: the folder; need not exist yet.
      quota: bytes that all files in it may take together.
    """

    def __init__(self, folder: Path, quota: int):
        self._folder, self._quota = folder.resolve(), quota
        self._expected = 0

    def find(self, path: Any) -> Path | None:
        """The file that a path from outside names; None if that is no regular file inside the folder.

        Links are followed before the comparison. Nothing is said about files elsewhere, not even whether they exist.
        """
        if not isinstance(path, str):
            return None
        try:
            file = Path(path).resolve(strict=True)
            is_own = file.is_relative_to(self._folder) and stat.S_ISREG(file.stat().st_mode)
        except (OSError, ValueError, RuntimeError):  # such as a null byte, a name that is too long, a loop of links
            return None
        return file if is_own else None

    def make_room(self, size: int) -> bool:
        """Deletes the oldest files until so many more bytes fit; returns whether they do."""
        files = sorted(self._files())
        used = self._expected + sum(each[1] for each in files)
        for modified, length, path in files:
            if used + size <= self._quota or modified > time.time() - IN_USE:
                break
            path.unlink(missing_ok=True)
            used -= length
        return used + size <= self._quota

    def expect(self, size: int) -> None:
        """Counts bytes of an upload that is on its way; a negative number once it is there, or has failed."""
        self._expected += size

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of modification, size and path of each file."""
        files = []
        for where, _, names in os.walk(self._folder):
            for name in names:
                path = Path(where, name)
                try:
                    status = path.stat()
                except OSError:  # deleted meanwhile
                    continue
                files.append((status.st_mtime, status.st_size, path))
        return files
