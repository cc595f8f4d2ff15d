"""Random parts of pictures, for training that does not resize them."""

import contextlib
import dataclasses
import io
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from petseg.data.pair_decoding import UnusableExampleError
from petseg.picture_formats import open_picture

# Added to the seed, which is below: augmentation draws from (seed, step) too, and places must not depend on it.
PLACES = 1 << 32


@dataclasses.dataclass(frozen=True)
class RandomParts:
    """Which part of a picture an example is, in each step another.

    Attributes:
      size: height h and width w of a part.
      sizes: int32 [N, 2], height and width of the picture of each example; it lies in the middle of a canvas of one
        size, as `Resizing` of method `crop` lays it.
    """

    size: tuple[int, int]
    sizes: np.ndarray

    @classmethod
    def of_files(cls, size: tuple[int, int], files: Iterable[bytes], count: int) -> "RandomParts":
        """Looks up the sizes of so many pictures in the headers of their files.

        What is no picture has size 1 x 1; whoever decodes it says what is wrong with it.
        """
        sizes = np.ones((count, 2), np.int32)
        for i, file in enumerate(files):
            with contextlib.suppress(Exception), open_picture(io.BytesIO(file)) as picture:
                sizes[i] = picture.height, picture.width
        return cls(size, sizes)

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the canvas: as small as holds each picture, and a part."""
        height, width = np.maximum(self.sizes.max(axis=0), self.size).tolist()
        return height, width

    def check(self, position: int, size: np.ndarray, where: str) -> None:
        """Raises UnusableExampleError if a picture, once decoded, has another size than its header said."""
        if (size != self.sizes[position]).any():
            sizes = tuple(self.sizes[position].tolist()), tuple(size.tolist())
            raise UnusableExampleError(
                f"{where}: its header says {sizes[0]} (height, width); must be {sizes[1]}, its size"
            )

    def middles(self, canvases: np.ndarray) -> np.ndarray:
        """The middle of each canvas, [K, h, w, C]."""
        top, left = ((side - wanted) // 2 for side, wanted in zip(canvases.shape[1:3], self.size, strict=True))
        return canvases[:, top : top + self.size[0], left : left + self.size[1]]

    def cut(
        self,
        images: tf.Tensor,
        masks: tf.Tensor,
        ids: tf.Tensor,
        *,
        step: tf.Tensor,
        positions: tf.Tensor,
        batch_size: int,
        seed: int,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The parts that some examples are in a step.

        A part lies inside its picture, each place as likely as the others. Along a side on which the picture is the
        smaller one, it lies in the middle of the part.

        Args:
          images: uint8 [K, H, W, 3], canvases.
          masks: uint8 [K, H, W, 1], canvases.
          ids: int64 [K], the examples that they are.
          step: int64 scalar.
          positions: int64 [K], their positions in the global batch.
          batch_size: global batch size.
          seed: seed of the run.

        Returns:
          images and masks [K, h, w, ...].
        """
        drawn = tf.random.stateless_uniform(
            [batch_size, 2], seed=tf.stack([tf.constant(seed + PLACES, tf.int64), step])
        )
        starts = self._starts(tf.gather(self.sizes, ids), tf.shape(images)[1:3], tf.gather(drawn, positions))
        return self._part(images, starts), self._part(masks, starts)

    def _starts(self, sizes: tf.Tensor, canvas: tf.Tensor, drawn: tf.Tensor) -> tf.Tensor:
        """Where parts begin in their canvases, int32 [K, 2]; `drawn` in [0, 1) [K, 2] says where in the picture."""
        room = sizes - tf.constant(self.size)
        inside = tf.minimum(tf.cast(drawn * tf.cast(room + 1, tf.float32), tf.int32), room)  # rounding may reach 1
        return (canvas - sizes) // 2 + tf.where(room >= 0, inside, -(-room // 2))

    def _part(self, canvases: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
        shape = [*self.size, canvases.shape[-1]]

        def part(canvas: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
            return tf.slice(canvas, [start[0], start[1], 0], shape)

        # One after the other: tf.gather of rows and columns would copy pixel by pixel, and take ten times as long.
        return tf.map_fn(
            lambda both: part(*both), (canvases, starts), fn_output_signature=tf.TensorSpec(shape, canvases.dtype)
        )
