"""Faults in the files of a data set. They are collected rather than raised, so that one report lists them all."""

import dataclasses
import enum
import shlex
from collections.abc import Collection, Iterable, Sequence

from petseg.config import DataConfig
from petseg.errors import DataError


class Kind(enum.Enum):
    """Kinds of faults; the value is the text of a report."""

    NO_MASK = "images without a mask"
    NO_PICTURE = "masks without an image"
    AMBIGUOUS = "images or masks that cannot be told apart"
    LISTED = "names in a list of a split that no image has"
    UNREADABLE = "files that cannot be read"
    SIZES = "images and masks of different sizes"
    SMALL = "images that are too small"
    INEXACT = "masks in a format that changes values"
    VALUES = "masks with values in no class"
    RESAMPLED = "masks with values that interpolation made"
    PALETTES = "palettes that differ between masks"
    IMAGES = "images whose channels or pixel values cannot be used"
    WEIGHTS = "weight maps that are missing or cannot be used"
    PAGES = "images and masks of different numbers of pages"
    CLASSES = "problems with the classes in the masks"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault."""

    kind: Kind  # which kind of fault
    where: str  # the file or folder, relative to the data set's folder
    what: str  # what was found and what it must be; follows "FILE: " in messages
    split: str = dataclasses.field(default="", compare=False)  # the affected split; empty if all are affected

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def needed_splits(config: DataConfig, splits: Collection[str]) -> frozenset[str]:
    """The splits that must have no faults: those of --train_split and --eval_split; all if one of these is missing."""
    named = config.named_splits
    return named if named <= set(splits) else named.union(splits)


def partition(faults: Iterable[Fault], needed: Collection[str]) -> tuple[list[Fault], dict[str, list[Fault]]]:
    """Separates faults that prevent training from those in unneeded splits, which are grouped by split."""
    blocking: dict[Fault, None] = {}
    others: dict[str, list[Fault]] = {}
    for fault in faults:
        if not fault.split or fault.split in needed:
            blocking[fault] = None
        else:
            others.setdefault(fault.split, []).append(fault)
    return list(blocking), others


def left_out_note(split: str, faults: Sequence[Fault]) -> str:
    """A note that a split, which no flag names, is left out because of its faults."""
    more = f"; and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"split {split} is left out: {faults[0]}{more}"


def as_error(faults: Sequence[Fault], dataset: str, command: str) -> DataError:
    """A one-line error with the first of several faults, the number of others, and the command that prints them all."""
    more = len(faults) - 1
    others = f"; and {more} more fault{'s' if more > 1 else ''}" if more else ""
    return DataError(f"{dataset}: {faults[0]}{others}. All faults: {command}")


def check_command(config: DataConfig) -> str:
    """The command that prints all faults of a data set."""
    files = ("dataset", "data_dir", "image_files", "mask_files", "weight_files")
    where = (*files, "image_feature", "mask_feature", "weight_feature", "classes")
    images = ("channels", "image_dtype", "intensity_range", "pages")
    names = (*where, *images, "train_split", "eval_split", "group_files")  # faults count only in these splits
    values = {name: getattr(config, name) for name in names}
    flags = [f"--{name}={value}" for name, value in values.items() if value != getattr(DataConfig, name)]
    return shlex.join(["python", "-m", "petseg.data.check", *flags])
