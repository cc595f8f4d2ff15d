"""The segmentation of one image: mask, confidence, probabilities, overlay and cut-out. Imports no TensorFlow."""

import io
import numbers
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from petseg.classes import Classes
from petseg.deployment import probability_files
from petseg.deployment.mask_pictures import mask_picture
from petseg.errors import ConfigError, DataError

MAX_KEPT_BYTES = 2**26  # of the probabilities of one image


class Segmentation:
    """The segmentation of one image. Notebooks display it as the overlay.

    Probabilities take 4 bytes x pixels x classes. Up to `MAX_KEPT_BYTES` they are kept; larger ones are computed again
    at each access.

    Args:
      image: uint8 [H, W, 3].
      probabilities: float32 [H, W, C]; or a function that computes them as blocks of rows, float32 [rows, W, C].
      threshold: of two classes, the least probability of the foreground class where it is predicted; 0: the most
        probable class is predicted.

    Attributes:
      image, classes: as given.
      mask: class ids, uint8 [H, W].
      confidence: the probability of the predicted class, float16 [H, W].
      foreground: expected fraction of foreground per pixel, uint8 [H, W], 255 for all of it; None without a foreground
        class.
    """

    def __init__(
        self,
        image: np.ndarray,
        probabilities: np.ndarray | Callable[[], Iterable[np.ndarray]],
        classes: Classes,
        *,
        threshold: float = 0.0,
    ):
        target = classes.binary_foreground() if threshold else 0
        self.image, self.classes = image, classes
        shape = image.shape[:2]
        self.mask: np.ndarray = np.empty(shape, np.uint8)
        self.confidence: np.ndarray = np.empty(shape, np.float16)
        self.foreground: np.ndarray | None = np.empty(shape, np.uint8) if classes.foreground.any() else None
        self._compute = probabilities if callable(probabilities) else None
        self._probabilities = None if callable(probabilities) else probabilities
        is_kept_here = callable(probabilities) and is_kept(shape, classes)
        row, blocks = 0, []
        for block in probabilities() if callable(probabilities) else (probabilities,):
            rows = slice(row, row := row + len(block))
            if threshold:
                is_target = block[..., target] >= threshold
                self.mask[rows] = np.where(is_target, target, 1 - target)
                self.confidence[rows] = np.where(is_target, block[..., target], block[..., 1 - target])
            else:
                self.mask[rows] = block.argmax(axis=-1)
                self.confidence[rows] = block.max(axis=-1)
            if self.foreground is not None:
                self.foreground[rows] = (block @ classes.foreground * 255).round()
            if is_kept_here:
                blocks.append(block)
        if is_kept_here:
            self._probabilities, self._compute = np.concatenate(blocks), None

    @property
    def probabilities(self) -> np.ndarray:
        """Class probabilities, float32 [H, W, C]; of a large image, computed again at each access.

        Raises DataError if they were not kept and this is a pickled copy, which has no network.
        """
        return self._probabilities if self._probabilities is not None else np.concatenate(list(self.probability_rows()))

    def probability_rows(self) -> Iterable[np.ndarray]:
        """Class probabilities by blocks of rows from top to bottom, float32 [rows, W, C], for images of any size.

        Raises:
          DataError: as `probabilities`.
        """
        if self._probabilities is not None:
            return [self._probabilities]
        if self._compute is None:
            raise DataError("probabilities: too large to be kept in a pickled Segmentation; segment the image again")
        return self._compute()

    def save_probabilities(self, target: str | os.PathLike[str], format: str = "npz") -> list[Path]:
        """Writes the probabilities like `eval.py --probabilities`; returns the files, which replace existing ones.

        Args:
          target: path of the files without their endings, such as "out/cat".
          format: `npz`: TARGET.probabilities.npz with `probabilities`, float32 [H, W, C], and `classes`, their names;
            `png`: TARGET.probability.CLASS.png for each class, 8 bits, 255 for a probability of 1.

        Raises:
          ConfigError: if the format is unknown.
          DataError: as `probabilities`.
          OSError: if the files cannot be written.
        """
        return probability_files.write(Path(target), format, self.probability_rows, self.mask.shape, self.classes.names)

    def mask_picture(self, mask_values: str = "ids") -> Image.Image:
        """The mask as a picture of class ids, or with "own" of the values or colours of the data set's masks."""
        return mask_picture(self.mask, self.classes, mask_values)

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The image blended with the colours of its classes, which hide it at an opacity of 1.

        Raises ConfigError if the opacity is not in [0, 1].
        """
        if not isinstance(opacity, numbers.Real) or not 0 <= opacity <= 1:
            raise ConfigError(f"opacity={opacity!r}: must be a number from 0 to 1")
        return blend_mask(self.image, self.mask, self.classes, opacity)

    def cutout(self) -> Image.Image:
        """The foreground on a transparent background (RGBA); alpha is the probability of foreground.

        Raises ConfigError if no class is foreground.
        """
        check_foreground(self.classes)
        assert self.foreground is not None  # some class is foreground
        return Image.fromarray(np.dstack([self.image, self.foreground]))

    def __eq__(self, other: object) -> bool:
        """Whether image, classes, mask and confidence are equal."""
        if not isinstance(other, Segmentation):
            return NotImplemented
        return self.classes == other.classes and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("mask", "confidence", "image")
        )

    def __hash__(self) -> int:
        return hash((self.mask.shape, self.classes.names, zlib.crc32(self.mask.tobytes())))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compute": None}  # it refers to the network

    def _repr_png_(self) -> bytes:
        data, picture = io.BytesIO(), self.overlay()
        picture.thumbnail((1024, 1024))
        picture.save(data, "PNG")
        return data.getvalue()

    def __repr__(self) -> str:
        shares = np.bincount(self.mask.ravel(), minlength=len(self.classes)) / self.mask.size
        text = ", ".join(f"{name} {share:.1%}" for name, share in zip(self.classes.names, shares, strict=True))
        return f"Segmentation({self.mask.shape[1]} x {self.mask.shape[0]}: {text})"


def is_kept(shape: tuple[int, ...], classes: Classes) -> bool:
    """Whether a `Segmentation` of an image [H, W, ...] keeps probabilities that are computed for it."""
    return 4 * shape[0] * shape[1] * len(classes) <= MAX_KEPT_BYTES


def blend_mask(image: np.ndarray, mask: np.ndarray, classes: Classes, opacity: float) -> Image.Image:
    """Blends an image, uint8 [H, W, 3], with the colours of its class ids, uint8 [H, W]."""
    return Image.blend(Image.fromarray(image), Image.fromarray(classes.palette[mask]), opacity)


def check_foreground(classes: Classes) -> None:
    """Raises ConfigError if no class is foreground, so that there is nothing to cut out."""
    if not classes.foreground.any():
        raise ConfigError(
            f"--cutout: none of the classes {', '.join(classes.names)} is foreground; mark one with "
            '"foreground": true in the run\'s classes file'
        )
