"""The files that `--predict` writes for a photograph: mask, overlay, cut-out, probabilities."""

import dataclasses
import errno
import functools
import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from petseg import files as files_lib
from petseg.classes import Classes
from petseg.deployment import probability_files
from petseg.deployment.picture_encoding import encoded
from petseg.deployment.segmentation import Segmentation
from petseg.deployment.signed_files import is_signed
from petseg.errors import DataError, one_line

MASK, OVERLAY, CUTOUT = ".mask.png", ".overlay.jpg", ".cutout.png"
_OWN_NAME = re.compile(r"\.(mask\.png|overlay\.jpg|cutout\.png|probability\..+\.png|probabilities\.npz)$")
OVERLAY_OPACITY = 0.5


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Which files are written for each photograph.

    Attributes:
      classes: the classes of the masks.
      cutout: whether to write cut-outs.
      mask_values: what the masks hold, one of MASK_VALUES.
      probabilities: `png`, `npz` or `none`.
    """

    classes: Classes
    cutout: bool = False
    mask_values: str = "ids"
    probabilities: str = "none"

    @property
    def endings(self) -> tuple[str, ...]:
        """The endings of a photograph's output files; the mask's is the first."""
        cutout = (CUTOUT,) if self.cutout else ()
        return (MASK, OVERLAY, *cutout, *probability_files.endings(self.probabilities, self.classes.names))

    def write(self, target: Path, segmentation: Segmentation) -> Path:
        """Writes the output files of a photograph, each of them even if another fails; returns the mask's file.

        Args:
          target: path of the output files without their endings.
          segmentation: what to write.

        Raises:
          DataError: if some of the outputs could not be written.
          OSError: if the disk is full or not writable, so that all other photographs would fail, too.
        """
        writers: dict[str, Callable[[], object]] = {
            MASK: lambda: _write_picture(output_file(target, MASK), segmentation.mask_picture(self.mask_values)),
            OVERLAY: lambda: _write_picture(output_file(target, OVERLAY), segmentation.overlay(OVERLAY_OPACITY)),
        }
        if self.cutout:
            writers[CUTOUT] = lambda: _write_picture(output_file(target, CUTOUT), segmentation.cutout())
        if self.probabilities != "none":
            save = functools.partial(segmentation.save_probabilities, target, self.probabilities)
            writers[f"--probabilities={self.probabilities}"] = save
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
        return output_file(target, MASK)


def output_file(target: Path, ending: str) -> Path:
    """The path of an output file of a photograph."""
    return target.with_name(target.name + ending)


def is_own(file: Path) -> bool:
    """Whether petseg wrote a file as an output and it is unchanged since."""
    try:
        return bool(_OWN_NAME.search(file.name)) and is_signed(file)
    except OSError:
        return False


def _write_picture(file: Path, picture: Image.Image) -> None:
    files_lib.write_bytes(file, encoded(picture, file.suffix))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "this name is too long; the photograph's must be shorter"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if isinstance(error, DataError) else one_line(error)
