"""What is wrong with the files of a data set. Faults are collected, not raised one by one, so that all can be told."""

import dataclasses
import enum
import shlex
from collections.abc import Collection, Iterable, Sequence

from petseg.config import DataConfig
from petseg.errors import DataError


class Kind(enum.Enum):
    """Kinds of faults, as a report counts them."""

    NO_MASK = "pictures without a mask"
    NO_PICTURE = "masks without a picture"
    AMBIGUOUS = "pictures or masks that cannot be told apart"
    LISTED = "names in a list of a split that no picture has"
    UNREADABLE = "files that cannot be read"
    SIZES = "pictures and masks of different sizes"
    SMALL = "pictures that are too small"
    INEXACT = "masks in a format that changes values"
    VALUES = "masks with values in no class"
    CLASSES = "classes that the masks do not have"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
      kind: which kind of fault.
      where: the file or folder, as the user knows it.
      what: what is wrong, and what must be, as it follows "FILE: ".
      split: the split that it concerns; empty if it concerns all.
    """

    kind: Kind
    where: str
    what: str
    split: str = dataclasses.field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def needed_splits(config: DataConfig, splits: Collection[str]) -> frozenset[str]:
    """The splits that must be without faults: those that --train_split and --eval_split name.

    All, where one of these does not exist, since it is then not known which splits are meant.
    """
    named = config.named_splits
    return named if named <= set(splits) else named.union(splits)


def partition(faults: Iterable[Fault], needed: Collection[str]) -> tuple[list[Fault], dict[str, list[Fault]]]:
    """The faults that stand in the way of a training; and, by split, those of splits that nobody needs."""
    blocking: dict[Fault, None] = {}
    others: dict[str, list[Fault]] = {}
    for fault in faults:
        if not fault.split or fault.split in needed:
            blocking[fault] = None
        else:
            others.setdefault(fault.split, []).append(fault)
    return list(blocking), others


def left_out_note(split: str, faults: Sequence[Fault]) -> str:
    """A note on a split that is not used because of its faults, since no flag names it."""
    more = f"; and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"split {split} is left out: {faults[0]}{more}"


def as_error(faults: Sequence[Fault], dataset: str, command: str) -> DataError:
    """An error of one line that names the first fault, says how many more there are, and what tells them all.

    Args:
      faults: at least one.
      dataset: the data set, or folder, as the user knows it.
      command: command that prints every fault.
    """
    more = len(faults) - 1
    others = f"; and {more} more fault{'s' if more > 1 else ''}" if more else ""
    return DataError(f"{dataset}: {faults[0]}{others}. Everything: {command}")


def check_command(config: DataConfig) -> str:
    """The command that prints everything that is wrong with a data set."""
    where = ("dataset", "data_dir", "image_files", "mask_files", "image_feature", "mask_feature", "classes")
    names = (*where, "train_split", "eval_split")  # the splits say which faults count
    values = {name: getattr(config, name) for name in names}
    flags = [f"--{name}={value}" for name, value in values.items() if value != getattr(DataConfig, name)]
    return shlex.join(["python", "-m", "petseg.data.check", *flags])
