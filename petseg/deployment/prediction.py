"""Masks for photographs in files: any size, any kind that Pillow reads."""

import dataclasses
import glob
import io
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tqdm
from PIL import Image

from petseg import files as files_lib
from petseg.classes import Classes
from petseg.deployment.photographs import SUFFIXES, read_image
from petseg.deployment.signed_pictures import is_signed, signed
from petseg.errors import ConfigError, DataError, UnreadableFilesError, WorkDirectoryError
from petseg.evaluation.any_size import AnySizeModel

logger = logging.getLogger(__name__)
MASK, OVERLAY, CUTOUT = ".mask.png", ".overlay.jpg", ".cutout.png"
OVERLAY_OPACITY = 0.5


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a photograph shows.

    Attributes:
      classes: class ids, uint8 [H, W].
      foreground: how much of each pixel is foreground, uint8 [H, W], 255 for all of it: what its probabilities say of
        the classes' shares. None where no class is foreground.
    """

    classes: np.ndarray
    foreground: np.ndarray | None


class Predictor:
    """Says of each pixel of a photograph what it is.

    Args:
      model: float32 images in [0, 255] of one size -> float32 logits.
      classes: the classes that it tells apart.
      resize: how photographs come to the model's size, one of RESIZES.
      tile: height and width of tiles in which they are gone over; None: as a whole. With tiles, of the probabilities of
        one photograph only as many are in memory as one row of tiles has.
      flip_tta: whether to average the probabilities of the photograph and of its mirror image.
    """

    def __init__(
        self,
        model: keras.Model,
        classes: Classes,
        *,
        resize: str = "stretch",
        tile: tuple[int, int] | None = None,
        flip_tta: bool = False,
    ):
        self.classes = classes
        self._model = AnySizeModel(model, resize=resize, tile=tile, flip_tta=flip_tta)

    def __call__(self, image: np.ndarray) -> Prediction:
        """What a photograph uint8 [H, W, 3] of any size shows."""
        shares = self.classes.foreground
        found, foreground = [], []
        for stripe in self._model.stripes(image):
            found.append(stripe.argmax(axis=-1).astype(np.uint8))
            if shares.any():
                foreground.append((stripe @ shares * 255).round().astype(np.uint8))
        return Prediction(np.concatenate(found), np.concatenate(foreground) if foreground else None)

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Probabilities of the classes, float32 [H, W, C], all at once, of a photograph uint8 [H, W, 3]."""
        return self._model.probabilities(image)


def predict_files(predictor: Predictor, pattern: str, output_dir: str, *, cutout: bool = False) -> list[Path]:
    """Writes masks and overlays for photographs, one photograph in memory at a time.

    For `cat.jpg`: `cat.mask.png`, an indexed-colour PNG of class ids as large as the photograph; `cat.overlay.jpg`; if
    asked for, `cat.cutout.png`, the foreground with the rest transparent. Subfolders stay as they are below what all
    files share. Where names would clash, also on a disk that takes `Cat` and `cat` for one, they keep the photograph's
    suffix, and a number if need be.

    What an earlier call wrote is replaced, and is never taken for a photograph; a file of anybody else's, or that has
    been changed since, is never replaced.

    Args:
      predictor: what makes the masks.
      pattern: a glob (`**` goes into subfolders), a file, or a folder.
      output_dir: folder to write to.
      cutout: whether to write cut-outs.

    Returns:
      the masks.

    Raises:
      ConfigError: if cut-outs are asked for, and no class is foreground.
      DataError: if nothing matches.
      WorkDirectoryError: if the output cannot be written, or a file that petseg did not write is in its place.
      UnreadableFilesError: at the end, if some of the files were no photographs.
    """
    if cutout:
        check_foreground(predictor.classes)
    files = find_files(pattern)
    passed_over = len(_matches(pattern)) - len(files)
    if passed_over:
        logger.info("--predict=%s: %d files that petseg wrote are no photographs: passed over", pattern, passed_over)
    masks, unreadable = [], []
    hidden = None if logger.isEnabledFor(logging.INFO) else True  # None: where the output is no terminal
    targets = _targets(files, Path(output_dir))
    _check_not_a_users(targets, output_dir, (MASK, OVERLAY, CUTOUT) if cutout else (MASK, OVERLAY))
    with files_lib.naming_what_cannot_be_written(output_dir, flag=f"--output_dir={output_dir}"):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    for file, target in tqdm.tqdm(list(zip(files, targets, strict=True)), unit=" images", disable=hidden):
        try:
            image = read_image(file)
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
            logger.warning("%s: cannot be read: %s", file, " ".join(str(error).split()) or type(error).__name__)
            unreadable.append(file)
            continue
        with files_lib.naming_what_cannot_be_written(output_dir, flag=f"--output_dir={output_dir}"):
            masks.append(_write(image, predictor(image), predictor.classes, target, cutout=cutout))
    logger.info("masks of %d files in %s", len(masks), output_dir)
    if unreadable:
        raise UnreadableFilesError(f"{len(unreadable)} of {len(files)} files cannot be read; the rest is done")
    return masks


def find_files(pattern: str) -> list[Path]:
    """The photographs that a glob, or a folder's name, stands for, sorted; without what petseg wrote.

    Raises:
      DataError: if there are none.
    """
    matches = _matches(pattern)
    if not matches:
        kinds = " ".join(SUFFIXES)
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


def _matches(pattern: str) -> list[Path]:
    path = Path(os.path.expanduser(pattern))
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    return sorted({Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name)})


def _is_own(file: Path) -> bool:
    """Whether `predict_files` wrote a file, and nobody has changed it since."""
    try:
        return file.name.endswith((MASK, OVERLAY, CUTOUT)) and is_signed(file)
    except OSError:
        return False


def _targets(files: Sequence[Path], output_dir: Path) -> list[Path]:
    """For each file, a path without a suffix; two files never get the same."""
    common = Path(os.path.commonpath([file.absolute().parent for file in files]))
    relative = [file.absolute().relative_to(common) for file in files]
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


def _check_not_a_users(targets: Sequence[Path], output_dir: str, endings: Sequence[str]) -> None:
    """Raises WorkDirectoryError if something would be overwritten that petseg did not write."""
    outputs = (target.with_name(target.name + ending) for target in targets for ending in endings)
    for file in outputs:
        if os.path.lexists(file) and not _is_own(file):
            raise WorkDirectoryError(
                f"--output_dir={output_dir}: {file} would be overwritten, and is not as petseg wrote it; "
                "must be another folder"
            )


def _write(image: np.ndarray, prediction: Prediction, classes: Classes, target: Path, *, cutout: bool) -> Path:
    mask = Image.fromarray(prediction.classes, mode="P")
    mask.putpalette(classes.palette[: len(classes)].tobytes())
    mask_file = _save(mask, target, MASK, "PNG")
    overlay = blended(image, prediction.classes, classes, OVERLAY_OPACITY)
    _save(overlay, target, OVERLAY, "JPEG", quality=92)
    if cutout and prediction.foreground is not None:
        _save(Image.fromarray(np.dstack([image, prediction.foreground])), target, CUTOUT, "PNG")
    return mask_file


def _save(picture: Image.Image, target: Path, ending: str, kind: str, **options: Any) -> Path:
    file, data = target.with_name(target.name + ending), io.BytesIO()
    picture.save(data, kind, **options)
    files_lib.write_bytes(file, signed(data.getvalue()))
    return file
