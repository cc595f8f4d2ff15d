"""TFDS name -> decoded uint8 examples, in host memory, in mapped files, or decoded when they are asked for.

Masks are coded as in Oxford-IIIT Pet, 1 pet, 2 background, 3 border, and leave here as class ids, one less.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from petseg.classes import CLASS_NAMES
from petseg.data import catalog
from petseg.data.disk_cache import Cache
from petseg.data.record_files import Decoded, RecordFiles
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
      names: N names to recognise examples by: file names where the data set has them, else `<split>/<position>`.
      groups: for each class label in which examples differ, such as `species`, its name for each of the N.
      gather: positions int64 [K] -> images and masks, as a graph of this process; None where both are arrays in memory.
      gather_anywhere: what `gather` does, as a graph for any process that sees the files; None where there is none.
      check: raises DataError if files in which the examples lie are no longer what they were.
      origin: the data set with its config and version, and the split: `oxford_iiit_pet/4.0.0, test`.
    """

    images: np.ndarray
    masks: np.ndarray
    names: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    gather: Gather | None = None
    gather_anywhere: Gather | None = None
    check: Callable[[], None] = lambda: None
    origin: str = ""

    def __len__(self) -> int:
        return len(self.images)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Examples of a split of a prepared data set, to be decoded at a size.

    Attributes:
      builder: TFDS builder of the data set.
      dataset: name of the data set as the user gives it.
      split: TFDS split or slice.
      image_size: height and width of the result, in pixels.
      positions: places of the examples in the split, rising; all of them, or some.
    """

    builder: Any
    dataset: str
    split: str
    image_size: tuple[int, int]
    positions: range

    @property
    def count(self) -> int:
        return len(self.positions)

    @property
    def origin(self) -> str:
        return f"{self.builder.info.full_name}, {self.split}"

    def shape(self, channels: int) -> tuple[int, int, int, int]:
        return (self.count, *self.image_size, channels)

    def undecoded(self, *, located: bool = False) -> tf.data.Dataset:
        examples = catalog.raw_examples(self.builder, self.split, located=located)
        return examples.take(self.positions.stop).shard(self.positions.step, 0)


def load(
    dataset: str,
    split: str,
    image_size: tuple[int, int],
    data_dir: str = "",
    *,
    cache: str = "memory",
    cache_dir: str = "",
) -> Examples:
    """Decodes a split, and looks at each of its examples.

    Images are resized bilinearly with antialiasing, masks by nearest neighbour: anything smoother would invent classes
    between the real ones.

    Args:
      dataset: TFDS name, with a version where one is wanted (`oxford_iiit_pet:4.0.0`).
      split: TFDS split or slice.
      image_size: height H and width W of the result, in pixels.
      data_dir: folder of prepared data sets; empty for TFDS's default.
      cache: where decoded examples stay: `memory`, `disk` or `none`.
      cache_dir: folder of those on `disk`; empty for the usual one.

    Raises:
      DataError: if the data set cannot be had, lacks a feature, or holds an example that cannot be used.
      ConfigError: if decoded examples cannot be written.
    """
    source = _source(dataset, split, image_size, data_dir)
    if cache == "disk":
        return _on_disk(source, cache_dir)
    return _in_memory(source) if cache == "memory" else _in_its_records(source)


def load_first(dataset: str, split: str, image_size: tuple[int, int], data_dir: str = "", *, count: int) -> Examples:
    """Decodes the first examples of a split, at most `count`, into memory, and none of the others.

    Raises:
      DataError: as `load`.
    """
    source = _source(dataset, split, image_size, data_dir)
    return _in_memory(dataclasses.replace(source, positions=source.positions[:count]))


def load_spread(dataset: str, split: str, image_size: tuple[int, int], data_dir: str = "", *, count: int) -> Examples:
    """Decodes examples from all over a split, at most `count`, into memory, and none of the others.

    Raises:
      DataError: as `load`.
    """
    source = _source(dataset, split, image_size, data_dir)
    step = math.ceil(source.count / count)
    return _in_memory(dataclasses.replace(source, positions=source.positions[::step]))


def _source(dataset: str, split: str, image_size: tuple[int, int], data_dir: str) -> _Source:
    builder = catalog.prepare(dataset, data_dir)
    catalog.check_features(builder)
    return _Source(builder, dataset, split, image_size, range(catalog.num_examples(builder, split)))


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
    return Examples(images, masks, names, groups, origin=source.origin)


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    """uint8, where a tensor may lie, so that one can share its memory."""
    size = math.prod(shape)
    buffer = np.empty(size + TENSOR_ALIGNMENT, np.uint8)
    first = -buffer.ctypes.data % TENSOR_ALIGNMENT
    return buffer[first : first + size].reshape(shape)


def _on_disk(source: _Source, cache_dir: str) -> Examples:
    info = source.builder.info
    files = [file for file in sorted(Path(source.builder.data_path).iterdir()) if file.is_file()]
    key = {
        "dataset": info.full_name,
        "split": source.split,
        "files": [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
        "tensorflow": tf.__version__,  # whose decoders may change
    }
    cache = Cache(cache_dir, f"{info.full_name}-{source.split}", key, source.count, source.image_size)
    names, groups = cache.filled(
        lambda keep: _decode_all(source, lambda _, example: keep(example["image"], example["mask"]))
    )
    return Examples(
        cache.images, cache.masks, names, groups, cache.gather, cache.gather_anywhere, cache.check, source.origin
    )


def _in_its_records(source: _Source) -> Examples:
    builder = source.builder
    if builder.info.file_format.value != "tfrecord":
        raise DataError(
            f"--cache=none: {source.dataset} lies in files of format {builder.info.file_format.value}; "
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
        decoded = _decoded(source, tf.data.Dataset.from_tensor_slices(index.read(ids)).map(catalog.parser(builder)))
        size = ids.shape[0] or tf.shape(ids, tf.int64)[0]
        batch = decoded.batch(size, drop_remainder=True).with_options(autotuning.off()).get_single_element()
        return batch["image"], batch["mask"]

    def part(number: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda ids: gather(tf.constant(ids, tf.int64))[number].numpy()

    images, masks = Decoded(part(0), source.shape(3)), Decoded(part(1), source.shape(1))
    return Examples(
        images,  # type: ignore[arg-type]
        masks,  # type: ignore[arg-type]
        names,
        groups,
        gather,
        check=index.check,
        origin=source.origin,
    )


def _decode_all(
    source: _Source, keep: Callable[[int, dict[str, Any]], None], *, located: bool = False
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Decodes the examples of a split one after the other, hands each on, and returns their names and groups.

    What is handed on has a `tfds_id`, which says where the example lies, if it is to be `located`.

    Raises:
      DataError: if one cannot be used.
    """
    dataset, split = source.dataset, source.split
    names, labels = [], {key: np.full(source.count, -1) for key in catalog.label_names(source.builder)}
    keys = [*labels, "tfds_id"] if located else [*labels]
    iterator = _fetched(source, source.undecoded(located=located), keys)
    hidden = None if logger.isEnabledFor(logging.INFO) else True  # None: where the output is no terminal
    progress = tqdm.tqdm(source.positions, desc=f"decoding {split}", unit=" images", disable=hidden, leave=False)
    for i, position in enumerate(progress):
        where = f"{dataset}, split {split}, example {position}"
        try:
            example = next(iterator)
        except tf.errors.InvalidArgumentError as error:
            raise DataError(
                f"{where}: image or mask cannot be decoded; each must be a JPEG, PNG, GIF or BMP file"
            ) from error
        except (tf.errors.OpError, StopIteration) as error:
            raise DataError(
                f"{where}: the files of the data set under {source.builder.data_path} cannot be read: {one_line(error)}"
            ) from error
        name = example["name"].decode() or f"{split}/{position}"
        _check_example(example, f"{where} ({name})")
        keep(i, example)
        names.append(name)
        for key, values in labels.items():
            values[i] = example[key]
    return tuple(names), _groups(source.builder, labels)


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
    decode = tf.autograph.experimental.do_not_convert(lambda example: _decode(example, source.image_size, keys))
    return examples.map(decode, num_parallel_calls=parallel_decodes())


def native_masks(dataset: str, split: str, data_dir: str = "") -> Iterator[np.ndarray]:
    """The masks of a split at their own sizes, uint8 [H, W, 1], class ids, one after the other.

    Raises:
      DataError: as `load`.
    """
    examples = catalog.raw_examples(catalog.prepare(dataset, data_dir), split)
    at_once = parallel_decodes()
    for example in examples.map(lambda example: _decode_mask(example), num_parallel_calls=at_once).prefetch(at_once):
        yield example.numpy()


def _groups(builder: Any, labels: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    """Labels by name, but for those that tell nothing: all alike, unknown (-1), or the same as another's."""
    groups: dict[str, tuple[str, ...]] = {}
    for key, names in catalog.label_names(builder).items():
        values = labels[key]
        if values.min() >= 0 and len(set(values.tolist())) > 1:
            group = tuple(names[value] for value in values)
            if group not in groups.values():
                groups[key] = group
    return groups


def _decode_mask(example: dict[str, tf.Tensor]) -> tf.Tensor:
    return tf.io.decode_image(example["segmentation_mask"], channels=1, expand_animations=False) - 1


def _decode(example: dict[str, tf.Tensor], image_size: tuple[int, int], keys: Sequence[str]) -> dict[str, tf.Tensor]:
    image = tf.io.decode_image(example["image"], channels=3, expand_animations=False)
    trimap = tf.io.decode_image(example["segmentation_mask"], channels=1, expand_animations=False)
    facts = {
        "image_size": tf.shape(image)[:2],
        "mask_size": tf.shape(trimap)[:2],
        "lowest": tf.reduce_min(trimap),
        "highest": tf.reduce_max(trimap),
    }
    image.set_shape([None, None, 3])
    trimap.set_shape([None, None, 1])
    size = tf.constant(image_size)
    as_it_is = tf.reduce_all(facts["image_size"] == size) & tf.reduce_all(facts["mask_size"] == size)
    image, mask = tf.cond(as_it_is, lambda: (image, trimap), lambda: _resized(image, trimap, size))
    return {
        "image": tf.ensure_shape(image, [*image_size, 3]),
        "mask": tf.ensure_shape(mask - 1, [*image_size, 1]),
        "name": tf.convert_to_tensor(example.get("file_name", "")),
        **{key: example[key] for key in keys},
        **facts,
    }


def _resized(image: tf.Tensor, mask: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    image = tf.image.resize(tf.cast(image, tf.float32), size, method="bilinear", antialias=True)
    mask = tf.image.resize(mask, size, method="nearest")
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8), mask


def _check_example(example: dict[str, Any], where: str) -> None:
    """Raises DataError for an example that would train in silence and teach nonsense."""
    image_size, mask_size = tuple(example["image_size"].tolist()), tuple(example["mask_size"].tolist())
    if image_size != mask_size:
        raise DataError(
            f"{where}: the image is {image_size} (height, width), its mask {mask_size}; both must be one size"
        )
    if example["lowest"] < 1 or example["highest"] > len(CLASS_NAMES):
        raise DataError(
            f"{where}: the mask holds values from {example['lowest']} to {example['highest']}; "
            f"they must be 1 to {len(CLASS_NAMES)} ({', '.join(CLASS_NAMES)})"
        )
