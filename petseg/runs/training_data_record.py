"""Records the data that a run was trained and scored on; detects changed data and training images in other splits.

For --dataset=folder the record holds digests of all pictures and masks, which were computed when the folder was copied;
for other data sets, name, version and numbers of examples. Runs of older versions have no record: the splits that their
config names are then compared as they are now.
"""

import dataclasses
import logging
import zipfile
from pathlib import Path

import numpy as np

from petseg.classes import Classes
from petseg.config import DataConfig, folds
from petseg.data import catalog
from petseg.data.catalog import DataSet
from petseg.data.digests import Digests, write_arrays
from petseg.data.overlaps import SHOWN_NAMES, Overlap, listed
from petseg.errors import DataError, WorkDirectoryError, one_line
from petseg.runs import checkpoint_files
from petseg.runs.work_directory import WorkDirectory

logger = logging.getLogger(__name__)
SPLITS = ("train_split", "eval_split")  # names of flags
NOTHING = np.zeros(0, np.uint64)


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The data that a run is trained and scored on."""

    data_set: str  # name and version of the data set; `folder` for --dataset=folder
    examples: dict[str, int]  # number of examples of each split, by the name of its flag
    digests: dict[str, Digests]  # digests of the examples of each split that has them, by the name of its flag
    # digests of the pictures that the weights of --init_from were trained on, uint64 [M]
    seen_before: np.ndarray = dataclasses.field(default_factory=lambda: NOTHING)

    @classmethod
    def of(cls, data_set: DataSet, config: DataConfig, initial: "TrainingData | None" = None) -> "TrainingData":
        """The data of a config as it is now; `initial` is the record of the run of --init_from.

        Raises DataError if a split does not exist.
        """
        splits = {flag: getattr(config, flag) for flag in SPLITS}
        found = {flag: data_set.digests_of(split) for flag, split in splits.items()}
        return cls(
            data_set.version_of(splits.values()),
            {flag: data_set.num_examples(split) for flag, split in splits.items()},
            {flag: digests for flag, digests in found.items() if digests is not None},
            NOTHING if initial is None else initial.seen,
        )

    @classmethod
    def read(cls, path: Path) -> "TrainingData | None":
        """Reads a record; None if the file does not exist. Raises WorkDirectoryError if it cannot be read."""
        if not path.exists():
            return None
        try:
            with np.load(path) as arrays:
                digests = {
                    flag: Digests(*np.ascontiguousarray(arrays[f"{flag}_digests"].T))
                    for flag in SPLITS
                    if f"{flag}_digests" in arrays
                }
                examples = {flag: int(arrays[f"{flag}_examples"]) for flag in SPLITS}
                return cls(str(arrays["data_set"]), examples, digests, arrays["seen_before"])
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise WorkDirectoryError(
                f"{path}: cannot be read ({one_line(error)}); must be as training wrote it; if it is deleted, training "
                "images are recognised by the splits of the data set alone"
            ) from error

    def write(self, path: Path) -> None:
        """Writes the record atomically."""
        arrays = {
            "data_set": self.data_set,
            "seen_before": self.seen_before,
            **{f"{flag}_examples": count for flag, count in self.examples.items()},
            **{f"{flag}_digests": np.stack(digests, axis=1) for flag, digests in self.digests.items()},
        }
        write_arrays(path, arrays)

    @property
    def seen(self) -> np.ndarray:
        """Digests of all pictures that the weights were trained on, uint64 [N]."""
        trained_on = [self.digests["train_split"].pictures] if "train_split" in self.digests else []
        return np.concatenate([*trained_on, self.seen_before])

    def changes_to(self, now: "TrainingData", data_set: DataSet, config: DataConfig) -> str:
        """Describes what has changed since the record was written; empty if nothing has."""
        if self.data_set != now.data_set:
            return f"the data set was {self.data_set}, and is now {now.data_set}"
        for flag in SPLITS:
            split = getattr(config, flag)
            if flag in self.digests and flag in now.digests:
                what = _changes(self.digests[flag], now.digests[flag], data_set, split)
            else:
                before, after = self.examples[flag], now.examples[flag]
                what = "" if before == after else f"it had {before} examples, and has now {after}"
            if what:
                where = f" of --data_dir={config.data_dir}" if config.data_dir else ""
                return f"--{flag}={split}{where}: {what}"
        return ""


def _changes(before: Digests, now: Digests, data_set: DataSet, split: str) -> str:
    """Describes what has changed in the examples of a split; empty if nothing has."""
    changes = before.changes_to(now)

    def of(positions: np.ndarray) -> str:
        return listed(data_set.names_at(split, positions[:SHOWN_NAMES].tolist()), len(positions))

    parts = []
    if len(changes.added):
        parts.append(f"{_counted(len(changes.added), 'picture')} added{of(changes.added)}")
    if changes.removed:
        parts.append(f"{_counted(changes.removed, 'picture')} removed")
    if changes.growth and not parts:  # copies of existing pictures
        parts.append(f"it had {len(before.pictures)} examples, and has now {len(now.pictures)}")
    if changes.reordered:
        parts.append("the pictures were renamed, which changes their order")
    if len(changes.masks):
        what = "changed, or their weight maps" if data_set.weight_feature else "changed"
        parts.append(f"{_counted(len(changes.masks), 'mask')} {what}{of(changes.masks)}")
    return ", ".join(parts)


def _counted(count: int, noun: str) -> str:
    return f"1 {noun} was" if count == 1 else f"{count} {noun}s were"


def check_unchanged(now: TrainingData, data_set: DataSet, config: DataConfig, workdir: WorkDirectory) -> None:
    """Raises WorkDirectoryError if the data has changed since the start of a run that is to be resumed.

    Not for runs of older versions, which have no record.
    """
    before = TrainingData.read(workdir.data_file)
    what = "" if before is None else before.changes_to(now, data_set, config)
    if what:
        best = checkpoint_files.best_record(workdir.best)
        source = workdir.path if best else checkpoint_files.newest(workdir.checkpoints)
        raise WorkDirectoryError(
            f"--workdir={workdir.path}: belongs to a run that cannot be resumed with other data: {what}. Restore the "
            f"data, or start a new run from its weights with another --workdir and --init_from={source}"
        )


def warn_of_seen_images(data: TrainingData, data_set: DataSet, config: DataConfig, init_from: str) -> None:
    """Warns if the evaluation split contains images that the weights of --init_from were trained on."""
    if len(data.seen_before) and "eval_split" in data.digests:
        shared = data_set.overlap_with(config.eval_split, data.seen_before)
        if shared.examples:
            logger.warning(
                "--eval_split=%s: %d of its %d examples were trained on by --init_from=%s%s; scores on them do not "
                "generalise to other images",
                config.eval_split, shared.examples, data.examples["eval_split"], init_from, shared.listed,
            )  # fmt: skip


def trained_on(data_set: DataSet, split: str, config: DataConfig, record: TrainingData | None) -> Overlap:
    """The examples of a split that a run was trained on; without a record, its training split is taken as it is now.

    Raises DataError if the split does not exist.
    """
    if record is not None and record.digests and data_set.digests_of(split) is not None:
        return data_set.overlap_with(split, record.seen)
    if record is not None and folds.parse(split):
        now = data_set.version_of([getattr(config, flag) for flag in SPLITS])
        if now != record.data_set:
            raise DataError(
                f"{split}: the data set was {record.data_set}, and is now {now}, so that its folds may hold other "
                "examples; must be as in training"
            )
    return data_set.overlap(split, config.train_split)


def check_not_trained_on(
    split: str,
    config: DataConfig,
    classes: Classes,
    record: TrainingData | None,
    *,
    flag: str = "--split=",
    remedy: str = "--allow_training_images",
) -> None:
    """Raises DataError if a run was trained on examples of a split."""
    shared = trained_on(catalog.open_data(config, classes), split, config, record)
    if shared.examples:
        raise DataError(
            f"{flag}{split}: {shared.examples} of its images were trained on ({config.train_split}){shared.listed}; "
            f"a score on them does not generalise; {remedy} scores them nevertheless"
        )
