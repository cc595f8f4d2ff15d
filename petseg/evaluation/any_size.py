"""A network of one size, used on pictures of any size."""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from petseg.data.resizing import Resizing
from petseg.models import inference, tiles

SMALLEST = np.float32(1e-30)  # probability, so that it has a logarithm


class AnySizeModel:
    """Says of each pixel of a picture of any size which class it is in.

    A picture comes to the network's size as in training, and what the network says is brought back to the picture's. In
    tiles, each tile is treated as a picture of its own.

    Args:
      model: the network, float32 images in [0, 255] of one size -> float32 logits.
      resize: how pictures come to the network's size, one of RESIZES.
      tile: height and width of tiles; None: pictures are taken as a whole. `crop` needs tiles, no larger than the
        network's input.
      flip_tta: whether to average the probabilities of a picture and of its mirror image.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        resize: str = "stretch",
        tile: tuple[int, int] | None = None,
        flip_tta: bool = False,
    ):
        self._model, self._tile, self._flip_tta = model, tile, flip_tta
        self._resizing = Resizing(model.input_shape[1:3], resize)
        image = tf.TensorSpec([None, None, 3], tf.uint8, "image")
        self._of_whole = tf.function(self._logits, input_signature=[image], autograph=False)
        self._of_tile = tf.function(
            lambda image: tf.nn.softmax(self._logits(image)), input_signature=[image], autograph=False
        )

    def logits(self, image: np.ndarray) -> tf.Tensor:
        """Float32 [H, W, C], whose softmax are the probabilities, for a picture uint8 [H, W, 3]."""
        if tiles.is_one_tile(image.shape, self._tile_for(image)):
            return self._of_whole(image)
        return tf.math.log(tf.maximum(self.probabilities(image), SMALLEST))

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Float32 [H, W, C] for a picture uint8 [H, W, 3]."""
        return np.concatenate(list(self.stripes(image)))

    def stripes(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """The probabilities from top to bottom, float32 [rows, W, C]; in tiles, few rows are in memory."""
        yield from tiles.stripes(image, self._tile_for(image), lambda part: self._of_tile(part).numpy())

    def _tile_for(self, image: np.ndarray) -> tuple[int, int]:
        return self._tile or image.shape[:2]

    def _logits(self, image: tf.Tensor) -> tf.Tensor:
        logits = inference.logits(self._model, self._resizing.image(image)[None], flip_tta=self._flip_tta)
        return self._resizing.back(logits, tf.shape(image))[0]
