"""Data set -> decoded uint8 examples, in host memory, in mapped files, or decoded when they are asked for."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from petseg.classes import Classes
from petseg.config import DataConfig
from petseg.data import catalog, faults, pair_decoding, sample
from petseg.data.catalog import DataSet
from petseg.data.disk_cache import Cache
from petseg.data.pair_decoding import UnusableExampleError
from petseg.data.random_parts import RandomParts
from petseg.data.record_files import Decoded, RecordFiles
from petseg.data.resizing import Resizing
from petseg.errors import DataError, one_line
from petseg.runtime import autotuning, strategies

Gather = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
DECODED_AT_ONCE = 16  # pictures whose pixels are in memory at one time: 24 megapixels take 360 MiB while one is resized
TENSOR_ALIGNMENT = 64  # bytes
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Examples:
    """A split, decoded and resized.

    Attributes:
      images: uint8 [N, H, W, 3]; an array, or what is indexed like one.
      masks: uint8 [N, H, W, 1], class ids; an array, or what is indexed like one.
      classes: the classes.
      names: N names to recognise examples by: file names where the data set has them, else `<split>/<position>`.
      groups: for each class label in which examples differ, such as `species`, its name for each of the N.
      gather: positions int64 [K] -> images and masks, as a graph of this process; None where both are arrays in memory.
      gather_anywhere: what `gather` does, as a graph for any process that sees the files; None where there is none.
      check: raises DataError if files in which the examples lie are no longer what they were.
      origin: the data set with its config and version, and the split: `oxford_iiit_pet/4.0.0, test`.
      parts: which parts of them a training sees, where they are pictures on canvases; None: they are what it sees.
    """

    images: np.ndarray
    masks: np.ndarray
    classes: Classes
    names: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    gather: Gather | None = None
    gather_anywhere: Gather | None = None
    check: Callable[[], None] = lambda: None
    origin: str = ""
    parts: RandomParts | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Examples of a split of a data set, to be decoded at a size.

    Attributes:
      data_set: the data set.
      split: its split, or a slice.
      resizing: how pictures come to their size.
      positions: places of the examples in the split, rising; all of them, or some.
      parts: which parts of them a training sees; None where it sees them as a whole.
    """

    data_set: DataSet
    split: str
    resizing: Resizing
    positions: range
    parts: RandomParts | None = None

    @classmethod
    def open(cls, config: DataConfig, split: str, classes: Classes | None) -> "_Source":
        data_set = catalog.open_data(config, classes)
        return cls(data_set, split, Resizing(config.size, config.resize), range(data_set.num_examples(split)))

    def on_canvases(self) -> "_Source":
        """The same pictures, not cut to the network's size, but laid on canvases that hold the largest."""
        files = self.data_set.raw_examples(self.split).map(lambda example: example["image"]).as_numpy_iterator()
        parts = RandomParts.of_files(self.resizing.size, files, self.count)
        return dataclasses.replace(self, resizing=Resizing(parts.canvas, "crop"), parts=parts)

    @property
    def count(self) -> int:
        return len(self.positions)

    @property
    def origin(self) -> str:
        return f"{self.data_set.full_name}, {self.split}"

    def shape(self, channels: int) -> tuple[int, int, int, int]:
        return (self.count, *self.resizing.size, channels)

    def undecoded(self, *, located: bool = False) -> tf.data.Dataset:
        examples = self.data_set.raw_examples(self.split, located=located)
        return examples.take(self.positions.stop).shard(self.positions.step, 0)


def load(config: DataConfig, split: str, classes: Classes | None = None, *, for_training: bool = False) -> Examples:
    """Decodes a split, and looks at each of its examples.

    Args:
      config: which data set, at which size, and where its decoded examples stay.
      split: split of the data set, or a slice.
      classes: the classes; None: those that the config names or the data set brings.
      for_training: whether examples of --resize=crop are to be random parts, and not the middles, of their pictures.

    Raises:
      DataError: if the data set cannot be had, lacks a feature, or holds an example that cannot be used.
      ConfigError: if classes cannot be used, or decoded examples cannot be written.
    """
    source = _Source.open(config, split, classes)
    if for_training and config.resize == "crop":
        source = source.on_canvases()
    try:
        if config.cache == "disk":
            return _on_disk(source, config.cache_dir)
        return _in_memory(source) if config.cache == "memory" else _in_its_records(source)
    except UnusableExampleError as error:
        raise DataError(f"{error}. Everything: {faults.check_command(config)}") from error


def load_first(config: DataConfig, split: str, classes: Classes | None = None, *, count: int) -> Examples:
    """Decodes the first examples of a split, at most `count`, into memory, and none of the others.

    Raises:
      DataError: as `load`.
    """
    source = _Source.open(config, split, classes)
    return _in_memory(dataclasses.replace(source, positions=source.positions[:count]))


def load_spread(config: DataConfig, split: str, classes: Classes | None = None, *, count: int) -> Examples:
    """Decodes examples from all over a split, at most `count`, into memory, and none of the others.

    Raises:
      DataError: as `load`.
    """
    source = _Source.open(config, split, classes)
    step = math.ceil(source.count / count)
    return _in_memory(dataclasses.replace(source, positions=source.positions[::step]))


def parallel_decodes() -> int:
    """How many pictures are decoded at one time: as many as this process may use CPUs, within bounds."""
    return min(strategies.usable_cpus(), DECODED_AT_ONCE)


def _in_memory(source: _Source) -> Examples:
    size = math.prod(source.shape(4)) / 2**20
    logger.info("%s: %d examples at %d x %d take %.0f MiB of memory", source.split, *source.shape(4)[:3], size)
    images, masks = _empty(source.shape(3)), _empty(source.shape(1))

    def keep(i: int, example: dict[str, Any]) -> None:
        images[i], masks[i] = example["image"], example["mask"]

    names, groups = _decode_all(source, keep)
    return Examples(images, masks, source.data_set.classes, names, groups, origin=source.origin, parts=source.parts)


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    """uint8, where a tensor may lie, so that one can share its memory."""
    size = math.prod(shape)
    buffer = np.empty(size + TENSOR_ALIGNMENT, np.uint8)
    first = -buffer.ctypes.data % TENSOR_ALIGNMENT
    return buffer[first : first + size].reshape(shape)


def _on_disk(source: _Source, cache_dir: str) -> Examples:
    data_set = source.data_set
    files = [file for file in sorted(Path(data_set.builder.data_path).iterdir()) if file.is_file()]
    key = {
        "dataset": data_set.full_name,
        "features": [data_set.image_feature, data_set.mask_feature],
        "values": [each.value for each in data_set.classes.members],
        "ignored": data_set.classes.ignored,
        "resize": source.resizing.method,
        "split": source.split,
        "files": [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
        "tensorflow": tf.__version__,  # whose decoders may change
    }
    cache = Cache(cache_dir, f"{data_set.full_name}-{source.split}", key, source.count, source.resizing.size)
    names, groups = cache.filled(
        lambda keep: _decode_all(source, lambda _, example: keep(example["image"], example["mask"]))
    )
    return Examples(
        cache.images,
        cache.masks,
        data_set.classes,
        names,
        groups,
        cache.gather,
        cache.gather_anywhere,
        cache.check,
        source.origin,
        source.parts,
    )


def _in_its_records(source: _Source) -> Examples:
    builder = source.data_set.builder
    if builder.info.file_format.value != "tfrecord":
        raise DataError(
            f"--cache=none: {source.data_set.name} lies in files of format {builder.info.file_format.value}; "
            "must be tfrecord; --cache=disk reads any"
        )
    logger.info("%s: %d examples are looked at, and not kept", source.split, source.count)
    files: dict[str, int] = {}
    records = np.empty((source.count, 2), np.int64)

    def keep(i: int, example: dict[str, Any]) -> None:
        file, _, position = example["tfds_id"].decode().rpartition("__")
        records[i] = files.setdefault(file, len(files)), int(position)

    names, groups = _decode_all(source, keep, located=True)
    index = RecordFiles.index([Path(builder.data_path) / file for file in files], records)

    def gather(ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        decoded = _decoded(source, tf.data.Dataset.from_tensor_slices(index.read(ids)).map(source.data_set.parser()))
        size = ids.shape[0] or tf.shape(ids, tf.int64)[0]
        batch = decoded.batch(size, drop_remainder=True).with_options(autotuning.off()).get_single_element()
        return batch["image"], batch["mask"]

    def part(number: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda ids: gather(tf.constant(ids, tf.int64))[number].numpy()

    images, masks = Decoded(part(0), source.shape(3)), Decoded(part(1), source.shape(1))
    return Examples(
        images,  # type: ignore[arg-type]
        masks,  # type: ignore[arg-type]
        source.data_set.classes,
        names,
        groups,
        gather,
        check=index.check,
        origin=source.origin,
        parts=source.parts,
    )


def _decode_all(
    source: _Source, keep: Callable[[int, dict[str, Any]], None], *, located: bool = False
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Decodes the examples of a split one after the other, hands each on, and returns their names and groups.

    What is handed on has a `tfds_id`, which says where the example lies, if it is to be `located`.

    Raises:
      DataError: if one cannot be used.
    """
    data_set, split = source.data_set, source.split
    names, labels = [], {key: np.full(source.count, -1) for key in data_set.label_names()}
    keys = [*labels, "tfds_id"] if located else [*labels]
    iterator = _fetched(source, source.undecoded(located=located), keys)
    hidden = None if logger.isEnabledFor(logging.INFO) else True  # None: where the output is no terminal
    progress = tqdm(source.positions, desc=f"decoding {split}", unit=" images", disable=hidden, leave=False)
    for i, position in enumerate(progress):
        where = f"{data_set.name}, split {split}, example {position}"
        try:
            example = next(iterator)
        except tf.errors.InvalidArgumentError as error:
            raise UnusableExampleError(
                f"{where}: image or mask cannot be decoded; each must be a JPEG, PNG, GIF or BMP file"
            ) from error
        except (tf.errors.OpError, StopIteration) as error:
            raise DataError(
                f"{where}: the files under {data_set.builder.data_path} cannot be read: {one_line(error)}"
            ) from error
        name = example["name"].decode() or f"{split}/{position}"
        pair_decoding.check_example(example, f"{where} ({name})", data_set.classes)
        if source.parts is not None and (example["image_size"] != source.parts.sizes[i]).any():
            sizes = tuple(source.parts.sizes[i].tolist()), tuple(example["image_size"].tolist())
            raise DataError(
                f"{where} ({name}): its header says {sizes[0]} (height, width); must be {sizes[1]}, its size"
            )
        keep(i, example)
        names.append(name)
        for key, values in labels.items():
            values[i] = example[key]
    return tuple(names), _groups(data_set, labels)


def _fetched(source: _Source, raw: tf.data.Dataset, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Decoded examples as arrays. They come in batches, since fetching one takes as long as decoding it."""
    count = 0
    with contextlib.suppress(tf.errors.OpError):
        for batch in _decoded(source, raw, keys).batch(DECODED_AT_ONCE).prefetch(1).as_numpy_iterator():
            for i in range(len(batch["image"])):
                yield {key: values[i] for key, values in batch.items()}
                count += 1
    if count < source.count:  # to the example that cannot be had
        yield from _decoded(source, raw.skip(count), keys).as_numpy_iterator()


def _decoded(source: _Source, examples: tf.data.Dataset, keys: Sequence[str] = ()) -> tf.data.Dataset:
    decode = tf.autograph.experimental.do_not_convert(
        lambda example: pair_decoding.decode(source.data_set, source.resizing, example, keys)
    )
    return examples.map(decode, num_parallel_calls=parallel_decodes())


def native(
    config: DataConfig, split: str, classes: Classes | None = None, *, ids: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of a split at their own sizes, one after the other: image uint8 [H, W, 3], class ids uint8 [H, W, 1].

    All; or those at the positions `ids`, int64 [K], rising.

    Raises:
      DataError: as `load`.
    """
    data_set = catalog.open_data(config, classes)
    at_once = parallel_decodes()
    decode = tf.autograph.experimental.do_not_convert(lambda example: pair_decoding.decoded_pair(data_set, example)[:2])
    raw = data_set.raw_examples(split)
    raw = raw if ids is None else sample.only(raw, ids)
    yield from raw.map(decode, at_once).prefetch(at_once).as_numpy_iterator()


def _groups(data_set: DataSet, labels: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    """Labels by name, but for those that tell nothing: all alike, unknown (-1), or the same as another's."""
    groups: dict[str, tuple[str, ...]] = {}
    for key, names in data_set.label_names().items():
        values = labels[key]
        if values.min() >= 0 and len(set(values.tolist())) > 1:
            group = tuple(names[value] for value in values)
            if group not in groups.values():
                groups[key] = group
    return groups
