"""Data sets by name: their classes, splits, undecoded examples and overlaps of splits."""

import dataclasses
import functools
import json
import logging
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from petseg import custom_code
from petseg.classes import PETS, Classes
from petseg.config import DataConfig, folds as fold_names
from petseg.config.data_config import AUTO, FOLDER, named_splits
from petseg.data import digests, folds, picture_files, subsampling, tfds_builders
from petseg.data.digests import Digests
from petseg.data.folders.faults import Fault
from petseg.data.images import BandCounts, joined
from petseg.data.overlaps import SHOWN_NAMES, Overlap
from petseg.data.record_files import ChosenRecords, RecordFiles, RecordRange, Records
from petseg.errors import DataError, one_line
from petseg.runtime import autotuning

logger = logging.getLogger(__name__)
KNOWN_CLASSES = {"oxford_iiit_pet": PETS, tfds_builders.EMBEDDED: PETS}
NAME_FEATURE = "file_name"
ARRAY_RECORD = "array_record"


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A prepared TFDS data set. Methods raise DataError for a split that does not exist."""

    name: str  # value of --dataset
    builder: Any  # its TFDS builder
    classes: Classes
    image_feature: str = "image"  # feature with the images
    mask_feature: str = "segmentation_mask"  # feature with the masks
    # whether masks hold class ids, as copies of folders do, instead of the classes' own values or colours
    holds_ids: bool = False
    weight_feature: str = ""  # feature with the weight maps; empty without
    config: DataConfig = dataclasses.field(default_factory=DataConfig)  # what it was opened with

    @property
    def mask_notes(self) -> list[str]:
        """Possible mistakes in the masks of a folder, as stored in its copy."""
        return list(self._metadata.get("mask_notes", [])) if self.holds_ids else []

    @property
    def _metadata(self) -> Mapping[str, Any]:
        metadata = self.builder.info.metadata
        return metadata if isinstance(metadata, Mapping) else {}

    @property
    def weight_rows(self) -> Mapping[str, Sequence[Any]]:
        """Dtype and largest number of the weight maps in the copy of a folder, by split."""
        return self._metadata.get("weights", {}) if self.holds_ids else {}

    @property
    def holds_weight_files(self) -> bool:
        """Whether weight maps are picture files, as in copies of folders, instead of arrays of a TFDS feature."""
        return self.holds_ids

    def weight_dtype(self, split: str) -> str:
        """Dtype of the weight maps of a split; empty if it has none. Raises DataError if they are of several kinds."""
        dtypes = {name: self._weight_dtype(name) for name, positions in self._positions(split) if len(positions)}
        if len(set(dtypes.values())) > 1:
            each = ", ".join(f"{name}: {dtype or 'none'}" for name, dtype in dtypes.items())
            raise DataError(f"{self.name}: split {split} has weight maps of several kinds ({each}); must be one")
        return next(iter(dtypes.values()), "")

    def _weight_dtype(self, name: str) -> str:
        """Dtype of the weight maps of one of the data set's own splits; empty without."""
        if not self.weight_feature:
            return ""
        if self.holds_weight_files:
            return self.weight_rows.get(name, ("",))[0]
        return np.dtype(self.builder.info.features[self.weight_feature].np_dtype).name

    def band_counts(self, splits: Collection[str]) -> BandCounts:
        """The bands of the images of some splits; of all if there are none of these."""
        if self.name == FOLDER:
            from petseg.data.folders import folder_copy

            return joined(folder_copy.band_counts(self.builder), splits)
        feature = self.builder.info.features[self.image_feature]
        dtype, with_alpha = np.dtype(feature.np_dtype).name, feature.shape[-1] == 4
        if dtype not in ("uint8", "uint16"):
            raise DataError(f"{self.name}: feature {self.image_feature} has {dtype}; must have uint8 or uint16")
        return BandCounts([[dtype, 3, with_alpha, 1, int(with_alpha), f"feature {self.image_feature}"]])

    @property
    def full_name(self) -> str:
        """TFDS name with config and version."""
        return self.builder.info.full_name

    @property
    def location(self) -> str:
        """Where the examples are, for messages."""
        return f"the files under {self.builder.data_path}"

    def version_of(self, splits: Collection[str]) -> str:
        """Identifier of the data set, for the record of a run."""
        return FOLDER if self.name == FOLDER else self.full_name

    def state_of(self, split: str) -> list[Any]:
        """JSON values that change with the examples of a split: names, sizes and times of all files."""
        files = [file for file in sorted(Path(self.builder.data_path).iterdir()) if file.is_file()]
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    def num_examples(self, split: str) -> int:
        """Number of examples of a split; raises DataError if it is empty."""
        count = sum(len(positions) for _, positions in self._positions(split))
        if count == 0:
            raise DataError(f"{self.name}: split {split} is empty; sizes are {self.split_sizes()}")
        return count

    def overlap(self, split: str, other: str) -> Overlap:
        """Examples of a split that are also in another split.

        Copies of folders are compared by the contents of their images, other data sets by example positions.
        """
        if (theirs := self.digests_of(other)) is not None:
            return self.overlap_with(split, theirs.pictures)
        return Overlap(
            sum(
                int(np.isin(mine, its).sum())
                for name, mine in self._positions(split)
                for other_name, its in self._positions(other)
                if name == other_name
            )
        )

    def overlap_with(self, split: str, pictures: np.ndarray) -> Overlap:
        """Examples of a split of a folder copy whose image digests are among `pictures`, uint64 [M]."""
        mine = self.digests_of(split)
        assert mine is not None
        positions = np.flatnonzero(np.isin(mine.pictures, pictures))
        return Overlap(len(positions), self.names_at(split, positions[:SHOWN_NAMES].tolist()))

    def digests_of(self, split: str) -> Digests | None:
        """Content digests of a split's examples; None except for the copy of a folder."""
        places = self._positions(split)
        if self.name != FOLDER:
            return None
        file = Path(self.builder.data_path) / digests.FILE
        try:
            stored = digests.read(file)
            return digests.joined([stored[name].part(positions) for name, positions in places])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            what = f"{file}: cannot be read ({one_line(error)})"
            raise DataError(f"{what}; delete {file.parent} and rerun to copy the folder again") from error

    def names_at(self, split: str, positions: Iterable[int]) -> tuple[str, ...]:
        """Names of the examples at a few positions of a split, without decoding images."""
        places = [(name, at) for name, numbers in self._positions(split) for at in numbers.tolist()]
        names: list[str] = []
        for name, at in (places[position] for position in positions):
            (example,) = self.raw_examples(f"{name}[{at}:{at + 1}]")
            names.append(example["name"].numpy().decode() or f"{name}/{at}")
        return tuple(names)

    def names(self, split: str) -> list[str]:
        """Names of a split's examples, without decoding images. Raises DataError if they cannot be read."""
        places = [(name, at) for name, numbers in self._positions(split) for at in numbers.tolist()]
        name_of = tf.autograph.experimental.do_not_convert(lambda example: example["name"])
        found = self.raw_examples(split).map(name_of).as_numpy_iterator()
        try:
            return [text.decode() or f"{name}/{at}" for text, (name, at) in zip(found, places, strict=True)]
        except tf.errors.OpError as error:
            raise DataError(f"{self.name}, split {split}: {self.location} cannot be read: {one_line(error)}") from error

    def groups(self, split: str) -> tuple[str, ...]:
        """The group of each example (--group_files)."""
        base, chosen = self.part_of(split)
        opened_by = self.config.changed(channels=0, image_dtype=AUTO, intensity_range=AUTO, on_bad_example="stop")
        groups = _groups(opened_by, self.classes, base, json.dumps(self.state_of(base)))
        return groups if chosen is None else tuple(groups[i] for i in chosen.tolist())

    def part_of(self, split: str) -> tuple[str, np.ndarray | None]:
        """The split that folds are made of, and the positions there, ascending int64 [K]; None if it is no fold."""
        fold = fold_names.parse(split)
        if fold is None:
            return split, None
        try:
            numbers = folds.fold_numbers(self.groups(fold.base), fold.total, self.config.fold_seed)
        except DataError as error:
            raise DataError(f"{self.name}, split {fold.base}: {error}") from error
        return fold.base, np.flatnonzero((numbers == fold.number) != fold.without)

    def split_sizes(self) -> str:
        """The splits and their numbers of examples, for messages."""
        return ", ".join(f"{name} ({count} examples)" for name, count in sorted(self.sizes().items()))

    def sizes(self) -> dict[str, int]:
        """Numbers of examples by split."""
        return {name: part.num_examples for name, part in self.builder.info.splits.items()}

    def card(self) -> str:
        """Data set card in Markdown: description, splits, classes, license, citation."""
        info = self.builder.info
        table = self._table(homepage=info.homepage, license=info.redistribution_info.license)
        citation = f"```\n{info.citation.strip()}\n```" if info.citation else ""
        return "\n\n".join(part for part in (info.description.strip(), table, citation) if part)

    def _table(self, **more: str) -> str:
        classes = ", ".join(self.classes.names)
        facts = {"name": self.full_name, "splits": self.split_sizes(), "classes": classes, **more}
        rows = [f"| {name} | {' '.join(text.split())} |" for name, text in facts.items() if text]
        return "\n".join(["| | |", "| --- | --- |", *rows])

    def files_of(self, split: str) -> Iterator[tuple[str, bytes, bytes, bytes] | Fault]:
        """Name, image, mask and weight map, empty without, of each example as contents of files, for the checker."""
        for i, example in enumerate(self.raw_examples(split).as_numpy_iterator()):
            weight = b""
            if self.weight_feature:
                feature = self.builder.info.features[self.weight_feature]
                weight = picture_files.as_npy(np.asarray(feature.decode_example(example["weight"])))
            yield example["name"].decode() or f"{split}/{i}", example["image"], example["mask"], weight

    def raw_examples(self, split: str) -> tf.data.Dataset:
        """Undecoded examples of a split in order: `image`, `mask`, `weight`, `name`, class labels of whole examples."""
        if (records := self.records(split)) is not None:  # which TensorFlow cannot read
            return self.parsed(records.in_order(range(len(records))))
        base, chosen = self.part_of(split)
        examples = self.builder.as_dataset(
            split=base,
            decoders=self._undecoded(),
            shuffle_files=False,
            read_config=tfds.ReadConfig(interleave_cycle_length=1),  # file after file, so that positions are fixed
        )
        examples = examples if chosen is None else subsampling.elements_at(examples, chosen)
        return examples.map(tf.autograph.experimental.do_not_convert(self._renamed)).with_options(autotuning.off())

    @property
    def file_format(self) -> str:
        """TFDS file format, such as `tfrecord`."""
        return str(self.builder.info.file_format.value)

    def records(self, split: str) -> Records | None:
        """Random access to a split's records; None if its file format has none."""
        base, chosen = self.part_of(split)
        records = self._records(base)
        return records if records is None or chosen is None else ChosenRecords(records, chosen)

    def _records(self, split: str) -> Records | None:
        """`records` of a split that is no fold."""
        self._ranges(split)
        if self.file_format != ARRAY_RECORD:
            return None
        parts = self.builder.info.splits[split].file_instructions
        return RecordFiles([RecordRange(Path(part.filename), part.skip, part.take) for part in parts])

    def parsed(self, records: tf.data.Dataset) -> tf.data.Dataset:
        """Parses a data set of records into examples as in `raw_examples`."""
        parser = tf.autograph.experimental.do_not_convert(self.parser())
        return records.map(parser).with_options(autotuning.off())

    def parser(self) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        """A function from a record to an example as in `raw_examples`."""
        decoders = self._undecoded()
        return lambda record: self._renamed(self.builder.info.features.deserialize_example(record, decoders=decoders))

    def label_names(self) -> dict[str, list[str]]:
        """Names of the values of each class label of whole examples, such as breeds."""
        features = self.builder.info.features
        return {key: features[key].names for key in features if isinstance(features[key], tfds.features.ClassLabel)}

    def _renamed(self, example: dict[str, Any]) -> dict[str, tf.Tensor]:
        renamed = {
            "image": example[self.image_feature],
            "mask": example[self.mask_feature],
            "name": tf.convert_to_tensor(example.get(NAME_FEATURE, "")),
        }
        if self.weight_feature:
            renamed["weight"] = example[self.weight_feature]
        return {**renamed, **{key: example[key] for key in self.label_names()}}

    def _undecoded(self) -> dict[str, Any]:
        features = filter(None, (self.image_feature, self.mask_feature, self.weight_feature))
        return {feature: tfds.decode.SkipDecoding() for feature in features}

    def _positions(self, split: str) -> list[tuple[str, np.ndarray]]:
        """A split as positions, int64 [K], in the data set's own splits, by name."""
        base, chosen = self.part_of(split)
        found, first = [], 0
        for name, start, stop in self._ranges(base):
            positions = np.arange(start, stop)
            if chosen is not None:
                inside = chosen[(chosen >= first) & (chosen < first + stop - start)]
                positions = positions[inside - first]
            found.append((name, positions))
            first += stop - start
        return found

    def _ranges(self, split: str) -> list[tuple[str, int, int]]:
        """A split that is no fold as ranges (name, start, stop) of the data set's own splits."""
        splits = self._splits_in(split)
        try:
            parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
            return [
                (part.splitname, part.from_ or 0, splits[part.splitname].num_examples if part.to is None else part.to)
                for part in parts
            ]
        except (ValueError, AssertionError, KeyError) as error:
            lacking = self._metadata.get("left_out", {})
            why = "".join(f" ({text})" for name, text in lacking.items() if name in named_splits(split))
            raise DataError(
                f"{self.name}: no split {split}{why}; it must be one of {self.split_sizes()}, or a slice such as "
                "'train[:90%]'"
            ) from error

    def _splits_in(self, split: str) -> Mapping[str, Any]:
        """TFDS's descriptions of splits by name, at least of those that a split names."""
        return self.builder.info.splits


def open_data(config: DataConfig, classes: Classes | None = None) -> DataSet:
    """Opens the data set of a config; downloads it, or copies its folders, if it is not on disk yet.

    Raises ConfigError if the classes are invalid, and DataError if the data set is unknown, cannot be prepared, or
    lacks images, masks or classes.
    """
    if config.dataset == FOLDER:
        from petseg.data.folders import folder_copy

        builder, classes = folder_copy.prepare(config, classes)
        weight_feature = folder_copy.WEIGHT if config.weight_files else ""
        return DataSet(config.dataset, builder, classes, holds_ids=True, weight_feature=weight_feature, config=config)
    if custom_code.is_reference(config.dataset):
        from petseg.data import custom_data

        return custom_data.open_data(config, classes)
    classes = classes or _named_classes(config)
    builder = tfds_builders.prepare(config.dataset, config.data_dir)
    features = config.image_feature, config.mask_feature
    data_set = DataSet(config.dataset, builder, classes, *features, weight_feature=config.weight_feature, config=config)
    tfds_builders.check_features(builder, config, classes)
    return data_set


@functools.lru_cache(maxsize=4)
def _groups(config: DataConfig, classes: Classes, split: str, state: str) -> tuple[str, ...]:
    """The groups of a split whose files are in a `state`, read once in a process since that takes a pass over them."""
    return tuple(folds.group_of(name, config) for name in open_data(config, classes).names(split))


def classes_of(config: DataConfig) -> Classes:
    """The classes of a data set; only folders and data of user code must be opened for them."""
    is_opened = config.dataset == FOLDER or custom_code.is_reference(config.dataset)
    return open_data(config).classes if is_opened else _named_classes(config)


def _named_classes(config: DataConfig) -> Classes:
    """The classes of --classes, or the known ones of a data set."""
    if config.classes:
        return Classes.read(config.classes_file)
    name = config.dataset.split(":")[0].split("/")[0]
    if name not in KNOWN_CLASSES:
        tfds_builders.load_builder(config.dataset, config.data_dir)  # raises if the data set does not exist
        raise DataError(f"{config.dataset}: petseg does not know its classes; --classes must be a file that names them")
    return KNOWN_CLASSES[name]


def open_with_splits(config: DataConfig) -> DataSet:
    """Opens a data set and checks that it has --train_split and --eval_split; of a folder, before it is copied.

    Raises:
      DataError: if a split does not exist (names the flag), or as `open_data`.
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


def is_on_disk(config: DataConfig) -> bool:
    """Whether a data set can be opened without downloading or drawing it."""
    if config.dataset == FOLDER:
        return bool(config.data_dir) and Path(config.data_dir).expanduser().is_dir()
    if custom_code.is_reference(config.dataset):
        return True
    try:
        return tfds_builders.find_builder(config.dataset, config.data_dir)[1]
    except DataError:  # unknown data set
        return False
