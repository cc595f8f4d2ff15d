"""Loads a split of a data set into the backend of --cache: memory, disk, or decoding on demand."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from petseg.classes import Classes
from petseg.config import DataConfig
from petseg.data import catalog, example_decoding, image_flags, prefetching, random_crops, subsampling
from petseg.data.backends.disk import Cache, DiskExamples
from petseg.data.backends.memory import MemoryExamples, aligned_array
from petseg.data.backends.on_demand import OnDemandExamples, distinguishing_labels
from petseg.data.example_decoding import BadExampleError
from petseg.data.examples import Examples
from petseg.data.folders import faults, weight_map_survey
from petseg.data.folders.faults import Kind
from petseg.data.mask_survey import MaskSurvey
from petseg.data.random_crops import RandomCrops
from petseg.data.split_source import SplitSource
from petseg.errors import DataError, one_line
from petseg.runtime.progress_bars import progress_bar

ARRAYS_AT_ONCE = 16  # decoded examples
SURVEYED_MASKS = 200
logger = logging.getLogger(__name__)


def check_labels(examples: Examples, config: DataConfig, *, flag: str, split: str) -> None:
    """Raises DataError for a split, or a sample of one, without a labelled pixel, where every score would be 0 / 0."""
    try:
        if examples.has_labels():
            return
    except DataError:  # bad examples are reported when they are trained on or scored
        return
    drawn = f" drawn by --eval_examples={len(examples)}" if examples.sampling else ""
    height, width = config.size
    raise DataError(
        f"{flag}{split}: none of its {len(examples)} masks{drawn} has a pixel in a class at {height} x {width}; "
        f"must be a split with labels; there are {catalog.open_data(config, examples.classes).split_sizes()}"
    )


def load(config: DataConfig, split: str, classes: Classes | None = None, *, for_training: bool = False) -> Examples:
    """Loads a split: decodes and checks it now, or with --cache=none each example when it is fetched.

    Args:
      for_training: enables random crops (--resize=crop), --decode and --on_bad_example. Evaluation uses centre crops,
        decodes at full size and stops at a bad example.

    Raises:
      DataError: if the data set cannot be opened, lacks a feature, or has a bad example.
      ConfigError: if the classes are invalid, or the disk cache cannot be written.
    """
    source = SplitSource.open(config, split, classes)
    base, chosen = source.data_set.part_of(split)
    if config.cache == "disk" and chosen is not None:  # the folds share one cache
        fold = load(config, base, classes, for_training=for_training).subset(chosen)
        fold.origin = source.origin
        return fold
    if for_training:
        _judge_masks(source, config)
    if for_training and config.resize == "crop":
        source = source.on_canvases()
    if for_training and config.decode == "scaled":
        source = source.with_scaled_decoding()
    try:
        examples = _load(source, config, ignore_bad=for_training and config.on_bad_example == "ignore")
    except BadExampleError as error:
        raise DataError(f"{error}. All faults: {faults.check_command(config)}") from error
    return examples if source.picture_sizes is None else RandomCrops(examples, config.size, source.picture_sizes)


def _judge_masks(source: SplitSource, config: DataConfig) -> None:
    """Warns of possible mistakes in the masks and weight maps as a whole; the checker does the same with all splits.

    Looks at SURVEYED_MASKS masks, and at more until there are two classes. For a folder, this was done for its copy.
    Raises DataError if their values contradict the classes.
    """
    data_set = source.data_set
    notes = [*data_set.mask_notes, *weight_map_survey.notes(data_set.weight_rows, config.weight_scale)]
    if not data_set.holds_ids:
        survey = MaskSurvey(data_set.classes)
        for number, (position, facts) in enumerate(source.mask_facts(spread=SURVEYED_MASKS), 1):
            survey.add(f"mask of {source.split}/{position}", facts)
            if number >= SURVEYED_MASKS and survey.has_classes:
                break
        found = survey.faults()
        if not survey.ignores_pixels:  # all in one class: a poor choice of a split, but nothing is misread
            found = [fault for fault in found if fault.kind is not Kind.CLASSES]
        if found:
            raise faults.as_error(found, data_set.name, faults.check_command(config))
        notes = survey.notes()
    for note in notes:
        logger.warning("%s: %s", data_set.name, note)


def _load(source: SplitSource, config: DataConfig, *, ignore_bad: bool) -> Examples:
    if config.cache == "disk":
        return _on_disk(source, config.cache_dir)
    if config.cache == "memory":
        return _in_memory(source)
    assert source.records is not None
    logger.info("%s: %d examples will be decoded and checked on demand", source.split, source.count)
    command = faults.check_command(config)
    return OnDemandExamples(source, source.records, ignore_bad=ignore_bad, check_command=command)


def load_some(
    config: DataConfig, split: str, classes: Classes | None = None, *, count: int, spread: bool = False
) -> MemoryExamples:
    """Loads at most `count` examples of a split into memory: the first ones, or with `spread` evenly spaced ones."""
    # Sequential reading of a few examples needs no random access.
    config = dataclasses.replace(config, cache="memory", on_bad_example="stop", data_service="")
    source = SplitSource.open(config, split, classes)
    positions = source.positions[:: math.ceil(source.count / count)] if spread else source.positions[:count]
    return _in_memory(dataclasses.replace(source, positions=positions))


def _in_memory(source: SplitSource) -> MemoryExamples:
    channels, dtype = source.images.spec.channels, np.dtype(source.images.spec.travels_as)
    of_weight = np.dtype(source.weight_dtype).itemsize if source.weight_dtype else 0
    size = math.prod(source.shape(channels * dtype.itemsize + 1 + of_weight)) / 2**20
    logger.info("%s: %d examples at %d x %d take %.0f MiB of memory", source.split, *source.shape(1)[:3], size)
    arrays = {"image": aligned_array(source.shape(channels), dtype), "mask": aligned_array(source.shape(1))}
    if source.weight_dtype:
        arrays["weight"] = aligned_array(source.shape(1), np.dtype(source.weight_dtype))

    def keep(i: int, example: dict[str, Any]) -> None:
        for name, array in arrays.items():
            array[i] = example[name]

    names, groups = _decode_all(source, keep)
    classes, weights = source.data_set.classes, arrays.get("weight")
    return MemoryExamples(arrays["image"], arrays["mask"], classes, names, groups, source.origin, weights)


def _on_disk(source: SplitSource, cache_dir: str) -> Examples:
    data_set, spec = source.data_set, dataclasses.replace(source.images.spec, shown_channels=())
    key = {
        "dataset": data_set.full_name,
        "features": [data_set.image_feature, data_set.mask_feature],
        "values": [each.values if each.more_values else each.value for each in data_set.classes.members],
        "ignored": data_set.classes.ignored,
        "resize": source.resizing.method,
        "split": source.split,
        "files": data_set.state_of(source.split),
        "tensorflow": tf.__version__,  # its decoders may change
        **({"decode": "scaled"} if source.scaled else {}),
        **({"weights": data_set.weight_feature} if source.weight_dtype else {}),
        **(
            {}
            if spec.is_plain and spec.channels == 3
            else {"images": [*dataclasses.astuple(source.images.bands), *dataclasses.astuple(spec)]}
        ),
    }
    cache = Cache(
        cache_dir,
        f"{data_set.full_name}-{source.split}",
        key,
        source.count,
        source.resizing.size,
        spec.channels,
        spec.travels_as,
        source.weight_dtype,
    )
    names, groups = cache.ensure_written(lambda keep: _decode_all(source, lambda _, example: keep(example)))
    return DiskExamples(cache, data_set.classes, names, groups, source.origin)


def _decode_all(
    source: SplitSource, keep: Callable[[int, dict[str, Any]], None]
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Decodes all examples in order, passes each with its index to `keep`, and returns names and groups."""
    data_set, split = source.data_set, source.split
    names, labels = [], {key: np.full(source.count, -1) for key in data_set.label_names()}
    iterator = _decoded_arrays(source, source.undecoded(), [*labels])
    progress = progress_bar(source.positions, logger, what=f"decoding {split}", unit="images")
    for i, position in enumerate(progress):
        where = source.where(position)
        try:
            example = next(iterator)
        except (tf.errors.OpError, StopIteration) as error:
            source.check_record(position)
            if isinstance(error, tf.errors.InvalidArgumentError):
                raise BadExampleError(f"{where}: {example_decoding.UNDECODABLE}") from error
            raise DataError(f"{where}: {data_set.location} cannot be read: {one_line(error)}") from error
        name = example["name"].decode() or "{}/{}".format(*source.place(position))
        example_decoding.check_example(example, f"{where} ({name})")
        if source.picture_sizes is not None:
            random_crops.check_size(source.picture_sizes[i], example["image_size"], f"{where} ({name})")
        keep(i, example)
        names.append(name)
        for key, values in labels.items():
            values[i] = example[key]
    return tuple(names), distinguishing_labels(data_set.label_names(), labels)


def _decoded_arrays(source: SplitSource, raw: tf.data.Dataset, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Decoded examples as arrays, transferred in batches, since transferring one takes as long as decoding it."""
    count = 0
    with contextlib.suppress(tf.errors.OpError):
        for batch in source.decoded(raw, keys).batch(ARRAYS_AT_ONCE).prefetch(1).as_numpy_iterator():
            for i in range(len(batch["image"])):
                yield {key: values[i] for key, values in batch.items()}
                count += 1
    if count < source.count:  # one by one, up to the example that cannot be read
        yield from source.decoded(raw.skip(count), keys).as_numpy_iterator()


def native_pairs(
    config: DataConfig, split: str, classes: Classes | None = None, *, ids: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, ...]]:
    """Images in transport format [H, W, C] and class ids uint8 [H, W, 1] of a split at native resolution, in order.

    If the split has weight maps, they come third, [H, W, 1]. With `ids`, int64 [K], only those at these ascending
    positions.
    """
    data_set = catalog.open_data(config, classes)
    at_once = prefetching.decodes_at_once()
    without_conversion = tf.autograph.experimental.do_not_convert
    images = image_flags.decoding_of(config, data_set)
    weights = data_set.weight_dtype(split)
    decode = without_conversion(lambda example: example_decoding.decoded_pair(data_set, images, example, weights))
    raw = data_set.raw_examples(split)
    raw = raw if ids is None else subsampling.elements_at(raw, ids)
    for problem, *pair in raw.map(decode, at_once).prefetch(at_once).as_numpy_iterator():
        if problem:
            raise DataError(f"{data_set.name}, split {split}: a mask {problem.decode()}")
        yield tuple(pair)
