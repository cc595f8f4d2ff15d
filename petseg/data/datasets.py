"""TFDS name -> decoded uint8 examples in host memory.

The only module that imports TFDS. Masks are coded as in Oxford-IIIT Pet, 1 pet, 2 background, 3 border, and leave here
as class ids, one less.
"""

import dataclasses
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
import tqdm

from petseg.config import CLASS_NAMES
from petseg.errors import DataError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Examples:
    """A split, decoded and resized.

    Attributes:
      images: uint8 [N, S, S, 3].
      masks: uint8 [N, S, S, 1], class ids.
      names: N names to recognise examples by: file names where the data set has them, else `<split>/<position>`.
      groups: for each class label in which examples differ, such as `species`, its name for each of the N.
    """

    images: np.ndarray
    masks: np.ndarray
    names: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


def load(dataset: str, split: str, image_size: int, data_dir: str = "") -> Examples:
    """Decodes a split into memory.

    Images are resized bilinearly with antialiasing, masks by nearest neighbour: anything smoother would invent classes
    between the real ones.

    Args:
      dataset: TFDS name, with a version where one is wanted (`oxford_iiit_pet:4.0.0`).
      split: TFDS split or slice.
      image_size: side S of the result, in pixels.
      data_dir: folder of prepared data sets; empty for TFDS's default.

    Raises:
      DataError: if the data set cannot be had, lacks a feature, or holds an example that cannot be used.
    """
    builder = _prepared_builder(dataset, data_dir)
    _check_features(builder)
    count = num_examples(builder, split)
    _log_memory(split, count, image_size)
    images = np.empty((count, image_size, image_size, 3), np.uint8)
    masks = np.empty((count, image_size, image_size, 1), np.uint8)
    names, labels = [], {key: np.full(count, -1) for key in _label_names(builder)}
    examples = _raw(builder, split).map(
        lambda example: _decode(example, image_size, list(labels)), num_parallel_calls=os.cpu_count()
    )
    iterator = examples.prefetch(64).as_numpy_iterator()
    hidden = None if logger.isEnabledFor(logging.INFO) else True  # None: where the output is no terminal
    for i in tqdm.trange(count, desc=f"decoding {split}", unit=" images", disable=hidden, leave=False):
        try:
            example = next(iterator)
        except tf.errors.InvalidArgumentError as error:
            raise DataError(
                f"{dataset}, split {split}, example {i}: image or mask cannot be decoded; takes JPEG, PNG, GIF or BMP"
            ) from error
        except (tf.errors.OpError, StopIteration) as error:
            raise DataError(
                f"{dataset}, split {split}, example {i}: the files of the data set under {builder.data_path} "
                f"cannot be read: {_plain(error)}"
            ) from error
        name = example["name"].decode() or f"{split}/{i}"
        _check_example(example, f"{dataset}, split {split}, example {i} ({name})")
        images[i], masks[i] = example["image"], example["mask"]
        names.append(name)
        for key, values in labels.items():
            values[i] = example[key]
    return Examples(images, masks, tuple(names), _groups(builder, labels))


def native_masks(dataset: str, split: str, data_dir: str = "") -> Iterator[np.ndarray]:
    """The masks of a split at their own sizes, uint8 [H, W, 1], class ids, one after the other.

    Raises:
      DataError: as `load`.
    """
    examples = _raw(_prepared_builder(dataset, data_dir), split)
    for example in examples.map(lambda example: _decode_mask(example), num_parallel_calls=os.cpu_count()).prefetch(64):
        yield example.numpy()


def size(dataset: str, split: str, data_dir: str = "") -> int:
    """The number of examples of a split.

    Raises:
      DataError: as `load`.
    """
    return num_examples(_prepared_builder(dataset, data_dir), split)


def card(dataset: str, data_dir: str = "") -> str:
    """What is known about a data set, as markdown: description, sizes of its splits, license, citation.

    Raises:
      DataError: if the data set cannot be had.
    """
    info = _prepared_builder(dataset, data_dir).info
    facts = {
        "name": info.full_name,
        "splits": _split_sizes(info),
        "homepage": info.homepage,
        "license": info.redistribution_info.license,
    }
    rows = [f"| {name} | {' '.join(text.split())} |" for name, text in facts.items() if text]
    table = ["| | |", "| --- | --- |", *rows]
    citation = f"```\n{info.citation.strip()}\n```" if info.citation else ""
    return "\n\n".join(part for part in (info.description.strip(), "\n".join(table), citation) if part)


def overlap(dataset: str, first: str, second: str, data_dir: str = "") -> int:
    """The number of examples that two splits of a data set share."""
    builder = _prepared_builder(dataset, data_dir)
    return sum(
        max(0, min(stop, other_stop) - max(start, other_start))
        for name, start, stop in _ranges(builder, first)
        for other_name, other_start, other_stop in _ranges(builder, second)
        if name == other_name
    )


def num_examples(builder: Any, split: str) -> int:
    """The size of a split, which is at least 1.

    Raises:
      DataError: if the split does not exist or is empty.
    """
    count = sum(stop - start for _, start, stop in _ranges(builder, split))
    if count == 0:
        raise DataError(f"{builder.info.name}: split {split} is empty; sizes are {_split_sizes(builder.info)}")
    return count


def _ranges(builder: Any, split: str) -> list[tuple[str, int, int]]:
    """A split as stretches (name, start, stop) of the data set's own splits."""
    splits = builder.info.splits
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
        return [
            (part.splitname, part.from_ or 0, splits[part.splitname].num_examples if part.to is None else part.to)
            for part in parts
        ]
    except (ValueError, AssertionError, KeyError) as error:
        sizes = _split_sizes(builder.info)
        raise DataError(
            f"{builder.info.name}: no split {split}; takes {sizes}, or a slice such as 'train[:90%]'"
        ) from error


def _split_sizes(info: Any) -> str:
    return ", ".join(f"{name} ({part.num_examples} examples)" for name, part in sorted(info.splits.items()))


def _prepared_builder(dataset: str, data_dir: str) -> Any:
    """A builder whose files lie on disk, whatever their version; downloads them where they do not."""
    if dataset.split(":")[0] == "synthetic_pets":
        from petseg.data import synthetic_pets  # noqa: F401 (importing it registers the builder)
    where = {"data_dir": os.path.expanduser(data_dir)} if data_dir else {}
    try:
        builder = tfds.builder(dataset, **where)
    except Exception as error:  # TFDS raises whatever its readers and registries raise
        raise DataError(f"no data set {dataset}: {_plain(error)}") from error
    if builder.data_path.exists():
        return builder
    if builder.data_path.parent.exists() and ":" not in dataset:
        older = tfds.builder(f"{dataset}:*.*.*", **where)  # perhaps another version than TFDS's newest lies on disk
        if older.data_path.exists():
            return older
    logger.info("%s is not under %s: preparing it, with whatever TFDS must download", dataset, builder.data_path.parent)
    if not (sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)):
        tfds.disable_progress_bar()  # in a log, its bars would be hundreds of lines
    try:
        builder.download_and_prepare()
    except Exception as error:  # no network, a full disk, a moved archive: there is no common class
        raise DataError(
            f"{dataset} is neither under {builder.data_path.parent} nor can it be downloaded ({_plain(error)}). "
            "Give the folder of a prepared copy with --data_dir=PATH, or train on the embedded data set, which needs "
            "no download, with --dataset=synthetic_pets."
        ) from error
    return builder


def _raw(builder: Any, split: str) -> tf.data.Dataset:
    """The examples of a split in their order, pictures not yet decoded."""
    decoders = {"image": tfds.decode.SkipDecoding(), "segmentation_mask": tfds.decode.SkipDecoding()}
    return builder.as_dataset(split=split, decoders=decoders, shuffle_files=False)


def _label_names(builder: Any) -> dict[str, list[str]]:
    """The class labels of a data set's examples: the names of their values."""
    features = builder.info.features
    return {key: features[key].names for key in features if isinstance(features[key], tfds.features.ClassLabel)}


def _groups(builder: Any, labels: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    """Labels by name, but for those that tell nothing: all alike, unknown (-1), or the same as another's."""
    groups: dict[str, tuple[str, ...]] = {}
    for key, names in _label_names(builder).items():
        values = labels[key]
        if values.min() >= 0 and len(set(values.tolist())) > 1:
            group = tuple(names[value] for value in values)
            if group not in groups.values():
                groups[key] = group
    return groups


def _check_features(builder: Any) -> None:
    for feature in ("image", "segmentation_mask"):
        if feature not in builder.info.features:
            raise DataError(
                f"{builder.info.name}: has no feature {feature!r}, only {', '.join(sorted(builder.info.features))}"
            )


def _log_memory(split: str, count: int, image_size: int) -> None:
    size = count * image_size * image_size * 4
    logger.info("%s: %d examples at %d px take %.0f MiB of memory", split, count, image_size, size / 2**20)


def _decode_mask(example: dict[str, tf.Tensor]) -> tf.Tensor:
    return tf.io.decode_image(example["segmentation_mask"], channels=1, expand_animations=False) - 1


def _decode(example: dict[str, tf.Tensor], image_size: int, labels: Sequence[str]) -> dict[str, tf.Tensor]:
    image = tf.io.decode_image(example["image"], channels=3, expand_animations=False)
    trimap = tf.io.decode_image(example["segmentation_mask"], channels=1, expand_animations=False)
    facts = {
        "image_size": tf.shape(image)[:2],
        "mask_size": tf.shape(trimap)[:2],
        "lowest": tf.reduce_min(trimap),
        "highest": tf.reduce_max(trimap),
    }
    mask = trimap - 1
    image.set_shape([None, None, 3])
    mask.set_shape([None, None, 1])
    size = [image_size, image_size]
    image = tf.image.resize(tf.cast(image, tf.float32), size, method="bilinear", antialias=True)
    mask = tf.image.resize(mask, size, method="nearest")
    return {
        "image": tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8),
        "mask": mask,
        "name": tf.convert_to_tensor(example.get("file_name", "")),
        **{key: example[key] for key in labels},
        **facts,
    }


def _check_example(example: dict[str, Any], where: str) -> None:
    """Raises DataError for an example that would train in silence and teach nonsense."""
    image_size, mask_size = tuple(example["image_size"].tolist()), tuple(example["mask_size"].tolist())
    if image_size != mask_size:
        raise DataError(f"{where}: the image is {image_size} (height, width), its mask {mask_size}; takes one size")
    if example["lowest"] < 1 or example["highest"] > len(CLASS_NAMES):
        raise DataError(
            f"{where}: the mask holds values from {example['lowest']} to {example['highest']}; "
            f"takes 1 to {len(CLASS_NAMES)} ({', '.join(CLASS_NAMES)})"
        )


def _plain(error: Exception) -> str:
    """An error of a library on one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
