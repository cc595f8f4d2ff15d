"""The Python interface to a trained network: `load` returns a `Segmenter`, which is called with images."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from petseg.classes import IGNORED, Classes
from petseg.config import Config
from petseg.config.data_config import NO_WEIGHTS
from petseg.config.eval_config import ScoreConfig
from petseg.config.image_spec import PLAIN, ImageSpec
from petseg.data import images, loading, mask_files, subsampling
from petseg.data.backends.memory import MemoryExamples
from petseg.data.examples import Examples
from petseg.data.folders import mask_values, pair_files
from petseg.data.picture import Picture, PictureError, PixelError, from_pillow, of_bands
from petseg.data.picture_files import FileContent
from petseg.deployment.predictor import Predictor
from petseg.deployment.segmentation import Segmentation
from petseg.errors import ConfigError, DataError, one_line
from petseg.evaluation import metrics
from petseg.evaluation.evaluator import Evaluator
from petseg.evaluation.results import split_results
from petseg.runs import building, training_data_record
from petseg.runs.ensemble import Ensemble
from petseg.runs.open_trained_run import Run, load_model, open_single, with_averages
from petseg.runs.packed_run import packed_file
from petseg.runs.trained_run import weights_to_score
from petseg.runs.training_data_record import TrainingData
from petseg.training import losses
from petseg.training.stop_requests import StopRequests

Source = str | os.PathLike[str]
ImageLike = np.ndarray | str | os.PathLike[str] | Image.Image  # an array [H, W, C], a path, or a Pillow image


class Segmenter:
    """A trained network: `segmenter(image)` returns its `Segmentation`. `load` makes one.

    Args:
      model: float32 images [B, h, w, channels] in [0, 255] -> float32 logits.
      trained_on: the record of the training images of each run; None: only the config is known.
      class_weights: one weight per class in the loss of `evaluate`; None: 1 for all.

    Attributes:
      model, config, classes, step: as given.
      predictor: segments images in transport format.
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
        trained_on: Sequence[TrainingData | None] = (None,),
        class_weights: tuple[float, ...] | None = None,
    ):
        self.model, self.config, self.classes, self.step = model, config, classes, step
        self._flip_tta, self._threshold, self._trained_on = flip_tta, threshold, trained_on
        # User code as it is now, since its files may change before a call of `evaluate`.
        self._own_scores = metrics.own(config.extension.scores)
        self._loss, self._weight_map = losses.Loss(config.loss), building.build_weight_map(config, class_weights)
        self._spec = config.data.image_spec
        self.predictor = Predictor(
            model,
            classes,
            resize=config.data.resize,
            tile=tile,
            flip_tta=flip_tta,
            threshold=threshold,
            image_spec=self._spec,
        )

    @overload
    def __call__(self, image: ImageLike) -> Segmentation: ...

    @overload
    def __call__(self, image: list[ImageLike]) -> list[Segmentation]: ...

    def __call__(self, image: ImageLike | list[ImageLike]) -> Segmentation | list[Segmentation]:
        """Segments an image of any size: an array, a path, or a Pillow image; or a list of them.

        An array [H, W, C] has the channels and dtype of the training images: for 8-bit RGB, uint8 [H, W, 3]. Raises
        DataError if it is none of these, or cannot be read.
        """
        if isinstance(image, list):
            return list(self.predictor.predict([as_array(each, self._spec) for each in image]))
        return self.predictor(as_array(image, self._spec))

    def __repr__(self) -> str:
        height, width = self.config.data.size
        return f"Segmenter({width} x {height}: {', '.join(self.classes.names)})"

    def evaluate(
        self,
        dataset: str | Iterable[tuple[Any, Any]],
        *,
        data_dir: str = "",
        eval_examples: int = 0,
        allow_training_images: bool = False,
        weight_files: str = "",
        weight_feature: str = "",
        score_weights: bool = False,
    ) -> dict[str, Any]:
        """Scores the network; returns the contents of a results file: `mean_iou`, `accuracy`, `iou` by class, and more.

        Args:
          dataset: pairs of an image, as in a call, and its mask, each scored at its own size. A mask is an array of
            class ids, integers [H, W] (255 is ignored), or the path of a file with the values of the data set. Or a
            split of the run's data set, such as "test", scored at the network's size.
          data_dir: folder of that data set; empty: the one of the training.
          eval_examples: number of examples of the split to score, sampled by the run's seed; 0: all.
          allow_training_images: whether to score a split even if the network was trained on some of it.
          weight_files, weight_feature: where the split's weight maps are, as in training; "none": score without; empty:
            as in training. Pairs have none.
          score_weights: whether scores count each pixel by its weight map, not only the loss.

        Raises:
          DataError: if the split does not exist or was trained on, a pair is invalid, or no mask has a labelled pixel.
          ConfigError: if there are no such weight maps.
        """
        config = self.config
        if isinstance(dataset, str):
            weights = weights_to_score(config.data, weight_files, weight_feature, score_weights=score_weights)
            config = config.changed(data={"data_dir": data_dir or config.data.data_dir, **weights})
            data = config.data
            if not allow_training_images:
                remedy = "allow_training_images=True"
                for record in self._trained_on:
                    training_data_record.check_not_trained_on(
                        dataset, data, self.classes, record, flag="dataset=", remedy=remedy
                    )
            whole = loading.load(data, dataset, self.classes)
            examples: Examples = subsampling.subsample(whole, eval_examples, self.config.runtime.seed)
            loading.check_labels(examples, data, flag="dataset=", split=dataset)
            name, evaluation = dataset, self._evaluator(config, examples).evaluate()
        else:
            if not {weight_files, weight_feature} <= {"", NO_WEIGHTS} or score_weights:
                given = f"{weight_files=}, {weight_feature=}, {score_weights=}"
                raise ConfigError(f"{given}: pairs have no weight maps; dataset must be a split")
            config = config.changed(data=weights_to_score(config.data, NO_WEIGHTS))
            pairs = _checked_pairs(dataset, self.classes, self._spec)
            shape = [len(pairs), *self.model.input_shape[1:]]
            blank = np.zeros(shape, self._spec.travels_as)  # only their number counts
            masks = np.zeros([*blank.shape[:3], 1], np.uint8)
            examples = MemoryExamples(blank, masks, self.classes, origin="pairs")
            name, evaluation = "pairs", self._evaluator(config, examples).evaluate_native(pairs, self.predictor.logits)
        assert evaluation is not None  # there are no stop requests
        return split_results(
            evaluation, self.step, name, self.classes, groups=examples.groups, sample=examples.sampling,
            own_scores=self._own_scores,
        )  # fmt: skip

    def _evaluator(self, config: Config, examples: Examples) -> Evaluator:
        return building.build_evaluator(
            config,
            tf.distribute.get_strategy(),
            self.model,
            examples,
            None,
            StopRequests(),
            flip_tta=self._flip_tta,
            threshold=self._threshold,
            details=True,
            loss=self._loss,
            weight_map=self._weight_map,
        )


def load(
    source: Source | Sequence[Source],
    *,
    checkpoint: str | None = None,
    ema: bool | None = None,
    flip_tta: bool = False,
    logit_adjustment: bool = False,
    tile: int | Sequence[int] | None = None,
    threshold: float = 0.0,
    allow_code: bool = False,
) -> Segmenter:
    """Loads a trained network.

    Args:
      source: a work directory; a file of packed weights, which `eval.py --export=weights` writes; or the name of a
        packaged model, "pets". A list of them is an ensemble, which averages their class probabilities.
      checkpoint: of a work directory: `best` (None), `latest`, or the path of a checkpoint.
      ema: of a work directory: whether to use averaged weights; None: if the run has them.
      flip_tta: whether to average the probabilities of each image and its mirror image.
      logit_adjustment: whether to divide class probabilities by the run's class weights, which make rare classes too
        probable.
      tile: side, or height and width, of tiles; 0: whole images; None: tiles for a run with `resize="crop"`, else whole
        images.
      threshold: of two classes, the foreground is predicted where its probability is at least this; 0: the most
        probable class, as with 0.5.
      allow_code: whether to run Python code that the run names in its flags, such as its own `network` or `loss`.

    Raises:
      PetsegError: if the source does not exist or cannot be used.
    """
    sources: list[Any] = [source]
    if isinstance(source, Iterable) and not isinstance(source, str | os.PathLike):
        sources = list(source)
    if not sources or not all(isinstance(each, str | os.PathLike) for each in sources):
        raise ConfigError(f"source: got {source!r}; must be a path, the name of a packaged model, or a list of these")
    given = [f"{name}={value!r}" for name, value in (("checkpoint", checkpoint), ("ema", ema)) if value is not None]
    if given and all(packed_file(os.fspath(each)) for each in sources):
        raise ConfigError(f"{given[0]}: must not come with {source}, which is one checkpoint with one kind of weights")
    checkpoint = "best" if checkpoint is None else checkpoint
    scores = [
        ScoreConfig(
            workdir=os.fspath(each),
            checkpoint=checkpoint,
            ema=bool(ema),
            logit_adjustment=logit_adjustment,
            tile=_tile_flag(tile),
            threshold=threshold,
            predict=".",
            output_dir=".",
            allow_code=allow_code,
        )
        for each in sources
    ]
    members = [open_single(with_averages(score) if ema is None else score) for score in scores]
    run: Run = members[0] if len(members) == 1 else Ensemble(tuple(members))
    model, step = load_model(run, run.checkpoint(checkpoint))
    return Segmenter(
        model,
        run.config,
        run.classes,
        step=step,
        tile=scores[0].tile_size(run.config.data),
        flip_tta=flip_tta,
        threshold=threshold,
        trained_on=[member.training_data for member in run.members],
        class_weights=run.class_weights,
    )


def _tile_flag(tile: int | str | Sequence[int] | None) -> str:
    """The value of the flag `--tile`."""
    if tile is None or isinstance(tile, str):
        return tile or ""
    if isinstance(tile, tuple | list):
        return ",".join(map(str, tile))
    return f"{tile},{tile}" if tile else "0"


def as_array(image: ImageLike, spec: ImageSpec = PLAIN) -> np.ndarray:
    """Converts an array, a path or a Pillow image to an image [H, W, C] in transport format.

    Raises DataError if it is none of these, cannot be read, or has other channels or numbers than the run's images.
    """
    if isinstance(image, str | os.PathLike):
        if not os.path.isfile(image):
            what = "is a folder" if os.path.isdir(image) else "there is no such file"
            raise DataError(f"{os.fspath(image)}: {what}; must be an image file")
        try:
            return images.read(image, spec)
        except PictureError as error:
            raise DataError(f"{os.fspath(image)}: {error}") from error
    if not isinstance(image, Image.Image) and not hasattr(image, "__array__"):
        raise DataError(f"image: got {type(image).__name__}; must be an array, a path or a Pillow image")
    try:
        picture = from_pillow(image) if isinstance(image, Image.Image) else _of_array(np.asarray(image), spec)
        return images.prepared(picture, spec)
    except PictureError as error:
        if isinstance(image, Image.Image) or isinstance(error, PixelError):
            raise DataError(f"image: {error}") from error
        raise DataError(_wrong_array(np.asarray(image), spec)) from error
    except Exception as error:  # Pillow decodes now, and raises OSError, SyntaxError, ValueError and more
        raise DataError(f"image: cannot be read: {one_line(error)}") from error


def _of_array(array: np.ndarray, spec: ImageSpec) -> Picture:
    """A picture of an array; of four channels where three are wanted, the last is opacity."""
    picture = of_bands(array, "ARRAY")
    is_rgba = spec.channels == 3 and picture.pixels.shape[2] == 4
    return dataclasses.replace(picture, alpha=True) if is_rgba else picture


def _wrong_array(array: np.ndarray, spec: ImageSpec) -> str:
    channels = "[height, width, 3]" if spec.channels == 3 else f"[height, width, {spec.channels}]"
    values = " with values 0 to 255" if spec.is_plain else ""
    grey = ", or grey [height, width]" if spec.channels in (1, 3) else ""
    hint = ""
    if array.dtype.kind == "f" and spec.dtype == "uint8":
        scaled, top = ("image", 255) if array.size and array.max() > 1 else ("(image * 255)", 1)
        hint = f"; for values in [0, {top}]: {scaled}.round().astype('uint8')"
    elif array.ndim == 4:
        hint = "; of several images, a list: list(images)"
    elif array.ndim == 3 and array.shape[0] == spec.channels:
        hint = "; with the channels first: np.moveaxis(image, 0, -1)"
    elif array.dtype.kind in "iu" and array.dtype != np.uint8 and spec.is_plain:
        hint = "; if its values are 0 to 255: image.astype('uint8')"
    return f"image: got {array.dtype} {list(array.shape)}; must be {spec.dtype} {channels}{values}{grey}{hint}"


def _checked_pairs(dataset: Any, classes: Classes, spec: ImageSpec) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs of `evaluate`, as `_checked_pair`; raises DataError if there are none with a labelled pixel."""
    if not isinstance(dataset, Iterable):
        raise DataError(f"dataset: got {type(dataset).__name__}; must be pairs of image and mask, or a split")
    pairs = []
    for number, pair in enumerate(dataset):
        try:
            pairs.append(_checked_pair(pair, classes, spec))
        except DataError as error:
            raise DataError(f"pair {number}: {error}") from error
    if not pairs:
        raise DataError("dataset: holds no pairs of image and mask")
    if all((mask == IGNORED).all() for _, mask in pairs):
        raise DataError(f"dataset: none of its {len(pairs)} masks has a labelled pixel; must be labelled pairs")
    return pairs


def _checked_pair(pair: Any, classes: Classes, spec: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
    """Converts a pair to an image [H, W, C] and a mask uint8 [H, W, 1]; raises DataError if it is invalid."""
    parts = tuple(pair) if isinstance(pair, Iterable) and not isinstance(pair, str | Mapping) else ()
    if len(parts) != 2:
        raise DataError(f"got {type(pair).__name__}; must be an image and its mask")
    image, mask = parts
    if isinstance(image, str | os.PathLike) and isinstance(mask, str | os.PathLike):
        return _pair_of_files(image, mask, classes, spec)
    image = as_array(image, spec)
    if not isinstance(mask, str | os.PathLike) and not hasattr(mask, "__array__"):  # Pillow images hold values of files
        found = type(mask).__name__
        raise DataError(f"mask: got {found}; must be an array of class ids, or the path of a mask file")
    mask = mask_files.read(mask, classes) if isinstance(mask, str | os.PathLike) else np.asarray(mask)
    mask = mask[..., 0] if mask.ndim == 3 and mask.shape[-1] == 1 else mask
    if mask.dtype.kind not in "iu" or mask.shape != image.shape[:2]:
        raise DataError(
            f"mask: got {mask.dtype} {list(mask.shape)}; must be integers {list(image.shape[:2])}, class ids"
        )
    wrong = mask[(mask != IGNORED) & ((mask < 0) | (mask >= len(classes)))]
    if wrong.size:
        raise DataError(
            f"mask: holds {wrong[0]}, which is not a class, in {(wrong == wrong[0]).sum()} pixels; must be class ids 0 "
            f"to {len(classes) - 1}, or {IGNORED} for ignored pixels"
        )
    return image, mask[..., None].astype(np.uint8)


def _pair_of_files(image: Source, mask: Source, classes: Classes, spec: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
    """A pair of files, read as in training: if only the stored image fits the mask, EXIF turns both."""
    image, mask = os.fspath(image), os.fspath(mask)
    pair = pair_files.decode_pair(
        image, FileContent(Path(image)), mask, FileContent(Path(mask)), mask_values.MaskCoding(classes)
    )
    if pair.faults:
        raise DataError(str(pair.faults[0]))
    assert pair.picture
    assert pair.ids is not None
    try:
        return images.prepared(pair.picture, spec, image), pair.ids[..., None]
    except PictureError as error:
        raise DataError(f"{image}: {error}") from error
