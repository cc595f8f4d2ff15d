"""Decoded examples in files (--cache=disk), written once and mapped into memory by every run that uses them.

A folder holds `images.u8` and `masks.u8`, raw bytes of one example after the other, and `examples.json`. It is written
under a temporary name and renamed when it is complete; it never changes after that, since runs read it by its path.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from petseg import files
from petseg.classes import Classes
from petseg.config import CACHE_DIR
from petseg.data.examples import Examples, Fetched, all_usable
from petseg.errors import ConfigError, DataError

FORMAT = 2  # another one when the same data set would give other bytes
CHANNELS = {"images.u8": 3, "masks.u8": 1}
RECORD = "examples.json"

Names = tuple[str, ...]
Groups = Mapping[str, tuple[str, ...]]
Keep = Callable[[np.ndarray, np.ndarray], None]
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cache:
    """A place for one split at one size.

    Attributes:
      directory: folder of all caches; empty for the usual one.
      title: first part of the folder's name.
      key: JSON values; examples that were made under another key are others.
      count: number of examples N.
      image_size: height H and width W of the examples.
    """

    directory: str
    title: str
    key: Mapping[str, Any]
    count: int
    image_size: tuple[int, int]

    @property
    def folder(self) -> Path:
        """Where the files are, or will be."""
        key = json.dumps({**self.key, "format": FORMAT, "size": list(self.image_size)}, sort_keys=True)
        title = re.sub(r"[^A-Za-z0-9_.]+", "-", self.title).strip("-")
        parent = Path(self.directory or CACHE_DIR).expanduser().absolute()
        return parent / f"{title}-{self._size}px-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    @property
    def _size(self) -> str:
        return "x".join(map(str, self.image_size))

    @property
    def images(self) -> np.ndarray:
        """uint8 [N, H, W, 3], mapped."""
        return self._mapped("images.u8")

    @property
    def masks(self) -> np.ndarray:
        """uint8 [N, H, W, 1], mapped."""
        return self._mapped("masks.u8")

    def filled(self, fill: Callable[[Keep], tuple[Names, Groups]]) -> tuple[Names, Groups]:
        """Has the files written, if they are not there yet.

        Args:
          fill: a function that is given another one, which keeps an example, image and mask; it calls that N times, in
            order, and returns names and groups.

        Returns:
          names and groups.

        Raises:
          ConfigError: if the files cannot be written.
        """
        if not self.folder.exists() or self._damage():
            with files.explain_write_errors(
                self.folder.parent,
                flag=f"--cache_dir={self.directory}",
                error_class=ConfigError,
                needed=self._bytes(),
            ):
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                lock = self.folder.with_name(self.folder.name + ".lock")
                with files.process_lock(lock, f"writes {self.folder}"):
                    self._write(fill)
        else:
            logger.info("%d examples at %s px were decoded before: %s", self.count, self._size, self.folder)
        record = json.loads((self.folder / RECORD).read_text())
        return tuple(record["names"]), {key: tuple(names) for key, names in record["groups"].items()}

    def check(self) -> None:
        """Raises DataError if the files are no longer what they were."""
        if damage := self._damage():
            raise DataError(f"{damage}; the same command writes it anew")

    def read(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [K, H, W, 3] and masks uint8 [K, H, W, 1] of some examples, int64 [K].

        Maps the files anew for each batch: a file that was truncated meanwhile is then an error, not a SIGBUS.
        """
        return self.images[ids], self.masks[ids]

    def file_of(self, name: str) -> str:
        """Path of one of the files of pixels."""
        return str(self.folder / name)

    def shape(self, name: str) -> tuple[int, int, int, int]:
        return (self.count, *self.image_size, CHANNELS[name])

    def _mapped(self, name: str) -> np.ndarray:
        return np.memmap(self.folder / name, np.uint8, mode="r", shape=self.shape(name))

    def _damage(self) -> str:
        """What is wrong with the files; empty if nothing is to be seen."""
        for name in CHANNELS:
            file, expected = self.folder / name, int(np.prod(self.shape(name), dtype=np.int64))
            size = file.stat().st_size if file.is_file() else -1
            if size != expected:
                return f"{file}: " + ("is missing" if size < 0 else f"has {size} bytes instead of {expected}")
        file = self.folder / RECORD
        try:
            record = json.loads(file.read_text())
            labels = [record["names"], *record["groups"].values()]
            intact = {len(each) for each in labels} == {self.count}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            intact = False
        return "" if intact else f"{file}: cannot be read"

    def _write(self, fill: Callable[[Keep], tuple[Names, Groups]]) -> None:
        if self.folder.exists():
            damage = self._damage()
            if not damage:
                return  # another process wrote it while this one waited for the lock
            logger.warning("%s; it is written anew", damage)
            shutil.rmtree(self.folder)
        unfinished = self.folder.with_name(self.folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed, for else the lock were held
        self._check_space()
        logger.info("decoding %d examples at %s px into %s", self.count, self._size, self.folder)
        try:
            unfinished.mkdir()
            with open(unfinished / "images.u8", "wb") as images, open(unfinished / "masks.u8", "wb") as masks:

                def keep(image: np.ndarray, mask: np.ndarray) -> None:
                    images.write(image.tobytes())
                    masks.write(mask.tobytes())

                names, groups = fill(keep)
                for file in (images, masks):
                    file.flush()
                    os.fsync(file.fileno())
            record = {"format": FORMAT, "key": self.key, "shapes": {name: self.shape(name) for name in CHANNELS}}
            (unfinished / RECORD).write_text(json.dumps({**record, "names": names, "groups": groups}))
            unfinished.rename(self.folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def _check_space(self) -> None:
        if self._bytes() > shutil.disk_usage(self.folder.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _bytes(self) -> int:
        return self.count * self.image_size[0] * self.image_size[1] * sum(CHANNELS.values())


class DiskExamples(Examples):
    """The examples of a cache.

    Args:
      cache: the cache, filled.
      classes: the classes.
      names: names of the examples.
      groups: class labels of the examples.
      origin: data set and split.
    """

    def __init__(self, cache: Cache, classes: Classes, names: Names, groups: Groups, origin: str):
        self._cache = cache
        self.classes, self.names, self.groups, self.origin = classes, names, groups, origin
        self.fetch_portable = self._fetch_portable

    def __len__(self) -> int:
        return self._cache.count

    def fetch(self, ids: tf.Tensor) -> Fetched:
        # Declared stateless, which it is (the same ids give the same bytes): op determinism would run a stateful
        # function sequentially.
        image, mask = tf.numpy_function(self._cache.read, [ids], [tf.uint8, tf.uint8], stateful=False)
        image.set_shape([*ids.shape, *self._cache.shape("images.u8")[1:]])
        mask.set_shape([*ids.shape, *self._cache.shape("masks.u8")[1:]])
        return Fetched(image, mask, all_usable(ids))

    def _fetch_portable(self, ids: tf.Tensor) -> Fetched:
        """Any process that sees the folder can run this graph.

        The operation maps the file for each batch, which is cheap. But constant folding copies the whole file once when
        the graph is set up; hence `fetch` does not use it.
        """
        image, mask = (
            tf.gather(
                tf.raw_ops.ImmutableConst(
                    dtype=tf.uint8, shape=self._cache.shape(name), memory_region_name=self._cache.file_of(name)
                ),
                ids,
            )
            for name in CHANNELS
        )
        return Fetched(image, mask, all_usable(ids))

    def read(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._cache.read(np.asarray(ids, np.int64))

    def check(self) -> None:
        self._cache.check()
