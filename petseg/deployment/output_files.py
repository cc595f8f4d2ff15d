"""The files that `--predict` writes for a photograph: mask, overlay, cut-out, probabilities."""

import dataclasses
import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

from petseg import files as files_lib
from petseg.classes import Classes
from petseg.deployment import picture_encoding, probability_files
from petseg.deployment.georeference import NONE, Georeference
from petseg.deployment.probability_files import PROBABILITY
from petseg.deployment.segmentation import Segmentation
from petseg.deployment.signed_files import is_signed
from petseg.errors import DataError, one_line

MASK, OVERLAY, CUTOUT = ".mask", ".overlay.jpg", ".cutout.png"
_OWN_NAME = re.compile(r"\.(mask\.(png|tif)|overlay\.jpg|cutout\.png|probability\..+\.(png|tif)|probabilities\.npz)$")
OVERLAY_OPACITY = 0.5


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Which files are written for each photograph."""

    classes: Classes  # the classes of the masks
    cutout: bool = False  # whether to write cut-outs
    mask_values: str = "ids"  # what the masks hold, one of MASK_VALUES
    probabilities: str = "none"  # `png`, `npz` or `none`

    def endings(self, georeference: Georeference = NONE) -> tuple[str, ...]:
        """The endings of a photograph's output files; the mask's is the first."""
        cutout = (CUTOUT,) if self.cutout else ()
        suffix = georeference.suffix
        probabilities = probability_files.endings(self.probabilities, self.classes.names, suffix)
        return (MASK + suffix, OVERLAY, *cutout, *probabilities)

    def write(self, target: Path, segmentation: Segmentation, georeference: Georeference = NONE) -> Path:
        """Writes the output files of a photograph, each of them even if another fails; returns the mask's file.

        Args:
          target: path of the output files without their endings.

        Raises:
          DataError: if some of the outputs could not be written.
          OSError: if the disk is full or not writable, so that all other photographs would fail, too.
        """
        mask_file = output_file(target, MASK + georeference.suffix)
        rows, shape, names = segmentation.probability_rows, segmentation.mask.shape, self.classes.names
        encode = picture_encoding.write
        writers: dict[str, Callable[[], object]] = {
            MASK: lambda: encode(mask_file, segmentation.mask_picture(self.mask_values), georeference),
            OVERLAY: lambda: encode(output_file(target, OVERLAY), segmentation.overlay(OVERLAY_OPACITY)),
        }
        if self.cutout:
            writers[CUTOUT] = lambda: encode(output_file(target, CUTOUT), segmentation.cutout())
        if self.probabilities != "none":
            writers[f"--probabilities={self.probabilities}"] = lambda: probability_files.write(
                target, self.probabilities, rows, shape, names, georeference
            )
        failed = []
        for what, write in writers.items():
            try:
                write()
            except Exception as error:  # Pillow's encoders raise OSError, ValueError, struct.error and more
                if files_lib.is_disk_error(error):
                    raise
                failed.append(f"{what}: {_reason(error)}")
        if failed:
            raise DataError("; ".join(failed))
        return mask_file

    def foreign(self, target: Path, georeference: Georeference = NONE) -> Path | None:
        """An existing file that an output would replace and that petseg did not write; None if there is none."""
        for ending in self.endings(georeference):
            file = output_file(target, ending)
            if os.path.lexists(file):
                if not is_own(file):
                    return file
            elif ending.startswith((MASK, PROBABILITY)):
                for beside, content in georeference.sidecars(file).items():
                    if os.path.lexists(beside) and not (beside.is_file() and beside.read_bytes() == content):
                        return beside
        return None


def output_file(target: Path, ending: str) -> Path:
    """The path of an output file of a photograph."""
    return target.with_name(target.name + ending)


def is_own(file: Path) -> bool:
    """Whether petseg wrote a file as an output and it is unchanged since."""
    try:
        return bool(_OWN_NAME.search(file.name)) and is_signed(file)
    except OSError:
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "this name is too long; the photograph's must be shorter"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if isinstance(error, DataError) else one_line(error)
