"""Data sets by their names: found on disk, downloaded or made of folders; their splits, their undecoded examples.

The only module that asks TFDS for data.
"""

import contextlib
import dataclasses
import io
import logging
import os
import random
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from petseg import files
from petseg.classes import PETS, Classes
from petseg.config import DataConfig
from petseg.config.data_config import FOLDER, check_dataset_name, named_splits
from petseg.data import digests
from petseg.data.digests import Digests
from petseg.data.record_files import RecordFiles, RecordRange
from petseg.errors import DataError, one_line
from petseg.runtime import autotuning

logger = logging.getLogger(__name__)
EMBEDDED = "synthetic_pets"
KNOWN_CLASSES = {"oxford_iiit_pet": PETS, EMBEDDED: PETS}
NAME_FEATURE = "file_name"
ARRAY_RECORD = "array_record"
SHOWN_NAMES = 3


class Overlap(NamedTuple):
    """The examples that a split shares with another one.

    Attributes:
      examples: their number.
      names: the names of the first few, where their contents were compared.
    """

    examples: int
    names: tuple[str, ...] = ()

    @property
    def listed(self) -> str:
        """The names in brackets, with a space before them; empty without names."""
        return listed(self.names, self.examples)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set whose files lie on disk.

    Attributes:
      name: its name as the user gives it.
      builder: its TFDS builder.
      classes: its classes.
      image_feature: name of the feature with the images.
      mask_feature: name of the feature with the masks.
      holds_ids: whether its masks hold class ids, and not the values that the classes have in somebody's masks.
    """

    name: str
    builder: Any
    classes: Classes
    image_feature: str = "image"
    mask_feature: str = "segmentation_mask"
    holds_ids: bool = False

    @property
    def mask_channels(self) -> int:
        """Channels of a mask in the files."""
        return 3 if self.classes.colored and not self.holds_ids else 1

    @property
    def mask_dtype(self) -> tf.DType:
        """Dtype of the values of a mask in the files: uint8 or uint16."""
        return tf.as_dtype(self.builder.info.features[self.mask_feature].np_dtype)

    @property
    def full_name(self) -> str:
        """Its name with config and version, which tells it from any other."""
        return self.builder.info.full_name

    def num_examples(self, split: str) -> int:
        """The size of a split, which is at least 1.

        Raises:
          DataError: if the split does not exist or is empty.
        """
        count = sum(stop - start for _, start, stop in self._ranges(split))
        if count == 0:
            raise DataError(f"{self.name}: split {split} is empty; sizes are {self.split_sizes()}")
        return count

    def overlap(self, split: str, other: str) -> "Overlap":
        """The examples of a split whose pictures another split has too.

        The copy of a folder is compared by the contents of its pictures, any other data set by the positions of its
        examples.

        Raises:
          DataError: if there is no such split.
        """
        theirs = self.digests_of(other)
        if theirs is not None:
            return self.overlap_with(split, theirs.pictures)
        return Overlap(
            sum(
                max(0, min(stop, other_stop) - max(start, other_start))
                for name, start, stop in self._ranges(split)
                for other_name, other_start, other_stop in self._ranges(other)
                if name == other_name
            )
        )

    def overlap_with(self, split: str, pictures: np.ndarray) -> "Overlap":
        """The examples of a split of a folder's copy whose pictures are among those of some digests, uint64 [M]."""
        mine = self.digests_of(split)
        assert mine is not None
        positions = np.flatnonzero(np.isin(mine.pictures, pictures))
        return Overlap(len(positions), self.names_at(split, positions[:SHOWN_NAMES].tolist()))

    def digests_of(self, split: str) -> Digests | None:
        """The digests of a split's examples; None where there are none: only the copy of a folder has them.

        Raises:
          DataError: if there is no such split, or the file of the digests cannot be read.
        """
        ranges = self._ranges(split)
        if self.name != FOLDER:
            return None
        file = Path(self.builder.data_path) / digests.FILE
        try:
            stored = digests.read(file)
            return digests.joined([stored[name].part(start, stop) for name, start, stop in ranges])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            what = f"{file}: cannot be read ({one_line(error)})"
            raise DataError(f"{what}; delete {file.parent}, and it is written anew from the folder") from error

    def names_at(self, split: str, positions: Iterable[int]) -> tuple[str, ...]:
        """The names of a few examples of a split; no picture is decoded."""
        names: list[str] = []
        for position in positions:
            for name, start, stop in self._ranges(split):
                if position < stop - start:
                    at = start + position
                    (example,) = self.raw_examples(f"{name}[{at}:{at + 1}]")
                    names.append(example["name"].numpy().decode() or f"{name}/{at}")
                    break
                position -= stop - start
        return tuple(names)

    def split_sizes(self) -> str:
        """The splits and the numbers of their examples, in words."""
        splits = sorted(self.builder.info.splits.items())
        return ", ".join(f"{name} ({part.num_examples} examples)" for name, part in splits)

    def card(self) -> str:
        """What is known about it, as markdown: description, sizes of its splits, classes, license, citation."""
        info = self.builder.info
        facts = {
            "name": info.full_name,
            "splits": self.split_sizes(),
            "classes": ", ".join(self.classes.names),
            "homepage": info.homepage,
            "license": info.redistribution_info.license,
        }
        rows = [f"| {name} | {' '.join(text.split())} |" for name, text in facts.items() if text]
        table = ["| | |", "| --- | --- |", *rows]
        citation = f"```\n{info.citation.strip()}\n```" if info.citation else ""
        return "\n\n".join(part for part in (info.description.strip(), "\n".join(table), citation) if part)

    def raw_examples(self, split: str) -> tf.data.Dataset:
        """The examples of a split in their order: `image` and `mask`, not yet decoded, `name`, and their labels.

        File after file: then the position of an example says where its record is.
        """
        if self.file_format == ARRAY_RECORD:  # which TensorFlow cannot read
            records = RecordFiles(self.record_ranges(split))
            return self.parsed(records.in_order(range(len(records))))
        examples = self.builder.as_dataset(
            split=split,
            decoders=self._undecoded(),
            shuffle_files=False,
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
        )
        return examples.map(tf.autograph.experimental.do_not_convert(self._renamed)).with_options(autotuning.off())

    @property
    def file_format(self) -> str:
        """The format of its files as TFDS calls it, such as `tfrecord`."""
        return str(self.builder.info.file_format.value)

    def record_ranges(self, split: str) -> list[RecordRange]:
        """Where the records of a split are, in the order of its examples.

        Raises:
          DataError: if there is no such split.
        """
        self._ranges(split)
        return [
            RecordRange(Path(part.filename), part.skip, part.take, part.examples_in_shard)
            for part in self.builder.info.splits[split].file_instructions
        ]

    def parsed(self, records: tf.data.Dataset) -> tf.data.Dataset:
        """Records -> examples as `raw_examples` gives them."""
        parser = tf.autograph.experimental.do_not_convert(self.parser())
        return records.map(parser).with_options(autotuning.off())

    def parser(self) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        """Record -> example as `raw_examples` gives it."""
        decoders = self._undecoded()
        return lambda record: self._renamed(self.builder.info.features.deserialize_example(record, decoders=decoders))

    def label_names(self) -> dict[str, list[str]]:
        """The class labels of examples as wholes: the names of their values."""
        features = self.builder.info.features
        return {key: features[key].names for key in features if isinstance(features[key], tfds.features.ClassLabel)}

    def _renamed(self, example: dict[str, Any]) -> dict[str, tf.Tensor]:
        renamed = {
            "image": example[self.image_feature],
            "mask": example[self.mask_feature],
            "name": tf.convert_to_tensor(example.get(NAME_FEATURE, "")),
        }
        return {**renamed, **{key: example[key] for key in self.label_names()}}

    def _undecoded(self) -> dict[str, Any]:
        return {feature: tfds.decode.SkipDecoding() for feature in (self.image_feature, self.mask_feature)}

    def _ranges(self, split: str) -> list[tuple[str, int, int]]:
        """A split as stretches (name, start, stop) of the data set's own splits."""
        splits = self.builder.info.splits
        try:
            parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
            return [
                (part.splitname, part.from_ or 0, splits[part.splitname].num_examples if part.to is None else part.to)
                for part in parts
            ]
        except (ValueError, AssertionError, KeyError) as error:
            metadata = self.builder.info.metadata
            lacking = metadata.get("left_out", {}) if isinstance(metadata, dict) else {}
            why = "".join(f" ({text})" for name, text in lacking.items() if name in named_splits(split))
            raise DataError(
                f"{self.name}: no split {split}{why}; it must be one of {self.split_sizes()}, or a slice such as "
                "'train[:90%]'"
            ) from error


def open_data(config: DataConfig, classes: Classes | None = None) -> DataSet:
    """The data set of a config, whatever its version; downloaded, or made of its folders, where it is not on disk.

    Of several processes that find no files, one prepares them, and the others wait for it.

    Args:
      config: which data set, where.
      classes: its classes; None: those that the config names or the data set brings.

    Raises:
      ConfigError: if the classes cannot be used.
      DataError: if the data set is unknown, can neither be found nor be downloaded, or lacks images, masks or classes.
    """
    if config.dataset == FOLDER:
        from petseg.data.folders import folder_copy

        builder, classes = folder_copy.prepare(config, classes)
        return DataSet(config.dataset, builder, classes, holds_ids=True)
    classes = classes or _named_classes(config)
    builder = prepare(config.dataset, config.data_dir)
    data_set = DataSet(config.dataset, builder, classes, config.image_feature, config.mask_feature)
    _check_features(data_set)
    return data_set


def classes_of(config: DataConfig) -> Classes:
    """The classes of a data set, which is opened only if that takes it.

    Raises:
      PetsegError: as `open_data`.
    """
    return open_data(config).classes if config.dataset == FOLDER else _named_classes(config)


def _named_classes(config: DataConfig) -> Classes:
    """The classes that a file names, or that are known of the data set."""
    if config.classes:
        return Classes.read(config.classes_file)
    name = config.dataset.split(":")[0].split("/")[0]
    if name not in KNOWN_CLASSES:
        _builder(config.dataset, config.data_dir)  # which raises if there is no such data set
        raise DataError(f"{config.dataset}: its classes are not known here; --classes must be a file that names them")
    return KNOWN_CLASSES[name]


def _check_features(data_set: DataSet) -> None:
    features, classes = data_set.builder.info.features, data_set.classes
    for flag, feature in (("image", data_set.image_feature), ("mask", data_set.mask_feature)):
        if feature not in features or not isinstance(features[feature], tfds.features.Image):
            pictures = ", ".join(sorted(key for key in features if isinstance(features[key], tfds.features.Image)))
            raise DataError(
                f"{data_set.name}: --{flag}_feature={feature}: must be a feature that is a picture"
                f" ({pictures or 'there is none'}); all: {', '.join(sorted(features))}"
            )
    channels = features[data_set.mask_feature].shape[-1]
    if classes.colored != (channels == 3):
        what = "colours" if classes.colored else "numbers"
        raise DataError(
            f"{data_set.name}: its masks have {channels} channels, and the classes have {what} as values; must be "
            + ("numbers" if classes.colored else "colours")
        )


def open_with_splits(config: DataConfig) -> DataSet:
    """Opens a data set that must have the splits of --train_split and --eval_split; a folder must before it is read.

    Raises:
      DataError: if one is not there, which names the flag, or as `open_data`.
      ConfigError: as `open_data`.
    """
    if config.dataset == FOLDER:
        from petseg.data.folders import folder_layout

        folder_layout.check_splits(config)
    data_set = open_data(config)
    for flag, split in (("train_split", config.train_split), ("eval_split", config.eval_split)):
        try:
            data_set.num_examples(split)
        except DataError as error:
            raise DataError(f"--{flag}={split}: {error}") from error
    return data_set


def num_examples(config: DataConfig, split: str, classes: Classes | None = None) -> int:
    """The number of examples of a split.

    Raises:
      DataError: as `open_data` and `DataSet.num_examples`.
    """
    return open_data(config, classes).num_examples(split)


def warn_of_shared_examples(data_set: DataSet, train_split: str, eval_split: str) -> None:
    """Warns if a run would be scored, and its best checkpoint be chosen, on examples that it trains on.

    Raises:
      DataError: if there is no such split.
    """
    shared = data_set.overlap(eval_split, train_split)
    if shared.examples:
        logger.warning(
            "--eval_split=%s: %d of its %d examples are in --train_split=%s too%s; scores on them, and the checkpoint "
            "that is the best by them, say little about other images",
            eval_split, shared.examples, data_set.num_examples(eval_split), train_split, shared.listed,
        )  # fmt: skip


def listed(names: Sequence[str], count: int) -> str:
    """The first few of so many names in brackets, with a space before them; empty without names."""
    more = ", ..." if count > len(names) else ""
    return f" ({', '.join(names)}{more})" if names else ""


def tfds_dataset(config: DataConfig, split: str) -> tuple[tf.data.Dataset, int]:
    """A split as other programs get it, decoded at the pictures' own sizes, and the number of its examples.

    Raises:
      DataError: as `open_data` and `DataSet.num_examples`.
    """
    data_set = open_data(config)
    return data_set.builder.as_dataset(split=split, shuffle_files=False), data_set.num_examples(split)


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
    builder, is_there = _on_disk(dataset, data_dir)
    if is_there:
        return builder
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


def is_on_disk(config: DataConfig) -> bool:
    """Whether the files of a data set are there, so that opening it downloads and draws nothing."""
    if config.dataset == FOLDER:
        return bool(config.data_dir) and Path(config.data_dir).expanduser().is_dir()
    try:
        return _on_disk(config.dataset, config.data_dir)[1]
    except DataError:  # there is no such data set
        return False


def _on_disk(dataset: str, data_dir: str) -> tuple[Any, bool]:
    """A builder, and whether its files are there; of a version that is, if any is and none is asked for."""
    check_dataset_name(dataset)
    builder = _builder(dataset, data_dir)
    if builder.data_path.exists():
        return builder, True
    if builder.data_path.parent.exists() and ":" not in dataset:
        older = _builder(f"{dataset}:*.*.*", data_dir)  # perhaps another version than TFDS's newest lies on disk
        if older.data_path.exists():
            return older, True
    return builder, False


def _builder(dataset: str, data_dir: str) -> Any:
    if _is_embedded(dataset.split(":")[0]):
        from petseg.data import synthetic_pets  # noqa: F401 (importing it registers the builder)
    where = {"data_dir": os.path.expanduser(data_dir)} if data_dir else {}
    try:
        return tfds.builder(dataset, **where)
    except Exception as error:  # TFDS raises whatever its readers and registries raise
        raise DataError(f"no data set {dataset}: {one_line(error)}") from error


def _is_embedded(name: str) -> bool:
    return name == EMBEDDED


def _one_process_at_a_time(builder: Any) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes from preparing the same files; those with one seed would write into one temporary folder.

    TFDS draws the name of that folder from Python's `random`, which every run seeds.
    """
    root = os.fspath(builder.data_dir_root)
    if "://" in root:  # a bucket, where no file can be locked
        return contextlib.nullcontext()
    Path(root).mkdir(parents=True, exist_ok=True)
    name = builder.info.full_name.replace("/", "-")
    return files.process_lock(Path(root, f".{name}.lock"), f"prepares {builder.data_path}")


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
