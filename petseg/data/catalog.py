"""Data sets by their TFDS names: found on disk or downloaded, their splits, their undecoded examples.

The only module that asks TFDS for data.
"""

import contextlib
import io
import logging
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from petseg import files
from petseg.config.train_config import check_dataset_name
from petseg.errors import DataError, one_line
from petseg.runtime import autotuning

logger = logging.getLogger(__name__)


def prepare(dataset: str, data_dir: str) -> Any:
    """A builder whose files lie on disk, whatever their version; downloads them where they do not.

    Of several processes that find no files, one prepares them, and the others wait for it.

    Args:
      dataset: TFDS name, with a version where one is wanted (`oxford_iiit_pet:4.0.0`).
      data_dir: folder of prepared data sets; empty for TFDS's default.

    Raises:
      ConfigError: if the name is not a plain one.
      DataError: if the data set is unknown, or can neither be found nor be downloaded.
    """
    check_dataset_name(dataset)
    builder = _builder(dataset, data_dir)
    if builder.data_path.exists():
        return builder
    if builder.data_path.parent.exists() and ":" not in dataset:
        older = _builder(f"{dataset}:*.*.*", data_dir)  # perhaps another version than TFDS's newest lies on disk
        if older.data_path.exists():
            return older
    try:
        with _one_process_at_a_time(builder):
            builder = _builder(dataset, data_dir)
            if not builder.data_path.exists():
                _write(builder)
    except Exception as error:  # no network, a full disk, a moved archive: there is no common class
        if _is_embedded(builder.name):
            raise DataError(f"{dataset} cannot be drawn into {builder.data_path} ({one_line(error)})") from error
        raise DataError(
            f"{dataset} is neither under {builder.data_path.parent} nor can it be downloaded ({one_line(error)}). "
            "Give the folder of a prepared copy with --data_dir=PATH, or train on the embedded data set, which needs "
            "no download, with --dataset=synthetic_pets."
        ) from error
    return builder


def _builder(dataset: str, data_dir: str) -> Any:
    if _is_embedded(dataset.split(":")[0]):
        from petseg.data import synthetic_pets  # noqa: F401 (importing it registers the builder)
    where = {"data_dir": os.path.expanduser(data_dir)} if data_dir else {}
    try:
        return tfds.builder(dataset, **where)
    except Exception as error:  # TFDS raises whatever its readers and registries raise
        raise DataError(f"no data set {dataset}: {one_line(error)}") from error


def _is_embedded(name: str) -> bool:
    return name == "synthetic_pets"


def _one_process_at_a_time(builder: Any) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes from preparing the same files; those with one seed would write into one temporary folder.

    TFDS draws the name of that folder from Python's `random`, which every run seeds.
    """
    root = os.fspath(builder.data_dir_root)
    if "://" in root:  # a bucket, where no file can be locked
        return contextlib.nullcontext()
    Path(root).mkdir(parents=True, exist_ok=True)
    name = builder.info.full_name.replace("/", "-")
    return files.one_process_at_a_time(Path(root, f".{name}.lock"), f"prepares {builder.data_path}")


def _write(builder: Any) -> None:
    """Has TFDS write the files of a data set."""
    embedded = _is_embedded(builder.name)
    if embedded:
        logger.info("%s is drawn into %s", builder.name, builder.data_path)
    else:
        where = builder.data_path.parent
        logger.info("%s is not under %s: preparing it, with whatever TFDS must download", builder.name, where)
    if embedded or not (sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)):
        tfds.disable_progress_bar()  # in a log, its bars would be hundreds of lines
    # What TFDS prints speaks of a download of unknown size.
    quiet = contextlib.redirect_stdout(io.StringIO()) if embedded else contextlib.nullcontext()
    state = random.getstate()  # so that initial weights are those of a run that finds the files
    try:
        with quiet:
            builder.download_and_prepare()
    finally:
        random.setstate(state)


def num_examples(builder: Any, split: str) -> int:
    """The size of a split, which is at least 1.

    Raises:
      DataError: if the split does not exist or is empty.
    """
    count = sum(stop - start for _, start, stop in _ranges(builder, split))
    if count == 0:
        raise DataError(f"{builder.info.name}: split {split} is empty; sizes are {_split_sizes(builder.info)}")
    return count


def size(dataset: str, split: str, data_dir: str = "") -> int:
    """The number of examples of a split.

    Raises:
      DataError: as `prepare` and `num_examples`.
    """
    return num_examples(prepare(dataset, data_dir), split)


def overlap(dataset: str, first: str, second: str, data_dir: str = "") -> int:
    """The number of examples that two splits of a data set share.

    Raises:
      DataError: as `prepare`, or if there is no such split.
    """
    builder = prepare(dataset, data_dir)
    return sum(
        max(0, min(stop, other_stop) - max(start, other_start))
        for name, start, stop in _ranges(builder, first)
        for other_name, other_start, other_stop in _ranges(builder, second)
        if name == other_name
    )


def warn_of_shared_examples(dataset: str, train_split: str, eval_split: str, data_dir: str = "") -> None:
    """Warns if a run would be scored, and its best checkpoint be chosen, on examples that it trains on.

    Raises:
      DataError: as `overlap`.
    """
    shared = overlap(dataset, train_split, eval_split, data_dir)
    if shared:
        logger.warning(
            "--eval_split=%s: %d of its %d examples are in --train_split=%s too; scores on them, and the checkpoint "
            "that is the best by them, say little about other images",
            eval_split, shared, size(dataset, eval_split, data_dir), train_split,
        )  # fmt: skip


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
            f"{builder.info.name}: no split {split}; it must be one of {sizes}, or a slice such as 'train[:90%]'"
        ) from error


def _split_sizes(info: Any) -> str:
    return ", ".join(f"{name} ({part.num_examples} examples)" for name, part in sorted(info.splits.items()))


def card(dataset: str, data_dir: str = "") -> str:
    """What is known about a data set, as markdown: description, sizes of its splits, license, citation.

    Raises:
      DataError: as `prepare`.
    """
    info = prepare(dataset, data_dir).info
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


def as_tfds_gives_it(dataset: str, split: str, data_dir: str = "") -> tuple[tf.data.Dataset, int]:
    """A split as other programs get it, decoded at the pictures' own sizes, and the number of its examples.

    Raises:
      DataError: as `prepare` and `num_examples`.
    """
    builder = prepare(dataset, data_dir)
    return builder.as_dataset(split=split, shuffle_files=False), num_examples(builder, split)


def raw_examples(builder: Any, split: str, *, located: bool = False) -> tf.data.Dataset:
    """The examples of a split in their order, pictures not yet decoded; `tfds_id` of a located one says where it is."""
    config, log = tfds.ReadConfig(add_tfds_id=located), tf.get_logger()
    level = log.level
    log.setLevel(logging.ERROR)  # TFDS numbers examples with a function that TensorFlow warns of
    try:
        examples = builder.as_dataset(split=split, decoders=_undecoded(), shuffle_files=False, read_config=config)
        return examples.with_options(autotuning.off())
    finally:
        log.setLevel(level)


def parser(builder: Any) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Record -> example as `raw_examples` gives it, but for `tfds_id`."""
    decoders = _undecoded()
    return lambda record: builder.info.features.deserialize_example(record, decoders=decoders)


def _undecoded() -> dict[str, Any]:
    return {"image": tfds.decode.SkipDecoding(), "segmentation_mask": tfds.decode.SkipDecoding()}


def label_names(builder: Any) -> dict[str, list[str]]:
    """The class labels of a data set's examples: the names of their values."""
    features = builder.info.features
    return {key: features[key].names for key in features if isinstance(features[key], tfds.features.ClassLabel)}


def check_features(builder: Any) -> None:
    """Raises DataError if a data set has no images or no masks."""
    for feature in ("image", "segmentation_mask"):
        if feature not in builder.info.features:
            raise DataError(
                f"{builder.info.name}: has no feature {feature!r}, only {', '.join(sorted(builder.info.features))}"
            )
