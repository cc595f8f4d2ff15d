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

from petseg.classes import IGNORED, Classes
from petseg.config import DataConfig
from petseg.data import catalog, pair_decoding, sample
from petseg.data.catalog import TFRECORD
from petseg.data.disk_cache import Cache
from petseg.data.folders import faults
from petseg.data.on_demand import Decoded, OnDemand, groups_of
from petseg.data.pair_decoding import UnusableExampleError
from petseg.data.random_parts import RandomParts
from petseg.data.source import DECODED_AT_ONCE, Source, parallel_decodes
from petseg.errors import ConfigError, DataError, one_line
from petseg.runtime.progress_bars import progress_bar

Gather = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
LOOKED_AT_TOGETHER = 64  # masks
COUNTED_MASKS = 2048  # where each must be decoded for it: a few seconds
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
      on_demand: where they come from if nobody has looked at them yet; None: each can be used.
      sample: `seed` and `of`, the number of examples in the split, where they are a sample of it.
    """

    images: np.ndarray
    masks: np.ndarray
    classes: Classes
    names: Sequence[str]
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    gather: Gather | None = None
    gather_anywhere: Gather | None = None
    check: Callable[[], None] = lambda: None
    origin: str = ""
    parts: RandomParts | None = None
    on_demand: OnDemand | None = None
    sample: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def has_labels(self) -> bool:
        """Whether a pixel of any mask is in a class; looks at masks until one has such a pixel."""
        first, count = 0, 1
        while first < len(self):
            if (self.masks[first : first + count] != IGNORED).any():
                return True
            first, count = first + count, min(2 * count, LOOKED_AT_TOGETHER)
        return False

    def counted_masks(self) -> np.ndarray:
        """The masks by which classes are counted: all; where each would have to be decoded, some from all over."""
        if self.on_demand is None or len(self) <= COUNTED_MASKS:
            return self.masks
        logger.info("classes are counted in %d of %d masks, from all over %s", COUNTED_MASKS, len(self), self.origin)
        return self.masks.spread(COUNTED_MASKS)  # type: ignore[attr-defined]


def check_labels(examples: Examples, config: DataConfig, *, flag: str, split: str) -> None:
    """Refuses examples of which no pixel is in a class: there is nothing to train on, and every score is 0 / 0.

    Args:
      examples: the examples of a split, or a sample of them.
      config: config of their data.
      flag: what named the split, for the error.
      split: the split.

    Raises:
      DataError: if no pixel is in a class.
    """
    try:
        if examples.has_labels():
            return
    except DataError:  # an example that cannot be used, which is named when its turn comes
        return
    drawn = f" that --eval_examples={len(examples)} draws" if examples.sample else ""
    height, width = config.size
    raise DataError(
        f"{flag}{split}: none of its {len(examples)} masks{drawn} has a pixel in a class at {height} x {width}, as in "
        f"a split without labels; must be one with labels; there are "
        f"{catalog.open_data(config, examples.classes).split_sizes()}"
    )


def load(config: DataConfig, split: str, classes: Classes | None = None, *, for_training: bool = False) -> Examples:
    """Decodes a split, and looks at each of its examples; with --cache=none, when somebody asks for one.

    Args:
      config: which data set, at which size, and where its decoded examples stay.
      split: split of the data set, or a slice.
      classes: the classes; None: those that the config names or the data set brings.
      for_training: whether examples of --resize=crop are to be random parts, and not the middles, of their pictures,
        and --decode and --on_bad_example count. What is scored is decoded whole.

    Raises:
      DataError: if the data set cannot be had, lacks a feature, or holds an example that cannot be used.
      ConfigError: if classes cannot be used, decoded examples cannot be written, or a data service cannot read them.
    """
    source = Source.open(config, split, classes)
    if for_training and config.resize == "crop":
        source = source.on_canvases()
    if for_training and config.decode == "scaled":
        source = source.decoding_smaller()
    try:
        if config.cache == "disk":
            return _on_disk(source, config.cache_dir)
        if config.cache == "memory":
            return _in_memory(source)
        return _on_demand(source, config, skips=for_training and config.on_bad_example == "skip")
    except UnusableExampleError as error:
        raise DataError(f"{error}. Everything: {faults.check_command(config)}") from error


def load_first(config: DataConfig, split: str, classes: Classes | None = None, *, count: int) -> Examples:
    """Decodes the first examples of a split, at most `count`, into memory, and none of the others.

    Raises:
      DataError: as `load`.
    """
    source = Source.open(_without_index(config), split, classes)
    return _in_memory(dataclasses.replace(source, positions=source.positions[:count]))


def load_spread(config: DataConfig, split: str, classes: Classes | None = None, *, count: int) -> Examples:
    """Decodes examples from all over a split, at most `count`, into memory, and none of the others.

    Raises:
      DataError: as `load`.
    """
    source = Source.open(_without_index(config), split, classes)
    step = math.ceil(source.count / count)
    return _in_memory(dataclasses.replace(source, positions=source.positions[::step]))


def _without_index(config: DataConfig) -> DataConfig:
    """For who reads few examples, which lie one after the other."""
    return dataclasses.replace(config, cache="memory", on_bad_example="stop", data_service="")


def _in_memory(source: Source) -> Examples:
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


def _on_disk(source: Source, cache_dir: str) -> Examples:
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
        **({"decode": "scaled"} if source.scaled else {}),
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


def _on_demand(source: Source, config: DataConfig, *, skips: bool) -> Examples:
    assert source.records is not None
    if config.service_addresses() and source.records.read_anywhere is None:
        raise ConfigError(
            f"--data_service={config.data_service}: with it and --cache=none, the files of {source.data_set.name} must "
            f"be {TFRECORD}; got {source.data_set.file_format}; --cache=disk serves any"
        )
    logger.info(
        "%s: %d examples are not kept; each is decoded, and looked at, when its turn comes", source.split, source.count
    )
    on_demand = OnDemand(source, source.records, skips=skips, check_command=faults.check_command(config))
    return Examples(
        Decoded(lambda ids: on_demand.pictures(ids)[0], source.shape(3)),  # type: ignore[arg-type]
        Decoded(lambda ids: on_demand.pictures(ids)[1], source.shape(1)),  # type: ignore[arg-type]
        source.data_set.classes,
        on_demand.names(),
        on_demand.groups(),
        on_demand.gather,
        check=on_demand.check,
        origin=source.origin,
        parts=source.parts,
        on_demand=on_demand,
    )


def _decode_all(
    source: Source, keep: Callable[[int, dict[str, Any]], None]
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Decodes the examples of a split one after the other, hands each on, and returns their names and groups.

    Raises:
      DataError: if one cannot be used.
    """
    data_set, split = source.data_set, source.split
    names, labels = [], {key: np.full(source.count, -1) for key in data_set.label_names()}
    iterator = _fetched(source, source.undecoded(), [*labels])
    progress = progress_bar(source.positions, logger, what=f"decoding {split}", unit="images")
    for i, position in enumerate(progress):
        where = source.where(position)
        try:
            example = next(iterator)
        except tf.errors.InvalidArgumentError as error:
            raise UnusableExampleError(f"{where}: {pair_decoding.UNDECODABLE}") from error
        except (tf.errors.OpError, StopIteration) as error:
            raise DataError(
                f"{where}: the files under {data_set.builder.data_path} cannot be read: {one_line(error)}"
            ) from error
        name = example["name"].decode() or f"{split}/{position}"
        pair_decoding.check_example(example, f"{where} ({name})", data_set.classes)
        if source.parts is not None:
            source.parts.check(i, example["image_size"], f"{where} ({name})")
        keep(i, example)
        names.append(name)
        for key, values in labels.items():
            values[i] = example[key]
    return tuple(names), groups_of(data_set.label_names(), labels)


def _fetched(source: Source, raw: tf.data.Dataset, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Decoded examples as arrays. They come in batches, since fetching one takes as long as decoding it."""
    count = 0
    with contextlib.suppress(tf.errors.OpError):
        for batch in source.decoded(raw, keys).batch(DECODED_AT_ONCE).prefetch(1).as_numpy_iterator():
            for i in range(len(batch["image"])):
                yield {key: values[i] for key, values in batch.items()}
                count += 1
    if count < source.count:  # to the example that cannot be had
        yield from source.decoded(raw.skip(count), keys).as_numpy_iterator()


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
