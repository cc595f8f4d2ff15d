"""Which photographs `--predict` means, where what is made of them goes, and what of it is there already."""

import dataclasses
import glob
import io
import itertools
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from petseg import files as files_lib
from petseg.classes import Classes
from petseg.deployment.photographs import SUFFIXES
from petseg.deployment.signed_pictures import is_signed, signed
from petseg.errors import ConfigError, DataError, WorkDirectoryError

logger = logging.getLogger(__name__)
MASK, OVERLAY, CUTOUT = ".mask.png", ".overlay.jpg", ".cutout.png"
OVERLAY_OPACITY = 0.5


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photograph to be predicted.

    Attributes:
      file: its file.
      target: path of what is made of it, without the endings.
    """

    file: Path
    target: Path

    def outputs(self, endings: Iterable[str]) -> list[Path]:
        """What is made of it."""
        return [self.target.with_name(self.target.name + ending) for ending in endings]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `--predict` is to do.

    Attributes:
      photographs: the photographs, in order.
      output_dir: folder to write to.
      cutout: whether to write cut-outs.
      skipped: number of photographs of which everything is there already.
    """

    photographs: tuple[Photograph, ...]
    output_dir: str
    cutout: bool = False
    skipped: int = 0

    @classmethod
    def make(cls, pattern: str, output_dir: str, *, cutout: bool = False, skip_existing: bool = False) -> "Plan":
        """Looks for photographs, and at what is there already; reads no photograph.

        Subfolders stay as they are below the folder, or below that part of a glob which has no wildcards. Where names
        would clash, also on a disk that takes `Cat` and `cat` for one, they keep the photograph's suffix, and a number
        if need be. What an earlier call wrote is replaced, and is never taken for a photograph; a file of anybody
        else's, or that has been changed since, is never replaced.

        Args:
          pattern: a glob (`**` goes into subfolders), a file, or a folder, with its subfolders.
          output_dir: folder to write to.
          cutout: whether to write cut-outs.
          skip_existing: whether to leave out photographs of which everything is there, as petseg wrote it.

        Raises:
          DataError: if nothing matches.
          WorkDirectoryError: if a file that petseg did not write is in the place of one that is to be written.
        """
        matches = _matches(pattern)
        files = find_files(pattern, matches)
        if own := len(matches) - len(files):
            logger.info("--predict=%s: %d files that petseg wrote are no photographs: passed over", pattern, own)
        found = [
            Photograph(*pair) for pair in zip(files, _targets(files, _root(pattern), Path(output_dir)), strict=True)
        ]
        endings = _endings(cutout)
        to_do = []
        for photograph in found:
            there = [file for file in photograph.outputs(endings) if os.path.lexists(file)]
            for file in there:
                if not _is_own(file):
                    raise WorkDirectoryError(
                        f"--output_dir={output_dir}: {file} would be overwritten, and is not as petseg wrote it; "
                        "must be another folder"
                    )
            if not skip_existing or len(there) < len(endings):
                to_do.append(photograph)
        return cls(tuple(to_do), output_dir, cutout, skipped=len(found) - len(to_do))

    def write(
        self, photograph: Photograph, image: np.ndarray, ids: np.ndarray, alpha: np.ndarray | None, classes: Classes
    ) -> Path:
        """Writes what is made of a photograph; returns the mask's file.

        Args:
          photograph: the photograph.
          image: what it shows, uint8 [H, W, 3].
          ids: class ids, uint8 [H, W].
          alpha: how much of each pixel is foreground, uint8 [H, W]; None where no class is.
          classes: the classes.
        """
        mask = Image.fromarray(ids)
        mask.putpalette(classes.palette[: len(classes)].tobytes())
        mask_file, overlay_file, *cutout_file = photograph.outputs(_endings(self.cutout))
        _save(mask, mask_file, "PNG")
        _save(blended(image, ids, classes, OVERLAY_OPACITY), overlay_file, "JPEG", quality=92)
        if cutout_file and alpha is not None:
            _save(Image.fromarray(np.dstack([image, alpha])), cutout_file[0], "PNG")
        return mask_file


def find_files(pattern: str, matches: Sequence[Path] | None = None) -> list[Path]:
    """The photographs that a glob, or a folder's name, stands for, sorted; without what petseg wrote.

    Args:
      pattern: as in `Plan.make`.
      matches: the files that match, if they are known.

    Raises:
      DataError: if there are none.
    """
    matches = _matches(pattern) if matches is None else matches
    if not matches:
        kinds = " ".join(SUFFIXES)
        if os.path.isdir(os.path.expanduser(pattern)):
            raise DataError(f"--predict={pattern}: holds no file ending in {kinds}, nor do its subfolders")
        raise DataError(
            f"--predict={pattern}: matches no file; must be a glob, or a folder with files ending in {kinds}"
        )
    files = [file for file in matches if not _is_own(file)]
    if not files:
        raise DataError(f"--predict={pattern}: matches only masks and overlays that petseg wrote; must be photographs")
    return files


def check_foreground(classes: Classes) -> None:
    """Raises ConfigError if nothing can be cut out, because no class is foreground."""
    if not classes.foreground.any():
        raise ConfigError(
            f"--cutout: none of the classes {', '.join(classes.names)} is foreground; the run's classes file must say "
            'of one: "foreground": true'
        )


def blended(image: np.ndarray, mask: np.ndarray, classes: Classes, opacity: float) -> Image.Image:
    """A picture uint8 [H, W, 3] with the colours of its classes, uint8 [H, W], over it."""
    return Image.blend(Image.fromarray(image), Image.fromarray(classes.palette[mask]), opacity)


def _endings(cutout: bool) -> tuple[str, ...]:
    return (MASK, OVERLAY, CUTOUT) if cutout else (MASK, OVERLAY)


def _matches(pattern: str) -> list[Path]:
    path = Path(os.path.expanduser(pattern))
    if path.is_dir():
        return sorted(_photographs_below(path))
    return sorted({Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name)})


def _photographs_below(folder: Path) -> Iterator[Path]:
    """Files named like photographs, in subfolders too; not what is hidden, as other systems' thumbnails are."""
    for where, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (
            Path(where, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        )


def _root(pattern: str) -> Path:
    """The folder below which subfolders are kept."""
    path = Path(os.path.expanduser(pattern)).absolute()
    if path.is_dir():
        return path
    if path.exists():
        return path.parent
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    return Path(*fixed[: len(path.parts) - 1])


def _is_own(file: Path) -> bool:
    """Whether `predict_files` wrote a file, and nobody has changed it since."""
    try:
        return file.name.endswith((MASK, OVERLAY, CUTOUT)) and is_signed(file)
    except OSError:
        return False


def _targets(files: Sequence[Path], root: Path, output_dir: Path) -> list[Path]:
    """For each file below a folder, a path without a suffix; two files never get the same."""
    relative = [file.absolute().relative_to(root) for file in files]
    stems = Counter(_on_any_disk(path.with_suffix("")) for path in relative)
    taken: set[str] = set()
    names: dict[Path, Path] = {}
    renamed = []
    # Names that no other file has go first, so that one that must give way gives way to them.
    for path in sorted(relative, key=lambda path: stems[_on_any_disk(path.with_suffix(""))] > 1):
        shared = stems[_on_any_disk(path.with_suffix(""))] > 1
        name = path if shared else path.with_suffix("")
        number = 2
        while _on_any_disk(name) in taken:
            name, number = path.with_name(f"{path.name}-{number}"), number + 1
        taken.add(_on_any_disk(name))
        names[path] = name
        if name != path.with_suffix(""):
            renamed.append(f"{path} -> {name}{MASK}")
    if renamed:
        logger.warning("%d photographs share a name with another; their masks: %s", len(renamed), ", ".join(renamed))
    return [output_dir / names[path] for path in relative]


def _on_any_disk(path: Path) -> str:
    """What two paths share that some disk takes for the same: macOS and Windows ignore case, macOS composes accents."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _save(picture: Image.Image, file: Path, kind: str, **options: Any) -> None:
    data = io.BytesIO()
    picture.save(data, kind, **options)
    files_lib.write_bytes(file, signed(data.getvalue()))
