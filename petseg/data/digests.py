"""Digests of the images and masks of a split: detect images shared by splits, and changes of a split.

A digest is 64 bits of BLAKE2b of an image file's bytes or of a mask's class ids. The probability that any two of a
million different images collide is 3e-8. An image that was saved again in another format or quality counts as another.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from petseg.files import write_bytes

FILE = "digests.npz"
SUFFIX = ".digests"  # of array names, because a split may be named like an argument of `np.savez`


class Digests(NamedTuple):
    """Digests of N examples in the order of their split."""

    pictures: np.ndarray  # digests of image files, uint64 [N]
    masks: np.ndarray  # digests of class ids and weight maps, uint64 [N]

    def part(self, positions: np.ndarray) -> "Digests":
        """The digests at positions, int64 [K]."""
        return Digests(self.pictures[positions], self.masks[positions])

    def changes_to(self, now: "Digests") -> "Changes":
        """Compares with the current digests of the same split."""
        added = np.flatnonzero(~np.isin(now.pictures, self.pictures))
        removed = int((~np.isin(self.pictures, now.pictures)).sum())
        if len(added) or removed or len(self.pictures) != len(now.pictures):
            return Changes(added, removed, len(now.pictures) - len(self.pictures))
        if not np.array_equal(self.pictures, now.pictures):
            return Changes(reordered=True)
        return Changes(masks=np.flatnonzero(self.masks != now.masks))


class Changes(NamedTuple):
    """Changes of a split."""

    added: np.ndarray = np.zeros(0, np.int64)  # positions of new images, int64
    removed: int = 0  # number of removed images
    growth: int = 0  # change of the number of examples
    reordered: bool = False  # whether it has the same images in another order
    masks: np.ndarray = np.zeros(0, np.int64)  # positions of changed masks if all images are unchanged, int64


def of_labels(ids: np.ndarray, weight: np.ndarray | None = None) -> int:
    """The digest of a mask's class ids, uint8 [H, W], and of its weight map [H, W, 1] if there is one."""
    data = f"{ids.shape}".encode() + ids.tobytes() + (b"" if weight is None else weight.tobytes())
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def from_rows(rows: Sequence[tuple[int, int]]) -> Digests:
    """Digests from pairs (digest of the image, digest of the mask), one per example."""
    pictures, masks = np.array(rows, np.uint64).reshape(-1, 2).T
    return Digests(pictures, masks)


def joined(parts: Sequence[Digests]) -> Digests:
    """Concatenates digests."""
    none = from_rows([])
    pictures, masks = (np.concatenate(arrays) for arrays in zip(none, *parts, strict=True))
    return Digests(pictures, masks)


def write(path: Path, splits: Mapping[str, Digests]) -> None:
    """Writes the digests by split to an .npz file, atomically."""
    write_arrays(path, {f"{split}{SUFFIX}": np.stack(digests, axis=1) for split, digests in splits.items()})


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes named arrays to an .npz file, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def read(path: Path) -> dict[str, Digests]:
    """Reads a file of `write`.

    Raises:
      OSError, ValueError, KeyError, zipfile.BadZipFile: if the file is missing or invalid.
    """
    with np.load(path) as arrays:
        return {key.removesuffix(SUFFIX): Digests(*np.ascontiguousarray(arrays[key].T)) for key in arrays.files}
