"""From Python: a trained network that is called with pictures, and what it says of them."""

import functools
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from petseg.classes import IGNORED, Classes
from petseg.config import Config
from petseg.config.eval_config import ScoreConfig
from petseg.data import loading, subsampling
from petseg.data.backends.memory import MemoryExamples
from petseg.data.examples import Examples
from petseg.deployment.photograph_files import blended, check_foreground
from petseg.deployment.photographs import as_people_see_it, read_image
from petseg.errors import DataError, PetsegError, one_line
from petseg.evaluation.evaluator import Evaluation
from petseg.evaluation.keras_runner import KerasRunner
from petseg.evaluation.results import split_results
from petseg.evaluation.tiled_inference import AnySizeModel
from petseg.runs import building, training_data
from petseg.runs.open_run import load_model, open_run
from petseg.runs.training_data import TrainingData
from petseg.runs.work_directory import WorkDirectory
from petseg.training.stop_requests import StopRequests

# What a picture may be: uint8 [H, W, 3], a path, or Pillow's.
Picture = np.ndarray | str | os.PathLike[str] | Image.Image
Stripes = Callable[[], Iterable[np.ndarray]]
MOST_KEPT = 2**26  # bytes of the probabilities of one picture


class Segmentation:
    """What a picture shows. In a notebook it shows itself, as the overlay.

    Probabilities of all classes take 4 bytes x pixels x classes, so that they are kept only up to `MOST_KEPT` bytes.
    Larger ones are computed again each time they are asked for; everything else is kept.

    Args:
      image: the picture, uint8 [H, W, 3].
      probabilities: of each class, float32 [H, W, C]; or a function that computes them, from top to bottom in parts.
      classes: the classes.

    Attributes:
      image, classes: as given.
      mask: the class of each pixel, uint8 [H, W].
      confidence: the probability of that class, float16 [H, W].
    """

    def __init__(self, image: np.ndarray, probabilities: np.ndarray | Stripes, classes: Classes):
        self.image, self.classes = image, classes
        self._probabilities = None if callable(probabilities) else probabilities
        self._stripes = probabilities if callable(probabilities) else None
        shape = image.shape[:2]
        self.mask: np.ndarray = np.empty(shape, np.uint8)
        self.confidence: np.ndarray = np.empty(shape, np.float16)
        self._foreground: np.ndarray | None = np.empty(shape, np.uint8) if classes.foreground.any() else None
        row = 0
        for stripe in probabilities() if callable(probabilities) else (probabilities,):
            rows = slice(row, row := row + len(stripe))
            self.mask[rows] = stripe.argmax(axis=-1)
            self.confidence[rows] = stripe.max(axis=-1)
            if self._foreground is not None:
                self._foreground[rows] = (stripe @ classes.foreground * 255).round()

    @property
    def probabilities(self) -> np.ndarray:
        """The probability of each class, float32 [H, W, C]. For a large picture each access computes it again.

        Raises:
          DataError: if they were not kept, and this is a copy from another process, where the network is not.
        """
        if self._probabilities is not None:
            return self._probabilities
        if self._stripes is None:
            raise DataError("probabilities: too large to be kept in a pickled Segmentation; segment the picture again")
        found, row = np.empty((*self.mask.shape, len(self.classes)), np.float32), 0
        for stripe in self._stripes():
            found[row : (row := row + len(stripe))] = stripe
        return found

    def __eq__(self, other: object) -> bool:
        """Whether two show the same in the same picture."""
        if not isinstance(other, Segmentation):
            return NotImplemented
        return self.classes == other.classes and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("mask", "confidence", "image")
        )

    def __hash__(self) -> int:
        return hash((self.mask.shape, self.classes.names, zlib.crc32(self.mask.tobytes())))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stripes": None}  # which holds the network

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The picture with the colours of its classes over it."""
        return blended(self.image, self.mask, self.classes, opacity)

    def cutout(self) -> Image.Image:
        """The foreground, as sharp or soft as its probabilities, with the rest transparent (RGBA).

        Raises:
          ConfigError: if no class is foreground.
        """
        check_foreground(self.classes)
        assert self._foreground is not None  # some class is foreground
        return Image.fromarray(np.dstack([self.image, self._foreground]))

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
      trained_on: what is known of the data that it was trained on; None if nothing is but the config.

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
        trained_on: TrainingData | None = None,
    ):
        self.model, self.config, self.classes, self.step = model, config, classes, step
        self._flip_tta, self._trained_on = flip_tta, trained_on
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
            kept = self._any_size.batch_probabilities([image for image in images if self._is_kept(image)])
            return [self._segmentation(image, kept) for image in images]
        return self([picture])[0]

    def evaluate(
        self,
        dataset: str | Iterable[tuple[Any, Any]],
        *,
        data_dir: str = "",
        eval_examples: int = 0,
        allow_training_images: bool = False,
    ) -> dict[str, Any]:
        """Scores of the network, as a results file has them: `mean_iou`, `accuracy`, `iou` by class, and more.

        Args:
          dataset: pairs of a picture uint8 [H, W, 3] and its mask, integers [H, W], of class ids (255 is not counted),
            each scored at its own size; or the name of a split of the data set of the run, such as "test", scored at
            the network's size.
          data_dir: where that data set lies; empty: where it lay in training.
          eval_examples: how many examples of the split are scored, a sample that the run's seed decides; 0: all.
          allow_training_images: whether to score a split even if the network was trained on some of it.

        Raises:
          DataError: if there is no such split, it was trained on, a pair is no such pair, or no mask has a pixel in a
            class.
        """
        if isinstance(dataset, str):
            data = self.config.changed(data={"data_dir": data_dir or self.config.data.data_dir}).data
            if not allow_training_images:
                remedy = "allow_training_images=True"
                training_data.check_not_trained_on(
                    dataset, data, self.classes, self._trained_on, flag="dataset=", remedy=remedy
                )
            whole = loading.load(data, dataset, self.classes)
            examples = subsampling.subsample(whole, eval_examples, self.config.runtime.seed)
            loading.check_labels(examples, data, flag="dataset=", split=dataset)
            return self._results(self._evaluator(examples).evaluate(), dataset, examples)
        pairs = [_checked_pair(i, pair, self.classes) for i, pair in enumerate(dataset)]
        if not pairs:
            raise DataError("dataset: holds no pairs of picture and mask")
        if all((mask == IGNORED).all() for _, mask in pairs):
            raise DataError(
                f"dataset: none of its {len(pairs)} masks has a pixel in a class; must be pairs with labels"
            )
        none = np.zeros([len(pairs), *self.model.input_shape[1:3], 3], np.uint8)  # only their number counts
        examples = MemoryExamples(none, none[..., :1], self.classes, origin="pairs")
        evaluation = self._evaluator(examples).evaluate_native(pairs, self._any_size.logits)
        return self._results(evaluation, "pairs", examples)

    def _is_kept(self, image: np.ndarray) -> bool:
        """Whether the probabilities of a picture are small enough to be kept."""
        return 4 * image.shape[0] * image.shape[1] * len(self.classes) <= MOST_KEPT

    def _segmentation(self, image: np.ndarray, kept: Iterator[np.ndarray]) -> Segmentation:
        """The segmentation of a picture; its probabilities are the next of those that are kept, if they are."""
        if self._is_kept(image):
            return Segmentation(image, next(kept), self.classes)
        return Segmentation(image, functools.partial(self._any_size.stripes, image), self.classes)

    def _evaluator(self, examples: Examples) -> Any:
        return building.build_evaluator(
            self.config,
            tf.distribute.get_strategy(),
            self.model,
            examples,
            None,
            StopRequests(),
            flip_tta=self._flip_tta,
            details=True,
        )

    def _results(self, evaluation: Evaluation | None, split: str, examples: Examples) -> dict[str, Any]:
        assert evaluation is not None  # nobody ends it early
        groups, sample = examples.groups, examples.sampling
        return split_results(evaluation, self.step, split, self.classes, groups=groups, sample=sample)


def load(
    source: str | os.PathLike[str],
    *,
    checkpoint: str = "best",
    ema: bool | None = None,
    flip_tta: bool = False,
    tile: int | Sequence[int] | None = None,
    allow_code: bool = False,
) -> Segmenter:
    """A trained network.

    Args:
      source: a work directory; a file of packed weights, which `eval.py --export=weights` writes; or the name of a
        packaged model, "pets".
      checkpoint: of a work directory: `best`, `latest`, or the path of one.
      ema: of a work directory: whether to use its averaged weights; None: if there are any.
      flip_tta: whether to average the probabilities of a picture and of its mirror image.
      tile: side, or height and width, of tiles in which pictures are gone over; 0: pictures as a whole; None: those of
        a run with `resize="crop"`, others as a whole.
      allow_code: whether the Python code of a run's own `network` may be run.

    Raises:
      PetsegError: if there is nothing of that kind, or it cannot be used.
    """
    source = os.fspath(source)
    workdir = WorkDirectory(source)
    if ema is None and workdir.config_file.is_file():
        ema = workdir.load_config().optimizer.ema_decay > 0
    score = ScoreConfig(
        workdir=source,
        checkpoint=checkpoint,
        ema=bool(ema),
        tile=_tile_flag(tile),
        predict=".",
        output_dir=".",
        allow_code=allow_code,
    )
    run = open_run(score)
    model, step = load_model(run, run.checkpoint(checkpoint))
    return Segmenter(
        model,
        run.config,
        run.classes,
        step=step,
        tile=score.tile_size(run.config.data),
        flip_tta=flip_tta,
        trained_on=run.training_data,
    )


def _tile_flag(tile: int | str | Sequence[int] | None) -> str:
    """Tiles as the flag `--tile` has them."""
    if tile is None or isinstance(tile, str):
        return tile or ""
    if isinstance(tile, tuple | list):
        return ",".join(map(str, tile))
    return f"{tile},{tile}" if tile else "0"


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
    if image.size and image.ndim in (2, 3) and (colors := _as_colors(image)) is not None:
        return colors
    hint = ""
    if image.dtype.kind == "f":
        hint = "; of numbers in [0, 1]: (image * 255).round().astype('uint8')"
    elif image.ndim == 4:
        hint = "; of several images, a list: list(images)"
    raise DataError(
        f"image: got {image.dtype} {list(image.shape)}; must be uint8 [height, width, 3] with values 0 to 255, or grey "
        f"[height, width]{hint}"
    )


def _as_colors(image: np.ndarray) -> np.ndarray | None:
    """An array as uint8 [H, W, 3], as a Pillow image of the same pixels would be; None if it is no picture."""
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.dtype == np.uint8 and channels == 3:
        return image
    if channels == 1 and image.dtype in (np.uint8, np.uint16, np.bool_):
        return as_people_see_it(Image.fromarray(image.reshape(image.shape[:2])))
    if channels == 4 and image.dtype == np.uint8:
        return as_people_see_it(Image.fromarray(image))
    return None


def _checked_pair(number: int, pair: Any, classes: Classes) -> tuple[np.ndarray, np.ndarray]:
    """A picture uint8 [H, W, 3] and its mask uint8 [H, W, 1].

    Raises:
      DataError: if it is no pair of a picture and a mask of class ids.
    """
    try:
        image, mask = pair
    except (TypeError, ValueError):
        raise DataError(f"pair {number}: got {type(pair).__name__}; must be a picture and its mask") from None
    picture, mask = as_array(image), np.asarray(mask)
    mask = mask[..., 0] if mask.ndim == 3 and mask.shape[-1] == 1 else mask
    if mask.dtype.kind not in "iu" or mask.shape != picture.shape[:2]:
        raise DataError(
            f"pair {number}: mask: got {mask.dtype} {list(mask.shape)}; must be whole numbers "
            f"{list(picture.shape[:2])}, class ids"
        )
    wrong = mask[(mask != IGNORED) & ((mask < 0) | (mask >= len(classes)))]
    if wrong.size:
        raise DataError(
            f"pair {number}: mask: holds {wrong[0]}, which is no class, in {(wrong == wrong[0]).sum()} pixels; must be "
            f"class ids, 0 to {len(classes) - 1}, or {IGNORED} where there is none"
        )
    return picture, mask[..., None].astype(np.uint8)
