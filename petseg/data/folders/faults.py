"""What is wrong with the files of a data set. Faults are collected, not raised one by one, so that all can be told."""

import dataclasses
import enum
import shlex
from collections.abc import Sequence

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
    """

    kind: Kind
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def error(faults: Sequence[Fault], dataset: str, command: str) -> DataError:
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
    names = ("dataset", "data_dir", "image_files", "mask_files", "image_feature", "mask_feature", "classes")
    values = {name: getattr(config, name) for name in names}
    flags = [f"--{name}={value}" for name, value in values.items() if value != getattr(DataConfig, name)]
    return shlex.join(["python", "-m", "petseg.data.check", *flags])
