"""The demo page's folder of uploads and result images, with a quota."""

import os
import stat
import time
from pathlib import Path
from typing import Any

IN_USE = 60  # seconds for which a new file is never deleted: its request may be running


class Uploads:
    """The files that the page may read and show, limited in total size."""

    def __init__(self, folder: Path, quota: int):
        self._folder, self._quota = folder.resolve(), quota
        self._reserved = 0

    def resolve(self, path: Any) -> Path | None:
        """Resolves a path from a request; None unless it is a regular file inside the folder.

        Links are followed first. The answer does not reveal whether files elsewhere exist.
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
        """Deletes the oldest files until `size` more bytes fit; returns whether they do."""
        files = sorted(self._files())
        used = self._reserved + sum(each[1] for each in files)
        for modified, length, path in files:
            if used + size <= self._quota or modified > time.time() - IN_USE:
                break
            path.unlink(missing_ok=True)
            used -= length
        return used + size <= self._quota

    def reserve(self, size: int) -> None:
        """Reserves bytes for a running upload; a negative size releases them."""
        self._reserved += size

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
