"""States of a folder after a power cut, drawn from the log of its changes, under three models of a file system.

The patterns are those of ALICE (Pillai et al., OSDI 2014) and CrashMonkey (Mohan et al., OSDI 2018): a state is a point
at which the power goes, and a legal choice of what had reached the disk by then.

ext4 (data=ordered, delayed allocation): changes of names, folders and sizes are committed in their order, and every
fsync commits all before it. Of data that were not synced, appended pages are on the disk as a prefix, overwritten pages
in any choice. The data of a file are on the disk before its rename over another one is committed (auto_da_alloc); after
a rename to a new name the file may be empty.

XFS: the log keeps the order, too, but an fsync forces it only up to the last change of that file or folder. Unsynced
pages are on the disk in any choice and order; pages in between read as zeros. A rename forces no data.

pessimistic: what POSIX promises. A file's data are safe after its fsync, its name only after that of its folder.
Anything else survives in any choice: single sectors of 512 bytes, whole pages, names in any order; a file that moves
between folders may be in both. Only a rename within one folder is atomic.
"""

import bisect
import dataclasses
import random
from collections.abc import Mapping

from recorder import Change, Recording, Tree

SECTOR, PAGE = 512, 4096
MODELS = ("ext4", "xfs", "pessimistic")
ROOT = 0


@dataclasses.dataclass
class _Entries:
    """A change of names: (folder, name, the object that it then is, or None) at an index of the log."""

    index: int
    changes: list[tuple[int, str, int | None]]
    replaces: bool = False  # another file


@dataclasses.dataclass
class _File:
    """Changes of a file's data, (index, offset, data; None: cut to the offset), and indices of its syncs."""

    initial: bytes = b""
    changes: list[tuple[int, int, bytes | None]] = dataclasses.field(default_factory=list)


class CrashStates:
    """States of a folder after a power cut during a recording."""

    def __init__(self, recording: Recording):
        self._end = len(recording.changes)
        self._files: dict[int, _File] = {}
        self._entries: list[_Entries] = []
        self._syncs: dict[int, list[int]] = {}
        self._objects = {recording.inodes["."]: ROOT}  # by inode, which may be used again
        self._names: dict[str, int] = {".": ROOT}  # path -> object, as the program sees it
        self._count = ROOT
        for path, content in sorted(recording.before.items()):
            self._create(-1, path, recording.inodes[path], content)
        for index, change in enumerate(recording.changes):
            self._follow(index, change)

    def draw(self, seed: int, model: str) -> tuple[int, Tree]:
        """A state: the number of changes before the power cut, and the files after it."""
        rng = random.Random(f"{model}-{seed}")
        at = rng.randint(0, self._end)
        kept = rng.choice([0.0, 1.0, *(rng.random() for _ in range(3))])  # the share of unsynced changes
        return at, self._tree(at, model, rng, kept)

    def after(self, at: int) -> Tree:
        """The files after some changes, if the program is killed and the power stays."""
        return self._tree(at, "pessimistic", random.Random(0), 1.0)

    # Reading the log.

    def _create(self, index: int, path: str, inode: int, content: bytes | None = b"") -> None:
        self._count += 1
        self._objects[inode] = self._count
        if content is not None:
            self._files[self._count] = _File(content)
        self._rename(index, {path: self._count})

    def _rename(self, index: int, names: Mapping[str, int | None]) -> None:
        entries = []
        replaces = False
        for path, number in names.items():
            folder, _, name = path.rpartition("/")
            entries.append((self._names[folder or "."], name, number))
            if number is None:
                self._names = {k: v for k, v in self._names.items() if k != path and not k.startswith(f"{path}/")}
            else:
                replaces |= path in self._names
                self._names[path] = number
        self._entries.append(_Entries(index, entries, replaces))

    def _follow(self, index: int, change: Change) -> None:
        other, file = change.data.decode() if change.kind in "rl" else "", self._objects.get(change.inode)
        if change.kind in "cm":
            self._create(index, change.name, change.inode, b"" if change.kind == "c" else None)
        elif change.kind == "r" and other != change.name:
            moved = {k: v for k, v in self._names.items() if k.startswith(f"{change.name}/")}
            self._rename(index, {other: self._names[change.name], change.name: None})
            self._names |= {other + path[len(change.name) :]: number for path, number in moved.items()}
        elif change.kind == "l":
            self._rename(index, {other: self._names[change.name]})
        elif change.kind == "u":
            self._rename(index, {change.name: None})
        elif change.kind == "s" and file is not None:
            self._syncs.setdefault(file, []).append(index)
        elif change.kind in "wt" and file in self._files:
            data = change.data if change.kind == "w" else None
            self._files[file].changes.append((index, change.offset, data))

    # Drawing a state.

    def _tree(self, at: int, model: str, rng: random.Random, kept: float) -> Tree:
        if model == "pessimistic":
            committed, renames = at, self._any_names(at, rng, kept)
        else:
            committed = self._commit(at, model, rng, kept)
            renames = [each for each in self._entries if each.index < committed]
        folders: dict[int, dict[str, int]] = {}
        for entries in renames:
            for folder, name, number in entries.changes:
                folders.setdefault(folder, {}).pop(name, None)
                if number is not None:
                    folders[folder][name] = number
        forced = {number: each.index for each in renames if each.replaces for _, _, number in each.changes if number}
        tree: Tree = {}

        def walk(folder: int, path: str) -> None:
            for name, number in folders.get(folder, {}).items():
                if number in self._files:
                    data = max(self._synced(number, at), forced.get(number, -1) if model == "ext4" else -1)
                    tree[path + name] = self._content(self._files[number], at, data, committed, model, rng, kept)
                else:
                    tree[path + name] = None
                    walk(number, f"{path}{name}/")

        walk(ROOT, "")
        return tree

    def _synced(self, number: int, at: int) -> int:
        """Index of the last sync of a file or folder before the power cut, or -1."""
        found = self._syncs.get(number, [])
        place = bisect.bisect_left(found, at)
        return found[place - 1] if place else -1

    def _commit(self, at: int, model: str, rng: random.Random, kept: float) -> int:
        """Number of log entries whose changes of names were committed, in a file system with an ordered log."""
        forced = 0
        for number in self._syncs:
            synced = self._synced(number, at)
            if model == "ext4":
                forced = max(forced, synced)
                continue
            for each in self._entries:
                if each.index < synced and any(number in (folder, child) for folder, _, child in each.changes):
                    forced = max(forced, each.index + 1)
        return at if kept == 1 else forced if kept == 0 else rng.randint(forced, at)

    def _any_names(self, at: int, rng: random.Random, kept: float) -> list[_Entries]:
        """Changes of names that survive where each is safe only after the sync of its folder."""
        found = []
        for each in self._entries:
            if each.index >= at:
                break
            survives = {
                folder: self._synced(folder, at) > each.index or each.index < 0 or rng.random() < kept
                for folder, _, _ in each.changes
            }
            if not survives[each.changes[0][0]]:  # a file never vanishes between two folders
                continue
            found.append(_Entries(each.index, [change for change in each.changes if survives[change[0]]]))
        return found

    def _content(
        self, file: _File, at: int, synced: int, committed: int, model: str, rng: random.Random, kept: float
    ) -> bytes:
        """What is on the disk of a file whose data up to a sync are safe."""
        content, unit = bytearray(file.initial), SECTOR if model == "pessimistic" and rng.random() < 0.5 else PAGE
        appends = True
        for index, offset, data in file.changes:
            if index >= at:
                break
            safe = index < synced
            if data is None:
                if not safe and (index >= committed or (model == "pessimistic" and rng.random() >= kept)):
                    if model == "pessimistic":
                        continue
                    break
                content[offset:] = bytes(max(0, offset - len(content)))
                continue
            first = offset - offset % unit
            for start in range(first, offset + len(data), unit):
                low, high = max(start, offset), min(start + unit, offset + len(data))
                if not safe:
                    survives = rng.random() < kept
                    if model == "ext4" and high > len(content):
                        appends = survives = appends and survives
                    if not survives:
                        continue
                content[len(content) :] = bytes(max(0, low - len(content)))
                content[low:high] = data[low - offset : high - offset]
        return bytes(content)
