"""Inputs and outputs of `--predict`: which photographs, which output files, and which of those exist already."""

import dataclasses
import glob
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from petseg.data import picture_files
from petseg.data.picture_formats import suffixes
from petseg.deployment import georeference
from petseg.deployment.georeference import NONE, Georeference
from petseg.deployment.output_files import MASK, Outputs, is_own, output_file
from petseg.deployment.segmentation import Segmentation
from petseg.errors import DataError, WorkDirectoryError

logger = logging.getLogger(__name__)
MOST_NAMED = 8  # files in one line of the log


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photograph to be segmented."""

    file: Path  # its file
    target: Path  # path of its output files, without their endings
    georeference: Georeference = NONE
    page: int | None = None  # page of the file, from 0 on; None for a file that must have one page


@dataclasses.dataclass(frozen=True)
class Plan:
    """The work of one `--predict`."""

    photographs: tuple[Photograph, ...]  # the photographs to segment, in order
    output_dir: str  # the output folder
    outputs: Outputs  # which files are written for each of them
    skipped: int = 0  # number of photographs that are left out because their outputs exist

    @classmethod
    def make(
        cls, pattern: str, output_dir: str, outputs: Outputs, *, skip_existing: bool = False, pages: bool = False
    ) -> "Plan":
        """Lists photographs and checks their output files; of photographs, reads only tags of TIFF files.

        Subfolders below the folder, or below the part of a glob without wildcards, are kept. Photographs whose output
        names would clash, also where case is ignored, keep their suffix and get a number if necessary. Unchanged
        outputs of earlier calls are replaced and never taken for photographs; other files are never replaced.

        Args:
          pattern: a glob (`**` includes subfolders), a file, or a folder, which includes its subfolders.
          pages: whether each page of a stack is a photograph, as in runs with --pages=examples.

        Raises:
          DataError: if nothing matches.
          WorkDirectoryError: if an output would replace a file that petseg did not write.
        """
        files = find_photographs(pattern)
        path = Path(os.path.expanduser(pattern)).absolute()
        root = path.parent if path.is_file() else _fixed_part(path)  # below it, subfolders are kept
        numbers = [(file, page) for file in files for page in (_pages(file) if pages else [None])]
        targets = _targets([_named(*each) for each in numbers], root, Path(output_dir))
        georeferences, photographs = georeference.find(files), []
        found = [
            Photograph(file, target, georeferences.get(file, NONE), page)
            for (file, page), target in zip(numbers, targets, strict=True)
        ]
        for photograph in found:
            target, where = photograph.target, photograph.georeference
            if foreign := outputs.foreign(target, where):
                raise WorkDirectoryError(
                    f"--output_dir={output_dir}: {foreign} would be overwritten, and was not written by petseg, or "
                    "was changed since; must be another folder"
                )
            written = (output_file(target, ending) for ending in outputs.endings(where))
            if not skip_existing or not all(map(os.path.lexists, written)):
                photographs.append(photograph)
        return cls(tuple(photographs), output_dir, outputs, skipped=len(found) - len(photographs))

    def write(self, photograph: Photograph, segmentation: Segmentation) -> Path:
        """Writes the outputs of a photograph, as `Outputs.write`."""
        return self.outputs.write(photograph.target, segmentation, photograph.georeference)


def find_photographs(pattern: str) -> list[Path]:
    """Lists the files of a glob, a file or a folder, sorted, without those that petseg wrote, whose number it logs.

    Raises DataError if there are none.
    """
    matches = _matches(pattern)
    if not matches:
        kinds = "ending in .jpg .png .tif or another suffix of a picture that Pillow reads"
        if os.path.isdir(os.path.expanduser(pattern)):
            raise DataError(f"--predict={pattern}: holds no file {kinds}, nor do its subfolders")
        raise DataError(f"--predict={pattern}: matches no file; must be a glob, or a folder with files {kinds}")
    files = [file for file in matches if not is_own(file)]
    if not files:
        raise DataError(f"--predict={pattern}: matches only masks and overlays that petseg wrote; must be photographs")
    if own := len(matches) - len(files):
        logger.info("--predict=%s: %d files that petseg wrote are not photographs: skipped", pattern, own)
    return files


def _matches(pattern: str) -> list[Path]:
    path = Path(os.path.expanduser(pattern))
    if path.is_dir():
        return _photographs_below(path)
    if path.is_file():  # also one whose name would be a pattern, such as cat[1].jpg
        return [path]
    folder = _fixed_part(path)
    rest = str(Path(*path.parts[len(folder.parts) :]))
    # Brackets that match nothing as a pattern are taken literally.
    names = glob.glob(rest, root_dir=folder, recursive=True) or glob.glob(
        rest.replace("[", "[[]"), root_dir=folder, recursive=True
    )
    # Through a link to a folder above, `**` finds each file many times; its shortest path counts.
    found: dict[tuple[str, str], Path] = {}
    for path in sorted((folder / name for name in names), key=lambda path: len(path.parts)):
        if path.is_file():
            found.setdefault((os.path.realpath(path.parent), path.name), path)
    return sorted(found.values())


def _photographs_below(folder: Path) -> list[Path]:
    """The files below a folder with suffixes of images, sorted; logs what is left out.

    Hidden files are left out silently: operating systems keep thumbnails in them.
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
    beside = {file.with_name(name) for file in found for name in georeference.sidecar_names(file)}
    others = [file for file in others if file.with_name(file.name.lower()) not in beside]
    for files, reason in (
        (others, "files are left out because no reader is installed for their suffixes"),
        (closed, "subfolders are left out because they are links or cannot be listed"),
    ):
        if files:
            named = ", ".join(str(file.relative_to(folder)) for file in sorted(files)[:MOST_NAMED])
            more = f" and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else ""
            logger.warning("--predict=%s: %d %s: %s%s", folder, len(files), reason, named, more)
    return sorted(found)


def _fixed_part(pattern: Path) -> Path:
    """The longest leading part of a pattern that exists as a folder, also where it has brackets."""
    fixed = Path(pattern.anchor)
    for part in pattern.parts[len(fixed.parts) :]:
        if not (fixed / part).is_dir():
            break
        fixed /= part
    return fixed


def _pages(file: Path) -> Sequence[int | None]:
    """The pages of a file, from 0 on; None for a file of one page."""
    try:
        count = picture_files.count_pages(file)
    except DataError:  # reading it will say why
        count = 1
    return range(count) if count > 1 else [None]


def _named(file: Path, page: int | None) -> Path:
    """The path that names the outputs, such as `scan#3.tif` for the third page of `scan.tif`."""
    return file if page is None else file.with_stem(f"{file.stem}#{page + 1}")


def _targets(files: Sequence[Path], root: Path, output_dir: Path) -> list[Path]:
    """A path without suffix for each file below a folder, all different."""
    relative = [file.absolute().relative_to(root) for file in files]
    stems = Counter(_case_folded(path.with_suffix("")) for path in relative)
    shares_stem = [stems[_case_folded(path.with_suffix(""))] > 1 for path in relative]
    taken: set[str] = set()
    names = relative.copy()
    for i in sorted(range(len(relative)), key=shares_stem.__getitem__):  # unique names first: they stay as they are
        path, number = relative[i], 2
        name = path if shares_stem[i] else path.with_suffix("")
        while _case_folded(name) in taken:
            name, number = path.with_name(f"{path.name}-{number}"), number + 1
        taken.add(_case_folded(name))
        names[i] = name
    renamed = [
        f"{path} -> {name}{MASK}.png"
        for path, name in zip(relative, names, strict=True)
        if name != path.with_suffix("")
    ]
    if renamed:
        logger.warning("%d photographs share a name with another; their masks: %s", len(renamed), ", ".join(renamed))
    return [output_dir / name for name in names]


def _case_folded(path: Path) -> str:
    """Equal for paths that some file systems take for one: macOS and Windows ignore case, macOS composes accents."""
    return unicodedata.normalize("NFC", str(path)).casefold()
