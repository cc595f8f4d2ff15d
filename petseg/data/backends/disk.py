"""Disk cache of decoded examples (--cache=disk), written once and memory-mapped by all runs that use it.

Its folder holds the raw arrays `images.u8` or `images.u16`, `masks.u8` and, if there are weight maps, `weights.u8`,
`.u16` or `.f32`, and `examples.json`. It is written under a
temporary name, renamed when complete, and never changed after that.
"""

import contextlib
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

FORMAT = 3  # increase it when the same data set would give other bytes
RECORD = "examples.json"

Names = tuple[str, ...]
Groups = Mapping[str, tuple[str, ...]]
WriteExample = Callable[[Mapping[str, np.ndarray]], None]
SUFFIXES = {"uint8": "u8", "uint16": "u16", "float32": "f32"}
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cache:
    """The cache of a split at one image size."""

    directory: str  # folder of all caches; empty for the default
    title: str  # first part of the folder's name
    key: Mapping[str, Any]  # JSON values on which the decoded bytes depend; each key has its own folder
    count: int  # number of examples N
    image_size: tuple[int, int]  # height H and width W of the examples
    channels: int = 3  # channels C of the images
    dtype: str = "uint8"  # dtype of the images, uint8 or uint16
    weight_dtype: str = ""  # dtype of the weight maps; empty without

    @property
    def arrays(self) -> dict[str, tuple[int, np.dtype]]:
        """Channels and dtype of the arrays by name: image, mask and, if there are maps, weight."""
        found = {"image": (self.channels, np.dtype(self.dtype)), "mask": (1, np.dtype(np.uint8))}
        return found | ({"weight": (1, np.dtype(self.weight_dtype))} if self.weight_dtype else {})

    def file(self, name: str) -> Path:
        """The file of an array."""
        return self.folder / f"{name}s.{SUFFIXES[self.arrays[name][1].name]}"

    @property
    def folder(self) -> Path:
        """Folder of the files."""
        key = json.dumps({**self.key, "format": FORMAT, "size": list(self.image_size)}, sort_keys=True)
        title = re.sub(r"[^A-Za-z0-9_.]+", "-", self.title).strip("-")
        parent = Path(self.directory or CACHE_DIR).expanduser().absolute()
        return parent / f"{title}-{self._size}px-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    @property
    def _size(self) -> str:
        return "x".join(map(str, self.image_size))

    def ensure_written(self, fill: Callable[[WriteExample], tuple[Names, Groups]]) -> tuple[Names, Groups]:
        """Writes the files unless they exist and are intact; returns names and groups of the examples.

        Args:
          fill: calls its argument with the arrays of each of the N examples in order; returns names and groups.

        Raises:
          ConfigError: if the files cannot be written.
        """
        if not self.folder.exists() or self._damage():
            with files.explain_write_errors(
                self.folder.parent, flag=f"--cache_dir={self.directory}", error_class=ConfigError, needed=self._bytes()
            ):
                files.make_folder(self.folder.parent)
                lock = self.folder.with_name(self.folder.name + ".lock")
                with files.process_lock(lock, f"writes {self.folder}"):
                    self._write(fill)
        else:
            logger.info("reusing %d decoded examples at %s px: %s", self.count, self._size, self.folder)
        record = json.loads((self.folder / RECORD).read_text())
        return tuple(record["names"]), {key: tuple(names) for key, names in record["groups"].items()}

    def check(self) -> None:
        """Raises DataError if the files are damaged."""
        if damage := self._damage():
            raise DataError(f"{damage}; rerun to write it again")

    def read(self, ids: np.ndarray) -> list[np.ndarray]:
        """The arrays of examples, int64 [K], in the order of `arrays`: [K, H, W, channels] each.

        Maps the files for each call, so that a file truncated meanwhile is an error instead of a SIGBUS.
        """
        return [self._mapped(name)[ids] for name in self.arrays]

    def shape(self, name: str) -> tuple[int, int, int, int]:
        return (self.count, *self.image_size, self.arrays[name][0])

    def _mapped(self, name: str) -> np.ndarray:
        return np.memmap(self.file(name), self.arrays[name][1], mode="r", shape=self.shape(name))

    def _damage(self) -> str:
        """What is wrong with the files; empty if they are intact."""
        for name, (_, dtype) in self.arrays.items():
            file = self.file(name)
            expected = int(np.prod(self.shape(name), dtype=np.int64)) * dtype.itemsize
            size = file.stat().st_size if file.is_file() else -1
            if size != expected:
                return f"{file}: " + ("is missing" if size < 0 else f"has {size} bytes; must have {expected}")
        file = self.folder / RECORD
        try:
            record = json.loads(file.read_text())
            labels = [record["names"], *record["groups"].values()]
            intact = {len(each) for each in labels} == {self.count}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            intact = False
        return "" if intact else f"{file}: cannot be read"

    def _write(self, fill: Callable[[WriteExample], tuple[Names, Groups]]) -> None:
        if self.folder.exists():
            damage = self._damage()
            if not damage:
                return  # another process wrote it while this one waited for the lock
            logger.warning("%s; writing it again", damage)
            shutil.rmtree(self.folder)
        unfinished = self.folder.with_name(self.folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process, since this one holds the lock
        if self._bytes() > shutil.disk_usage(self.folder.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        logger.info("decoding %d examples at %s px into %s", self.count, self._size, self.folder)
        try:
            unfinished.mkdir()
            with contextlib.ExitStack() as stack:
                opened = {
                    name: stack.enter_context(open(unfinished / self.file(name).name, "wb")) for name in self.arrays
                }

                def write_example(example: Mapping[str, np.ndarray]) -> None:
                    for name, file in opened.items():
                        file.write(example[name].tobytes())

                names, groups = fill(write_example)
                for file in opened.values():
                    file.flush()
                    os.fsync(file.fileno())
            shapes = {self.file(name).name: self.shape(name) for name in self.arrays}
            record = {"format": FORMAT, "key": self.key, "shapes": shapes}
            files.write_text(unfinished / RECORD, json.dumps({**record, "names": names, "groups": groups}))
            unfinished.rename(self.folder)
            files.sync(self.folder.parent)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def _bytes(self) -> int:
        each = sum(channels * dtype.itemsize for channels, dtype in self.arrays.values())
        return self.count * self.image_size[0] * self.image_size[1] * each


class DiskExamples(Examples):
    """The examples of a written cache; `classes`, `names`, `groups` and `origin` are attributes of `Examples`."""

    checked = True

    def __init__(self, cache: Cache, classes: Classes, names: Names, groups: Groups, origin: str):
        self._cache = cache
        self.classes, self.names, self.groups, self.origin = classes, names, groups, origin
        self.fetch_portable = self._fetch_portable

    def __len__(self) -> int:
        return self._cache.count

    def fetch(self, ids: tf.Tensor) -> Fetched:
        # Declared stateless (true: the same ids give the same bytes), because op determinism runs stateful functions
        # sequentially.
        arrays = self._cache.arrays
        dtypes = [tf.as_dtype(dtype) for _, dtype in arrays.values()]
        read = dict(zip(arrays, tf.numpy_function(self._cache.read, [ids], dtypes, stateful=False), strict=True))
        for name, array in read.items():
            array.set_shape([*ids.shape, *self._cache.shape(name)[1:]])
        return Fetched(**read, usable=all_usable(ids))

    def _fetch_portable(self, ids: tf.Tensor) -> Fetched:
        """A graph for any process that has access to the folder.

        Mapping the file for each batch is cheap, but constant folding copies the whole file when the graph is
        initialised; hence `fetch` does not use it.
        """
        cache = self._cache
        arrays = {
            name: tf.gather(
                tf.raw_ops.ImmutableConst(
                    dtype=tf.as_dtype(dtype), shape=cache.shape(name), memory_region_name=str(cache.file(name))
                ),
                ids,
            )
            for name, (_, dtype) in cache.arrays.items()
        }
        return Fetched(**arrays, usable=all_usable(ids))

    def read(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, masks, *_ = self._cache.read(np.asarray(ids, np.int64))
        return images, masks

    def check(self) -> None:
        self._cache.check()
