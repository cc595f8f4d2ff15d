"""Which photographs `--predict` means, where what is made of them goes, and what of it is there already."""

import dataclasses
import errno
import glob
import io
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from petseg import files as files_lib
from petseg.classes import Classes
from petseg.deployment.signed_pictures import is_signed, signed
from petseg.errors import ConfigError, DataError, WorkDirectoryError, one_line
from petseg.picture_formats import suffixes

logger = logging.getLogger(__name__)
MASK, OVERLAY, CUTOUT = ".mask.png", ".overlay.jpg", ".cutout.png"
OVERLAY_OPACITY = 0.5
LONGEST_JPEG_SIDE = 65_500  # pixels; the limit of libjpeg
MOST_NAMED = 8  # files in one line of the log


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
        """Writes the outputs of a photograph; returns the mask's file.

        Each output is written for itself: where one cannot be, the others are written all the same.

        Args:
          photograph: the photograph.
          image: what it shows, uint8 [H, W, 3].
          ids: class ids, uint8 [H, W].
          alpha: how much of each pixel is foreground, uint8 [H, W]; None where no class is.
          classes: the classes.

        Raises:
          DataError: if some of the outputs could not be written.
          OSError: if the disk is full or not writable, so that other photographs cannot be written either.
        """
        mask = Image.fromarray(ids)
        mask.putpalette(classes.palette[: len(classes)].tobytes())
        pictures = [mask, blended(image, ids, classes, OVERLAY_OPACITY)]
        if self.cutout and alpha is not None:
            pictures.append(Image.fromarray(np.dstack([image, alpha])))
        endings, failed = _endings(self.cutout), []
        files = photograph.outputs(endings)
        for ending, file, picture in zip(endings, files, pictures, strict=False):
            try:
                files_lib.write_bytes(file, signed(_encoded(picture, file.suffix)))
            except Exception as error:  # Pillow's encoders raise OSError, ValueError, struct.error and more
                if files_lib.is_disk_error(error):
                    raise
                failed.append(f"{ending}: {_reason(error)}")
        if failed:
            raise DataError("; ".join(failed))
        return files[0]


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
        kinds = "ending in .jpg .png .tif or another suffix of a picture that Pillow reads"
        if os.path.isdir(os.path.expanduser(pattern)):
            raise DataError(f"--predict={pattern}: holds no file {kinds}, nor do its subfolders")
        raise DataError(f"--predict={pattern}: matches no file; must be a glob, or a folder with files {kinds}")
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
        return _photographs_below(path)
    if path.is_file():  # also one whose name would be a pattern, such as cat[1].jpg
        return [path]
    folder = _fixed_part(path)
    rest = str(Path(*path.parts[len(folder.parts) :]))
    # Brackets that match nothing as a pattern are taken as they are.
    names = glob.glob(rest, root_dir=folder, recursive=True) or glob.glob(
        rest.replace("[", "[[]"), root_dir=folder, recursive=True
    )
    return sorted({folder / name for name in names if os.path.isfile(folder / name)})


def _photographs_below(folder: Path) -> list[Path]:
    """The files below a folder that are named like pictures, sorted; says in the log what is left out.

    Hidden files are left out silently, for other systems keep thumbnails in them.
    """
    readable = suffixes()
    found: list[Path] = []
    others: list[Path] = []
    closed: list[Path] = []
    for where, subfolders, names in os.walk(folder, onerror=lambda error: closed.append(Path(error.filename))):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        closed.extend(Path(where, name) for name in subfolders if os.path.islink(Path(where, name)))
        for file in (Path(where, name) for name in names if not name.startswith(".")):
            (found if file.suffix.lower() in readable else others).append(file)
    for files, reason in (
        (others, "files are left out, whose suffixes are not of pictures that can be read here"),
        (closed, "subfolders are left out, which are links or cannot be listed"),
    ):
        if files:
            named = ", ".join(str(file.relative_to(folder)) for file in sorted(files)[:MOST_NAMED])
            more = f" and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else ""
            logger.warning("--predict=%s: %d %s: %s%s", folder, len(files), reason, named, more)
    return sorted(found)


def _fixed_part(pattern: Path) -> Path:
    """The longest leading part of a pattern that is a folder as it is written, also where it has brackets."""
    fixed = Path(pattern.anchor)
    for part in pattern.parts[len(fixed.parts) :]:
        if not (fixed / part).is_dir():
            break
        fixed /= part
    return fixed


def _root(pattern: str) -> Path:
    """The folder below which subfolders are kept."""
    path = Path(os.path.expanduser(pattern)).absolute()
    return path.parent if path.is_file() else _fixed_part(path)


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


def _encoded(picture: Image.Image, suffix: str) -> bytes:
    """A picture as the content of a PNG or JPEG file."""
    if suffix == ".jpg" and max(picture.size) > LONGEST_JPEG_SIDE:
        raise DataError(
            f"{picture.width} x {picture.height} pixels do not fit into JPEG, whose sides are at most "
            f"{LONGEST_JPEG_SIDE}; cut the photograph into parts"
        )
    data = io.BytesIO()
    if suffix == ".jpg":
        picture.save(data, "JPEG", quality=92)
    else:
        picture.save(data, "PNG")
    return data.getvalue()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "this name is too long; the photograph's must be shorter"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if isinstance(error, DataError) else one_line(error)
