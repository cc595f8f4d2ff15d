"""How a picture of any size comes to the network's, and how what the network says comes back to the picture's."""

import dataclasses

import tensorflow as tf

from petseg.classes import IGNORED
from petseg.data.numpy_resizing import GREY


@dataclasses.dataclass(frozen=True)
class Resizing:
    """A way from pictures to the network's size; all of it as graphs.

    Attributes:
      size: height h and width w of the network's input.
      method: `stretch`: the whole picture, resized to it. `letterbox`: the whole picture, resized with its shape kept
        as large as fits, in the middle. `crop`: the middle of the picture, not resized; a smaller picture lies in the
        middle.
    """

    size: tuple[int, int]
    method: str = "stretch"

    def image(self, image: tf.Tensor, shape: tf.Tensor | None = None, divisor: tf.Tensor | int = 1) -> tf.Tensor:
        """uint8 [H, W, 3] -> uint8 [h, w, 3], resized bilinearly with antialiasing, filled up with grey.

        Args:
          image: the picture, or a smaller copy of it.
          shape: int32, whose first two are height and width of the picture that it is a copy of; None: its own.
          divisor: what they were divided by, and rounded up, where it is one: a last row or column that is only partly
            of the picture must not move the others.
        """
        if self.method == "crop":
            return self._in_the_middle(image, GREY)
        shape = tf.shape(image) if shape is None else shape
        size = self.resized_size(shape)
        scale = tf.cast(size * divisor, tf.float32) / tf.cast(shape[:2], tf.float32)
        # What tf.image.resize does, which knows nothing of divisors, and wants floats.
        resized = tf.raw_ops.ScaleAndTranslate(
            images=image[None], size=size, scale=scale, translation=[0.0, 0.0], kernel_type="triangle", antialias=True
        )[0]
        return self._in_the_middle(tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8), GREY)

    def mask(self, mask: tf.Tensor) -> tf.Tensor:
        """Class ids, uint8 [H, W, 1] -> [h, w, 1], of the nearest pixel, filled up with IGNORED.

        Anything smoother would invent classes between the real ones.
        """
        if self.method != "crop":
            mask = tf.image.resize(mask, self.resized_size(tf.shape(mask)), method="nearest")
        return self._in_the_middle(mask, IGNORED)

    def to_image_size(self, values: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
        """What was said of the network's input, float32 [B, h, w, C], as said of the picture, [B, H, W, C].

        Args:
          values: logits.
          shape: int32, whose first two are height H and width W of the picture; with `crop` it must not be larger than
            the network's input, of which nothing is known outside.
        """
        if self.method == "stretch":
            return tf.image.resize(values, shape[:2], method="bilinear")
        height, width = tf.unstack(self.resized_size(shape))
        top, left = (self.size[0] - height) // 2, (self.size[1] - width) // 2
        values = values[:, top : top + height, left : left + width]
        return values if self.method == "crop" else tf.image.resize(values, shape[:2], method="bilinear")

    def describe(self) -> str:
        """What the network expects of a picture, for a model card."""
        size = f"{self.size[0]} x {self.size[1]} (height x width)"
        return {
            "stretch": f"resized to {size} bilinearly with antialiasing",
            "letterbox": f"resized bilinearly with antialiasing, its shape kept, to the largest size that fits {size}, "
            f"laid in the middle; what is left is filled with grey, {GREY}",
            "crop": f"a part of {size}, not resized; a smaller picture is laid in the middle, and what is left filled "
            f"with grey, {GREY}",
        }[self.method]

    def resized_size(self, shape: tf.Tensor) -> tf.Tensor:
        """Height and width of a picture when it is resized, int32 [2]."""
        if self.method == "stretch":
            return tf.constant(self.size)
        if self.method == "crop":
            return shape[:2]
        height, width = tf.unstack(tf.cast(shape[:2], tf.int64))
        # As high as fits and as wide as follows, or the other way round. In whole numbers, so that every device and
        # every function rounds alike.
        wide = (2 * width * self.size[0] + height) // (2 * height)
        high = (2 * height * self.size[1] + width) // (2 * width)
        sides = tf.stack([tf.minimum(high, self.size[0]), tf.minimum(wide, self.size[1])])
        return tf.cast(tf.maximum(sides, 1), tf.int32)

    def _in_the_middle(self, picture: tf.Tensor, filling: int) -> tf.Tensor:
        """The middle of [H, W, C], cut to the network's size or filled up to it."""
        if self.method != "stretch":
            picture = middle(picture, self.size, filling)
        return tf.ensure_shape(picture, [*self.size, picture.shape[-1]])


def middle(picture: tf.Tensor, size: tuple[int, int], filling: int) -> tf.Tensor:
    """The middle of a picture [H, W, C], cut or filled up to [h, w, C]."""
    shape = tf.shape(picture)
    padding, slices = [], []
    for side, wanted in zip((shape[0], shape[1]), size, strict=True):
        start, before = tf.maximum(side - wanted, 0) // 2, tf.maximum(wanted - side, 0) // 2
        slices.append(slice(start, start + wanted))
        padding.append([before, tf.maximum(wanted - side, 0) - before])
    return tf.pad(picture[tuple(slices)], [*padding, [0, 0]], constant_values=tf.cast(filling, picture.dtype))
