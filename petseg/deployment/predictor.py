"""Runs a network on images of any size: resize or tile, predict, resize back. Imports no TensorFlow itself."""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from petseg.classes import Classes
from petseg.config.image_spec import PLAIN, ImageSpec
from petseg.deployment.probability_files import Rows, SpooledRows
from petseg.deployment.segmentation import Segmentation, is_kept
from petseg.evaluation.tiled_inference import AnySizeModel, Runner

if TYPE_CHECKING:
    import keras


class Prepared(NamedTuple):
    """An image in transport format, [H, W, C], and its version at the network's size [h, w, C]; None if it is tiled."""

    image: np.ndarray
    resized: np.ndarray | None


class Predictor:
    """The one prediction path of `eval.py --predict`, `petseg.load`, the demo page and ONNX Runtime.

    Args:
      model: Keras model, float32 images [B, h, w, channels] in [0, 255] -> float32 logits; or the path of an ONNX file
        that petseg exported, which needs no TensorFlow.
      tile: height and width of tiles; None: whole images.
      spool_dir: folder of temporary files for the probabilities of large tiled images; empty: they are
        recomputed at each access.

    Attributes:
      batch_size: number of images per batch.

    Raises:
      ConfigError: if ONNX Runtime is needed and not installed, or a threshold does not suit the classes.
      ExportError: if the ONNX file cannot be read.
    """

    def __init__(
        self,
        model: "keras.Model | str | os.PathLike[str]",
        classes: Classes,
        *,
        resize: str = "stretch",
        tile: tuple[int, int] | None = None,
        flip_tta: bool = False,
        threshold: float = 0.0,
        spool_dir: str = "",
        image_spec: ImageSpec = PLAIN,
    ):
        if threshold:
            classes.binary_foreground()  # raises
        self.classes, self._threshold, self._spool_dir = classes, threshold, spool_dir
        self.image_spec = image_spec
        runner = _runner(model, resize=resize, flip_tta=flip_tta, image_spec=image_spec)
        self._model = AnySizeModel(runner, tile=tile)
        self.batch_size = self._model.runner.batch_size

    def __call__(self, image: np.ndarray) -> Segmentation:
        """Segments an image, [H, W, C] in transport format."""
        return next(self.predict([image]))

    def predict(self, images: Iterable[np.ndarray]) -> Iterator[Segmentation]:
        """Segments images, [H, W, C] of any sizes in transport format, in batches."""
        images = iter(images)
        while batch := list(itertools.islice(images, self.batch_size)):
            yield from (finish() for finish in self.run_network([self.prepare(image) for image in batch]))

    def logits(self, image: np.ndarray) -> Any:
        """Float32 [H, W, C], whose softmax are the class probabilities of an image [H, W, C]."""
        return self._model.logits(image)

    # The steps of `predict`: any thread may prepare images and finish them, one thread runs the network.

    def prepare(self, image: np.ndarray) -> Prepared:
        """Resizes an image to the network's size, unless it is tiled."""
        return Prepared(image, self._model.runner.resize_image(image) if self._model.is_whole(image.shape) else None)

    def run_network(self, batch: Sequence[Prepared]) -> list[Callable[[], Segmentation]]:
        """Runs the network on whole images as one batch, on tiled images one by one.

        Returns for each image the function that resizes the logits back to the image's size; tiled images are done
        already.
        """
        whole = [each.resized for each in batch if each.resized is not None]
        logits = iter(self._model.network_logits(whole) if whole else ())
        finishers: list[Callable[[], Segmentation]] = []
        for image, resized in batch:
            if resized is None:
                rows: Rows = functools.partial(self._model.stripes, image)
                if self._spool_dir and not is_kept(image.shape, self.classes):
                    rows = SpooledRows(rows, self._spool_dir)
                done = self._segmentation(image, rows)
                finishers.append(functools.partial(lambda segmentation: segmentation, done))
            else:
                rows = functools.partial(self._model.runner.probabilities, next(logits), image.shape)
                finishers.append(functools.partial(self._segmentation, image, rows))
        return finishers

    def _segmentation(self, image: np.ndarray, rows: Rows) -> Segmentation:
        return Segmentation(self.image_spec.shown(image), rows, self.classes, threshold=self._threshold)


def _runner(model: Any, *, resize: str, flip_tta: bool, image_spec: ImageSpec) -> Runner:
    if isinstance(model, str | os.PathLike):
        from petseg.deployment.onnx_runner import OnnxRunner

        return OnnxRunner(model, resize=resize, flip_tta=flip_tta, padding=image_spec.padding)
    from petseg.evaluation.keras_runner import KerasRunner

    return KerasRunner(model, resize=resize, flip_tta=flip_tta, image_spec=image_spec)
