"""Runs a Keras model on images of any size, resized by TensorFlow as in training."""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from petseg.config.image_spec import PLAIN, ImageSpec
from petseg.data.numpy_resizing import NumpyResizing
from petseg.data.resizing import Resizing
from petseg.evaluation.tiled_inference import inference_batch_size
from petseg.models import inference


class KerasRunner:
    """A Keras model as `tiled_inference.Runner`.

    Args:
      model: the network, float32 images in [0, 255] of one size -> float32 logits.
    """

    def __init__(
        self, model: keras.Model, *, resize: str = "stretch", flip_tta: bool = False, image_spec: ImageSpec = PLAIN
    ):
        *size, channels = model.input_shape[1:]
        self.batch_size = inference_batch_size(size)
        self._resizing = Resizing(tuple(size), resize, image_spec.padding)
        # Resizes row by row, where TensorFlow would hold three copies of all rows; equal up to rounding.
        self._numpy_resizing = NumpyResizing(tuple(size), resize)
        image = tf.TensorSpec([None, None, channels], image_spec.travels_as)
        images = tf.TensorSpec([None, *size, channels], image_spec.travels_as)
        logits, shape = tf.TensorSpec(model.output_shape[1:], tf.float32), tf.TensorSpec([2], tf.int32)
        self._resize_image = tf.function(self._resizing.image, input_signature=[image], autograph=False)
        self._logits = tf.function(
            lambda images: inference.logits(model, images, flip_tta=flip_tta, image_spec=image_spec),
            input_signature=[images],
            autograph=False,
        )
        self._resize_logits = tf.function(
            lambda logits, shape: self._resizing.to_image_size(logits[None], shape)[0],
            input_signature=[logits, shape],
            autograph=False,
        )

    def resize_image(self, image: np.ndarray) -> np.ndarray:
        return self._resize_image(image).numpy()

    def logits(self, images: np.ndarray) -> tf.Tensor:
        return self._logits(images)

    def resize_logits(self, logits: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
        return self._resize_logits(logits, shape[:2])

    def probabilities(self, logits: tf.Tensor, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        return self._numpy_resizing.probabilities(logits.numpy(), shape)
