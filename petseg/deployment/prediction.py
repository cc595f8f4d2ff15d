"""Masks for photographs in files: any size, any kind that Pillow reads."""

import contextlib
import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tqdm
from PIL import Image, ImageOps

from petseg.classes import CLASS_COLORS, CLASS_NAMES
from petseg.errors import DataError, UnreadableFilesError, WorkDirectoryError
from petseg.models import inference
from petseg.reporting.pictures import colorize

logger = logging.getLogger(__name__)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
OVERLAY_OPACITY = 0.5


class Predictor:
    """Says of each pixel of a photograph what it is.

    Args:
      model: float32 images in [0, 255] of one size -> float32 logits.
      flip_tta: average the probabilities of the photograph and of its mirror image.
    """

    def __init__(self, model: keras.Model, *, flip_tta: bool = False):
        self._size = model.input_shape[1:3]
        image = tf.TensorSpec([None, None, 3], tf.uint8)
        self._call = tf.function(lambda image: self._probabilities(model, image, flip_tta), input_signature=[image])

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Probabilities of the classes, float32 [H, W, C], of a photograph uint8 [H, W, 3] of any size."""
        return self._call(image).numpy()

    def _probabilities(self, model: keras.Model, image: tf.Tensor, flip_tta: bool) -> tf.Tensor:
        shape = tf.shape(image)[:2]
        resized = tf.image.resize(tf.cast(image, tf.float32), self._size, method="bilinear", antialias=True)
        resized = tf.clip_by_value(tf.round(resized), 0, 255)  # as in training
        logits = inference.logits(model, resized[None], flip_tta=flip_tta)
        return tf.nn.softmax(tf.image.resize(logits, shape, method="bilinear"))[0]


def predict_files(predictor: Predictor, pattern: str, output_dir: str, *, cutout: bool = False) -> list[Path]:
    """Writes masks and overlays for photographs, one photograph in memory at a time.

    For `cat.jpg`: `cat.mask.png`, an indexed-colour PNG of class ids as large as the photograph; `cat.overlay.jpg`; if
    asked for, `cat.cutout.png`, the pet with the rest transparent. Subfolders stay as they are below what all files
    share.

    Args:
      predictor: what makes the masks.
      pattern: a glob (`**` goes into subfolders), a file, or a folder.
      output_dir: where to write.
      cutout: whether to write cut-outs.

    Returns:
      the masks.

    Raises:
      DataError: if nothing matches.
      WorkDirectoryError: if the output cannot be written.
      UnreadableFilesError: at the end, if some of the files were no photographs.
    """
    files = find_files(pattern)
    masks, unreadable = [], []
    hidden = None if logger.isEnabledFor(logging.INFO) else True  # None: where the output is no terminal
    targets = _targets(files, Path(output_dir))
    with _naming_what_cannot_be_written(output_dir):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    for file, target in tqdm.tqdm(list(zip(files, targets, strict=True)), unit=" images", disable=hidden):
        try:
            image = read_image(file)
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
            logger.warning("%s: cannot be read: %s", file, " ".join(str(error).split()) or type(error).__name__)
            unreadable.append(file)
            continue
        with _naming_what_cannot_be_written(output_dir):
            masks.append(_write(image, predictor(image), target, cutout=cutout))
    logger.info("masks of %d files in %s", len(masks), output_dir)
    if unreadable:
        raise UnreadableFilesError(f"{len(unreadable)} of {len(files)} files cannot be read; the rest is done")
    return masks


def find_files(pattern: str) -> list[Path]:
    """The files that a glob, or a folder's name, stands for, sorted.

    Raises:
      DataError: if there are none.
    """
    path = Path(os.path.expanduser(pattern))
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES]
    else:
        files = [Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name)]
    if not files:
        kinds = " ".join(SUFFIXES)
        raise DataError(f"--predict={pattern}: matches no file; takes a glob, or a folder with files ending in {kinds}")
    return sorted(files)


def read_image(file: Path) -> np.ndarray:
    """A picture as people see it, uint8 [H, W, 3].

    It is turned as its EXIF orientation says; grey, palettes and 16 bits become 8-bit RGB; what is transparent becomes
    white; of an animation, the first frame is taken.

    Raises:
      Exception: whatever Pillow raises at what it cannot read.
    """
    with Image.open(file) as opened:
        picture: Image.Image = ImageOps.exif_transpose(opened)
        if picture.mode.startswith("I"):  # 16 bits of grey, or 32 that hold 16
            values = np.asarray(picture).astype(np.int64)
            picture = Image.fromarray((np.clip(values, 0, 65535) / 257).round().astype(np.uint8))
        if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return np.asarray(picture.convert("RGB"))


def _targets(files: Sequence[Path], output_dir: Path) -> list[Path]:
    """For each file, a path without a suffix; two files never get the same."""
    common = Path(os.path.commonpath([file.absolute().parent for file in files]))
    relative = [file.absolute().relative_to(common) for file in files]
    stems = Counter(path.with_suffix("") for path in relative)
    return [output_dir / (path if stems[path.with_suffix("")] > 1 else path.with_suffix("")) for path in relative]


def _write(image: np.ndarray, probabilities: np.ndarray, target: Path, *, cutout: bool) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    classes = probabilities.argmax(axis=-1).astype(np.uint8)
    mask = Image.fromarray(classes, mode="P")
    mask.putpalette(CLASS_COLORS.tobytes())
    mask_file = target.with_name(target.name + ".mask.png")
    mask.save(mask_file)
    overlay = Image.blend(Image.fromarray(image), Image.fromarray(colorize(classes)), OVERLAY_OPACITY)
    overlay.save(target.with_name(target.name + ".overlay.jpg"), quality=92)
    if cutout:
        shares = np.array([{"pet": 1.0, "border": 0.5}.get(name, 0.0) for name in CLASS_NAMES], np.float32)
        alpha = (probabilities @ shares * 255).round().astype(np.uint8)  # half of a border is pet
        Image.fromarray(np.dstack([image, alpha])).save(target.with_name(target.name + ".cutout.png"))
    return mask_file


@contextlib.contextmanager
def _naming_what_cannot_be_written(output_dir: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or output_dir
        raise WorkDirectoryError(f"--output_dir={output_dir}: {where} cannot be written: {error.strerror}") from error
