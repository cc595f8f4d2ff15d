"""Records every change that a program makes to the files of a folder, with the preloaded library `recorder.c`."""

import ctypes
import dataclasses
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("recorder.c")
_HEADER = struct.Struct("=c7xQqII")

Tree = dict[str, bytes | None]  # path below the folder -> content of a file; None: a folder


@dataclasses.dataclass(frozen=True)
class Change:
    """An entry of the log.

    `kind`: c(reate), m(kdir), w(rite), t(runcate), s(ync), r(ename), l(ink), u(nlink or rmdir), ! (a mark of the test).
    `offset`: of a write; of a truncation, the new size.
    `name`: path below the folder, or the text of a mark.
    `data`: what was written, or the new path.
    """

    kind: str
    inode: int
    offset: int
    name: str
    data: bytes


@dataclasses.dataclass(frozen=True)
class Recording:
    """The changes of a folder.

    `before`, `after`: its files; `inodes`: of the files before and of the folder, "."; `times`: of the files after.
    """

    changes: list[Change]
    before: Tree
    inodes: dict[str, int]
    after: Tree
    times: dict[str, int]

    @classmethod
    def read(cls, log: Path, folder: Path, before: Tree, inodes: dict[str, int]) -> "Recording":
        times = {path: (folder / path).stat().st_mtime_ns for path in contents(folder)}
        return cls(list(_changes(log.read_bytes(), str(folder))), before, inodes, contents(folder), times)

    def marks(self, at: int) -> list[str]:
        """The marks among the first changes."""
        return [each.name for each in self.changes[:at] if each.kind == "!"]

    def index_of(self, path: str) -> int:
        """Number of changes up to the rename to a path."""
        return 1 + next(i for i, each in enumerate(self.changes) if (each.kind, each.data) == ("r", path.encode()))


def compiled(folder: Path) -> Path | None:
    """The library, compiled in a folder; None without Linux or a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "recorder.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl", "-lpthread"], check=True)
    return library


class Recorder:
    """The library in this process, into which it must have been preloaded; `folder` is the one whose changes count."""

    def __init__(self, folder: Path):
        self._library, self._folder = ctypes.CDLL(None), os.fsencode(folder)

    def start(self, log: Path) -> None:
        self._library.recorder_start(self._folder, os.fsencode(log))

    def stop(self) -> None:
        self._library.recorder_stop()

    def mark(self, text: str) -> None:
        """Notes that something has happened, such as that a checkpoint was reported as saved."""
        self._library.recorder_mark(text.encode())

    def is_full(self) -> bool:
        """Whether a write has failed for want of space."""
        return bool(self._library.recorder_is_full())

    def fill_disk(self, writes: int) -> None:
        """Lets all writes after the next few fail for want of space; -1: none."""
        self._library.recorder_fill_disk(self._folder, ctypes.c_long(writes))


def _changes(log: bytes, folder: str) -> Iterator[Change]:
    def below(path: bytes) -> str:
        return os.path.relpath(os.path.normpath(os.fsdecode(path)), folder) if path else ""

    position = 0
    while position < len(log):
        kind, inode, offset, size, more = _HEADER.unpack_from(log, position)
        position += _HEADER.size
        name, data = log[position : position + size], log[position + size : position + size + more]
        position += size + more
        if kind == b"M":
            raise AssertionError("a file was mapped for writing, which the recorder cannot see")
        if kind in (b"r", b"l"):
            data = below(data).encode()
        yield Change(kind.decode(), inode, offset, name.decode() if kind == b"!" else below(name), data)


def contents(folder: Path) -> Tree:
    """All files and folders below a folder."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def inodes(folder: Path) -> dict[str, int]:
    """Inodes of a folder and of all below, by path."""
    return {str(path.relative_to(folder)): path.lstat().st_ino for path in (folder, *folder.rglob("*"))}


def put(tree: Mapping[str, bytes | None], folder: Path, times: Mapping[str, int]) -> None:
    """Makes a folder hold exactly these files, with times of last change in nanoseconds, on which caches depend."""
    shutil.rmtree(folder, ignore_errors=True)
    for path, content in sorted({".": None, **tree}.items()):
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
            os.utime(folder / path, ns=(times.get(path, 0),) * 2)
