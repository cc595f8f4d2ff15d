"""From Python: a trained network that is called with pictures, and what it says of them."""

import dataclasses
import functools
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, overload

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from petseg.classes import Classes
from petseg.config import Config
from petseg.config.eval_config import ScoreConfig
from petseg.data import decoding, sample
from petseg.data.decoding import Examples
from petseg.deployment.photograph_files import blended, check_foreground
from petseg.deployment.photographs import as_people_see_it, read_image
from petseg.errors import DataError, PetsegError, one_line
from petseg.evaluation.any_size import AnySizeModel
from petseg.evaluation.evaluator import Evaluation
from petseg.evaluation.keras_runner import KerasRunner
from petseg.evaluation.results import split_results
from petseg.runs import building
from petseg.runs.opening import open_run
from petseg.runs.work_directory import WorkDirectory
from petseg.training.requests import Requests

# What a picture may be: uint8 [H, W, 3], a path, or Pillow's.
Picture = np.ndarray | str | os.PathLike[str] | Image.Image


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """What a picture shows. In a notebook it shows itself, as the overlay.

    Attributes:
      image: the picture, uint8 [H, W, 3].
      probabilities: of each class, float32 [H, W, C].
      classes: the classes.
    """

    image: np.ndarray
    probabilities: np.ndarray
    classes: Classes

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """The class of each pixel, uint8 [H, W]."""
        return self.probabilities.argmax(axis=-1).astype(np.uint8)

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The picture with the colours of its classes over it."""
        return blended(self.image, self.mask, self.classes, opacity)

    def cutout(self) -> Image.Image:
        """The foreground, as sharp or soft as its probabilities, with the rest transparent (RGBA).

        Raises:
          ConfigError: if no class is foreground.
        """
        check_foreground(self.classes)
        opacity = (self.probabilities @ self.classes.foreground * 255).round().astype(np.uint8)
        return Image.fromarray(np.dstack([self.image, opacity]))

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        picture = self.overlay()
        picture.thumbnail((1024, 1024))
        picture.save(data, "PNG")
        return data.getvalue()

    def __repr__(self) -> str:
        shares = np.bincount(self.mask.ravel(), minlength=len(self.classes)) / self.mask.size
        text = ", ".join(f"{name} {share:.1%}" for name, share in zip(self.classes.names, shares, strict=True))
        return f"Segmentation({self.mask.shape[1]} x {self.mask.shape[0]}: {text})"


class Segmenter:
    """A trained network: `segmenter(picture)` says what it shows. `load` makes one.

    Args:
      model: float32 images in [0, 255] of one size -> float32 logits.
      config: config of the run that trained it.
      classes: the classes that it tells apart.
      step: step at which the run had these weights.
      tile: height and width of tiles in which pictures are gone over; None: as a whole.
      flip_tta: whether to average the probabilities of a picture and of its mirror image.

    Attributes:
      model, config, classes, step: as given.
    """

    def __init__(
        self,
        model: keras.Model,
        config: Config,
        classes: Classes,
        *,
        step: int = 0,
        tile: tuple[int, int] | None = None,
        flip_tta: bool = False,
    ):
        self.model, self.config, self.classes, self.step = model, config, classes, step
        self._flip_tta = flip_tta
        self._any_size = AnySizeModel(KerasRunner(model, resize=config.data.resize, flip_tta=flip_tta), tile=tile)

    @overload
    def __call__(self, picture: Picture) -> Segmentation: ...

    @overload
    def __call__(self, picture: list[Picture]) -> list[Segmentation]: ...

    def __call__(self, picture: Picture | list[Picture]) -> Segmentation | list[Segmentation]:
        """What a picture of any size shows: an array uint8 [H, W, 3], a path, or a Pillow image; or a list of them.

        Raises:
          DataError: if it is none of these, or cannot be read.
        """
        if isinstance(picture, list):
            images = [as_array(each) for each in picture]
            found = self._any_size.several(images)
            return [Segmentation(image, each, self.classes) for image, each in zip(images, found, strict=True)]
        return self([picture])[0]

    def evaluate(
        self, dataset: str | Iterable[tuple[Any, Any]], *, data_dir: str = "", eval_examples: int = 0
    ) -> dict[str, Any]:
        """Scores of the network, as a results file has them: `mean_iou`, `accuracy`, `iou` by class, and more.

        Args:
          dataset: pairs of a picture uint8 [H, W, 3] and its mask uint8 [H, W] of class ids (255 is not counted),
            each scored at its own size; or the name of a split of the data set of the run, such as "test", scored at
            the network's size.
          data_dir: where that data set lies; empty: where it lay in training.
          eval_examples: how many examples of the split are scored, a sample that the run's seed decides; 0: all.

        Raises:
          DataError: if there is no such split, or a pair is no such pair.
        """
        if isinstance(dataset, str):
            data = self.config.changed(data={"data_dir": data_dir or self.config.data.data_dir}).data
            whole = decoding.load(data, dataset, self.classes)
            examples = sample.sample(whole, eval_examples, self.config.runtime.seed)
            return self._results(self._evaluator(examples).evaluate(), dataset, examples)
        pairs = [_checked_pair(*pair) for pair in dataset]
        if not pairs:
            raise DataError("dataset: holds no pairs of picture and mask")
        none = np.zeros([len(pairs), *self.model.input_shape[1:3], 3], np.uint8)  # only their number counts
        examples = Examples(none, none[..., :1], self.classes, tuple(map(str, range(len(pairs)))), {}, origin="pairs")
        evaluation = self._evaluator(examples).evaluate_native(pairs, self._any_size.logits)
        return self._results(evaluation, "pairs", examples)

    def _evaluator(self, examples: Examples) -> Any:
        return building.build_evaluator(
            self.config,
            tf.distribute.get_strategy(),
            self.model,
            examples,
            None,
            Requests(),
            flip_tta=self._flip_tta,
            details=True,
        )

    def _results(self, evaluation: Evaluation | None, split: str, examples: Examples) -> dict[str, Any]:
        assert evaluation is not None  # nobody ends it early
        groups, sample = examples.groups, examples.sample
        return split_results(evaluation, self.step, split, self.classes, groups=groups, sample=sample)


def load(
    source: str | os.PathLike[str],
    *,
    checkpoint: str = "best",
    ema: bool | None = None,
    flip_tta: bool = False,
    tile: int | tuple[int, int] | None = None,
    allow_code: bool = False,
) -> Segmenter:
    """A trained network.

    Args:
      source: a work directory; a file of packed weights, which `eval.py --export=weights` writes; or the name of a
        packaged model, "pets".
      checkpoint: of a work directory: `best`, `latest`, or the path of one.
      ema: of a work directory: whether to use its averaged weights; None: if there are any.
      flip_tta: whether to average the probabilities of a picture and of its mirror image.
      tile: side, or height and width, of tiles in which pictures are gone over; None: those of a run with
        `resize="crop"`, others as a whole.
      allow_code: whether the Python code of a run's own `network` may be run.

    Raises:
      PetsegError: if there is nothing of that kind, or it cannot be used.
    """
    source = os.fspath(source)
    sides = tile if isinstance(tile, tuple) else (tile or 0, tile or 0)
    text = "" if tile is None else f"{sides[0]},{sides[1]}"
    workdir = WorkDirectory(source)
    if ema is None and workdir.config_file.is_file():
        ema = workdir.load_config().optimizer.ema_decay > 0
    score = ScoreConfig(
        workdir=source,
        checkpoint=checkpoint,
        ema=bool(ema),
        tile=text,
        predict=".",
        output_dir=".",
        allow_code=allow_code,
    )
    run = open_run(score)
    model = run.build_model()
    step = run.restore(run.checkpoint(checkpoint), model)
    return Segmenter(
        model, run.config, run.classes, step=step, tile=score.tile_size(run.config.data), flip_tta=flip_tta
    )


def as_array(picture: Picture) -> np.ndarray:
    """A picture as uint8 [H, W, 3].

    Raises:
      DataError: if it is no picture, or cannot be read.
    """
    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "there is no such file"
            raise DataError(f"{path}: {what}; must be a picture's file")
    if isinstance(picture, str | os.PathLike | Image.Image):
        try:
            return as_people_see_it(picture) if isinstance(picture, Image.Image) else read_image(Path(picture))
        except PetsegError:
            raise
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
            name = picture if isinstance(picture, str | os.PathLike) else "image"
            raise DataError(f"{name}: cannot be read: {one_line(error)}") from error
    if not hasattr(picture, "__array__"):
        raise DataError(f"image: got {type(picture).__name__}; must be an array, a path or a Pillow image")
    image = np.asarray(picture)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        hint = ""
        if image.dtype.kind == "f":
            hint = "; of numbers in [0, 1]: (image * 255).round().astype('uint8')"
        elif image.ndim == 4:
            hint = "; of several images, a list: list(images)"
        raise DataError(
            f"image: got {image.dtype} {list(image.shape)}; must be uint8 [height, width, 3] with values 0 to 255{hint}"
        )
    return image


def _checked_pair(image: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """A picture uint8 [H, W, 3] and its mask uint8 [H, W, 1]."""
    picture, mask = as_array(image), np.asarray(mask)
    mask = mask[..., 0] if mask.ndim == 3 and mask.shape[-1] == 1 else mask
    if mask.dtype.kind not in "iu" or mask.shape != picture.shape[:2]:
        raise DataError(
            f"mask: got {mask.dtype} {list(mask.shape)}; must be whole numbers {list(picture.shape[:2])}, class ids"
        )
    return picture, mask[..., None].astype(np.uint8)
