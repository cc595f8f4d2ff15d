"""Digests of the pictures and masks of a split: which pictures two splits share, and what of a split has changed.

A digest is 64 bits of BLAKE2b, of the bytes of a picture's file or of the class ids of its mask. Two of a million
different pictures have the same one with a chance of 3e-8. Pictures are compared byte by byte in effect: one that was
saved anew, in another format or quality, is another picture.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from petseg.files import write_bytes

FILE = "digests.npz"
SUFFIX = ".digests"  # of the names of arrays, for a split may have the name of an argument of `np.savez`


class Digests(NamedTuple):
    """Digests of N examples in the order of their split.

    Attributes:
      pictures: of the pictures' files, uint64 [N].
      masks: of the masks' class ids, uint64 [N].
    """

    pictures: np.ndarray
    masks: np.ndarray

    def part(self, start: int, stop: int) -> "Digests":
        """Those of the examples from one position to another."""
        return Digests(self.pictures[start:stop], self.masks[start:stop])

    def changes_to(self, now: "Digests") -> "Changes":
        """What has changed since these digests were taken."""
        added = np.flatnonzero(~np.isin(now.pictures, self.pictures))
        removed = int((~np.isin(self.pictures, now.pictures)).sum())
        if len(added) or removed or len(self.pictures) != len(now.pictures):
            return Changes(added, removed, len(now.pictures) - len(self.pictures))
        if not np.array_equal(self.pictures, now.pictures):
            return Changes(reordered=True)
        return Changes(masks=np.flatnonzero(self.masks != now.masks))


class Changes(NamedTuple):
    """How a split differs from what it was.

    Attributes:
      added: positions of the pictures that are new, int64.
      removed: number of pictures that are gone.
      growth: by how many examples it has grown, below 0 if it has shrunk.
      reordered: whether it has the same pictures in another order.
      masks: positions of the masks that were changed, where all pictures are what they were, int64.
    """

    added: np.ndarray = np.zeros(0, np.int64)
    removed: int = 0
    growth: int = 0
    reordered: bool = False
    masks: np.ndarray = np.zeros(0, np.int64)


def of_bytes(data: bytes) -> int:
    """The digest of a file's content."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def of_ids(ids: np.ndarray) -> int:
    """The digest of a mask's class ids, uint8 [H, W]."""
    return of_bytes(f"{ids.shape}".encode() + ids.tobytes())


def from_rows(rows: Sequence[tuple[int, int]]) -> Digests:
    """Digests from those of single examples: of the picture, of the mask."""
    pictures, masks = np.array(rows, np.uint64).reshape(-1, 2).T
    return Digests(pictures, masks)


def joined(parts: Sequence[Digests]) -> Digests:
    """Digests of examples that follow each other."""
    none = from_rows([])
    pictures, masks = (np.concatenate(arrays) for arrays in zip(none, *parts, strict=True))
    return Digests(pictures, masks)


def write(path: Path, splits: Mapping[str, Digests]) -> None:
    """Writes the digests of splits by their names into an .npz file, whole or not at all."""
    write_arrays(path, {f"{split}{SUFFIX}": np.stack(digests, axis=1) for split, digests in splits.items()})


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by their names into an .npz file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def read(path: Path) -> dict[str, Digests]:
    """Reads what `write` wrote.

    Raises:
      OSError, ValueError, KeyError, zipfile.BadZipFile: if the file is not there or not such a file.
    """
    with np.load(path) as arrays:
        return {key.removesuffix(SUFFIX): Digests(*np.ascontiguousarray(arrays[key].T)) for key in arrays.files}
