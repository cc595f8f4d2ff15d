"""The Python interface to a trained network: `load` returns a `Segmenter`, which is called with images."""

import os
from collections.abc import Iterable, Sequence
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
from petseg.deployment.photographs import read_image, to_rgb
from petseg.deployment.predictor import Predictor
from petseg.deployment.segmentation import Segmentation
from petseg.errors import DataError, PetsegError, one_line
from petseg.evaluation.results import split_results
from petseg.runs import building, training_data
from petseg.runs.open_run import load_model, open_run
from petseg.runs.training_data import TrainingData
from petseg.runs.work_directory import WorkDirectory
from petseg.training.stop_requests import StopRequests

ImageLike = np.ndarray | str | os.PathLike[str] | Image.Image  # an array uint8 [H, W, 3], a path, or a Pillow image


class Segmenter:
    """A trained network: `segmenter(image)` returns its `Segmentation`. `load` makes one.

    Args:
      model: float32 images [B, h, w, 3] in [0, 255] -> float32 logits.
      config: config of the run that trained it.
      classes: the model's classes.
      step: training step of the weights.
      tile: height and width of tiles; None: whole images.
      flip_tta: whether to average the probabilities of each image and its mirror image.
      threshold: as in `load`.
      trained_on: the record of the training images; None: only the config is known.

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
        threshold: float = 0.0,
        trained_on: TrainingData | None = None,
    ):
        self.model, self.config, self.classes, self.step = model, config, classes, step
        self._flip_tta, self._threshold, self._trained_on = flip_tta, threshold, trained_on
        self._predictor = Predictor(
            model, classes, resize=config.data.resize, tile=tile, flip_tta=flip_tta, threshold=threshold
        )

    @overload
    def __call__(self, image: ImageLike) -> Segmentation: ...

    @overload
    def __call__(self, image: list[ImageLike]) -> list[Segmentation]: ...

    def __call__(self, image: ImageLike | list[ImageLike]) -> Segmentation | list[Segmentation]:
        """Segments an image of any size: an array uint8 [H, W, 3], a path, or a Pillow image; or a list of them.

        Raises:
          DataError: if it is none of these, or cannot be read.
        """
        if isinstance(image, list):
            return list(self._predictor.predict([as_array(each) for each in image]))
        return self._predictor(as_array(image))

    def evaluate(
        self,
        dataset: str | Iterable[tuple[Any, Any]],
        *,
        data_dir: str = "",
        eval_examples: int = 0,
        allow_training_images: bool = False,
    ) -> dict[str, Any]:
        """Scores the network; returns the contents of a results file: `mean_iou`, `accuracy`, `iou` by class, and more.

        Args:
          dataset: pairs of an image uint8 [H, W, 3] and its mask, integers [H, W] of class ids (255 is ignored), each
            scored at its own size; or a split of the run's data set, such as "test", scored at the network's size.
          data_dir: folder of that data set; empty: the one of the training.
          eval_examples: number of examples of the split to score, sampled by the run's seed; 0: all.
          allow_training_images: whether to score a split even if the network was trained on some of it.

        Raises:
          DataError: if the split does not exist or was trained on, a pair is invalid, or no mask has a labelled pixel.
        """
        if isinstance(dataset, str):
            data = self.config.changed(data={"data_dir": data_dir or self.config.data.data_dir}).data
            if not allow_training_images:
                remedy = "allow_training_images=True"
                training_data.check_not_trained_on(
                    dataset, data, self.classes, self._trained_on, flag="dataset=", remedy=remedy
                )
            whole = loading.load(data, dataset, self.classes)
            examples: Examples = subsampling.subsample(whole, eval_examples, self.config.runtime.seed)
            loading.check_labels(examples, data, flag="dataset=", split=dataset)
            name, evaluation = dataset, self._evaluator(examples).evaluate()
        else:
            pairs = [_checked_pair(i, pair, self.classes) for i, pair in enumerate(dataset)]
            if not pairs:
                raise DataError("dataset: holds no pairs of image and mask")
            if all((mask == IGNORED).all() for _, mask in pairs):
                raise DataError(f"dataset: none of its {len(pairs)} masks has a labelled pixel; must be labelled pairs")
            blank = np.zeros([len(pairs), *self.model.input_shape[1:3], 3], np.uint8)  # only their number counts
            examples = MemoryExamples(blank, blank[..., :1], self.classes, origin="pairs")
            name, evaluation = "pairs", self._evaluator(examples).evaluate_native(pairs, self._predictor.logits)
        assert evaluation is not None  # there are no stop requests
        return split_results(
            evaluation, self.step, name, self.classes, groups=examples.groups, sample=examples.sampling,
            own_scores=self.config.extension.scores,
        )  # fmt: skip

    def _evaluator(self, examples: Examples) -> Any:
        strategy = tf.distribute.get_strategy()
        options: dict[str, Any] = {"flip_tta": self._flip_tta, "threshold": self._threshold, "details": True}
        return building.build_evaluator(self.config, strategy, self.model, examples, None, StopRequests(), **options)


def load(
    source: str | os.PathLike[str],
    *,
    checkpoint: str = "best",
    ema: bool | None = None,
    flip_tta: bool = False,
    tile: int | Sequence[int] | None = None,
    threshold: float = 0.0,
    allow_code: bool = False,
) -> Segmenter:
    """Loads a trained network.

    Args:
      source: a work directory; a file of packed weights, which `eval.py --export=weights` writes; or the name of a
        packaged model, "pets".
      checkpoint: of a work directory: `best`, `latest`, or the path of a checkpoint.
      ema: of a work directory: whether to use averaged weights; None: if the run has them.
      flip_tta: whether to average the probabilities of each image and its mirror image.
      tile: side, or height and width, of tiles; 0: whole images; None: tiles for a run with `resize="crop"`, else whole
        images.
      threshold: of two classes, the foreground is predicted where its probability is at least this; 0: the most
        probable class, as with 0.5.
      allow_code: whether to run Python code that the run names in its flags, such as its own `network` or `loss`.

    Raises:
      PetsegError: if the source does not exist or cannot be used.
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
        threshold=threshold,
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
        threshold=threshold,
        trained_on=run.training_data,
    )


def _tile_flag(tile: int | str | Sequence[int] | None) -> str:
    """The value of the flag `--tile`."""
    if tile is None or isinstance(tile, str):
        return tile or ""
    if isinstance(tile, tuple | list):
        return ",".join(map(str, tile))
    return f"{tile},{tile}" if tile else "0"


def as_array(image: ImageLike) -> np.ndarray:
    """Converts an array, a path or a Pillow image to uint8 [H, W, 3].

    Raises:
      DataError: if it is none of these, or cannot be read.
    """
    if isinstance(image, str | os.PathLike | Image.Image):
        name = "image" if isinstance(image, Image.Image) else os.fspath(image)
        if not isinstance(image, Image.Image) and not os.path.isfile(image):
            what = "is a folder" if os.path.isdir(image) else "there is no such file"
            raise DataError(f"{name}: {what}; must be an image file")
        try:
            return to_rgb(image) if isinstance(image, Image.Image) else read_image(Path(image))
        except PetsegError:
            raise
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
            raise DataError(f"{name}: cannot be read: {one_line(error)}") from error
    if not hasattr(image, "__array__"):
        raise DataError(f"image: got {type(image).__name__}; must be an array, a path or a Pillow image")
    array = np.asarray(image)
    if array.size and array.ndim in (2, 3) and (rgb := _as_rgb(array)) is not None:
        return rgb
    hint = ""
    if array.dtype.kind == "f":
        hint = "; of numbers in [0, 1]: (image * 255).round().astype('uint8')"
    elif array.ndim == 4:
        hint = "; of several images, a list: list(images)"
    raise DataError(
        f"image: got {array.dtype} {list(array.shape)}; must be uint8 [height, width, 3] with values 0 to 255, or grey "
        f"[height, width]{hint}"
    )


def _as_rgb(array: np.ndarray) -> np.ndarray | None:
    """An array as uint8 [H, W, 3], converted like a Pillow image of the same pixels; None if that is impossible."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype == np.uint8 and channels == 3:
        return array
    if channels == 1 and array.dtype in (np.uint8, np.uint16, np.bool_):
        return to_rgb(Image.fromarray(array.reshape(array.shape[:2])))
    if channels == 4 and array.dtype == np.uint8:
        return to_rgb(Image.fromarray(array))
    return None


def _checked_pair(number: int, pair: Any, classes: Classes) -> tuple[np.ndarray, np.ndarray]:
    """Converts a pair to an image uint8 [H, W, 3] and a mask uint8 [H, W, 1]; raises DataError if it is invalid."""
    try:
        image, mask = pair
    except (TypeError, ValueError):
        raise DataError(f"pair {number}: got {type(pair).__name__}; must be an image and its mask") from None
    image, mask = as_array(image), np.asarray(mask)
    mask = mask[..., 0] if mask.ndim == 3 and mask.shape[-1] == 1 else mask
    if mask.dtype.kind not in "iu" or mask.shape != image.shape[:2]:
        raise DataError(
            f"pair {number}: mask: got {mask.dtype} {list(mask.shape)}; must be integers {list(image.shape[:2])}, "
            "class ids"
        )
    wrong = mask[(mask != IGNORED) & ((mask < 0) | (mask >= len(classes)))]
    if wrong.size:
        raise DataError(
            f"pair {number}: mask: holds {wrong[0]}, which is not a class, in {(wrong == wrong[0]).sum()} pixels; must "
            f"be class ids 0 to {len(classes) - 1}, or {IGNORED} for ignored pixels"
        )
    return image, mask[..., None].astype(np.uint8)
