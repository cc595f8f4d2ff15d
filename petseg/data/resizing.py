"""Resizes images and masks to the network's input size (--resize), and logits back to the image's size."""

import dataclasses

import tensorflow as tf

from petseg.classes import IGNORED
from petseg.config.image_spec import GREY


@dataclasses.dataclass(frozen=True)
class Resizing:
    """Resizing between image size and network input size, as graphs."""

    size: tuple[int, int]  # height h and width w of the network's input
    # `stretch`: resizes the whole image, ignoring its aspect ratio. `letterbox`: keeps the aspect ratio and pads.
    # `crop`: the centre of the image, not resized; a smaller image is padded
    method: str = "stretch"
    padding: tuple[int, ...] = (GREY,)  # value of padding pixels: one, or one for each channel

    def image(self, image: tf.Tensor, shape: tf.Tensor | None = None, divisor: tf.Tensor | int = 1) -> tf.Tensor:
        """Resizes uint8 or uint16 [H, W, C] to [h, w, C], bilinear with antialiasing, padded.

        Args:
          image: the image, or a copy decoded at a reduced size.
          shape: int32, height and width of the full image first; None: the shape of `image`.
          divisor: by which the full sides were divided, rounding up. The scale is computed from the full sides, so that
            a partial last row or column does not shift the others.
        """
        if self.method == "crop":
            return self._crop_or_pad(image, self.padding)
        shape = tf.shape(image) if shape is None else shape
        size = self.resized_size(shape)
        scale = tf.cast(size * divisor, tf.float32) / tf.cast(shape[:2], tf.float32)
        # As tf.image.resize, which supports no divisors and needs floats.
        resized = tf.raw_ops.ScaleAndTranslate(
            images=image[None], size=size, scale=scale, translation=[0.0, 0.0], kernel_type="triangle", antialias=True
        )[0]
        dtype = tf.as_dtype(image.dtype)
        resized = tf.cast(tf.clip_by_value(tf.round(resized), 0, dtype.max), dtype)
        return self._crop_or_pad(resized, self.padding)

    def mask(self, mask: tf.Tensor) -> tf.Tensor:
        """Resizes class ids, uint8 [H, W, 1] to [h, w, 1], by nearest neighbour, padded with IGNORED."""
        return self._nearest(mask, IGNORED)

    def weight(self, weight: tf.Tensor) -> tf.Tensor:
        """Resizes a weight map [H, W, 1] to [h, w, 1] as its mask: weights stay with their labels; 0 outside."""
        return self._nearest(weight, 0)

    def _nearest(self, values: tf.Tensor, padding: int) -> tf.Tensor:
        if self.method != "crop":
            values = tf.image.resize(values, self.resized_size(tf.shape(values)), method="nearest")
        return self._crop_or_pad(values, (padding,))

    def to_image_size(self, values: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
        """Resizes logits, float32 [B, h, w, C], to the image's size, [B, H, W, C], without padding.

        Args:
          values: logits.
          shape: int32, H and W first; with `crop` they must not exceed the network's input.
        """
        if self.method == "stretch":
            return tf.image.resize(values, shape[:2], method="bilinear")
        height, width = tf.unstack(self.resized_size(shape))
        top, left = (self.size[0] - height) // 2, (self.size[1] - width) // 2
        values = values[:, top : top + height, left : left + width]
        return values if self.method == "crop" else tf.image.resize(values, shape[:2], method="bilinear")

    def describe(self) -> str:
        """Preprocessing of images in words, for model cards."""
        size = f"{self.size[0]} x {self.size[1]} (height x width)"
        return {
            "stretch": f"resized to {size} bilinearly with antialiasing",
            "letterbox": f"resized bilinearly with antialiasing, aspect ratio kept, to the largest size that fits "
            f"{size}, centred and padded with grey, {self._grey}",
            "crop": f"a crop of {size}, not resized; a smaller image is centred and padded with grey, {self._grey}",
        }[self.method]

    @property
    def _grey(self) -> str:
        return ", ".join(map(str, self.padding))

    def resized_size(self, shape: tf.Tensor) -> tf.Tensor:
        """Height and width of the image before padding, int32 [2]."""
        if self.method == "stretch":
            return tf.constant(self.size)
        if self.method == "crop":
            return shape[:2]
        height, width = tf.unstack(tf.cast(shape[:2], tf.int64))
        # Full height or full width, whichever fits; integer arithmetic rounds alike on every device.
        wide = (2 * width * self.size[0] + height) // (2 * height)
        high = (2 * height * self.size[1] + width) // (2 * width)
        sides = tf.stack([tf.minimum(high, self.size[0]), tf.minimum(wide, self.size[1])])
        return tf.cast(tf.maximum(sides, 1), tf.int32)

    def _crop_or_pad(self, picture: tf.Tensor, padding_value: tuple[int, ...]) -> tf.Tensor:
        """Crops or pads [H, W, C] around its centre to [h, w, C]."""
        if self.method != "stretch":
            shape = tf.shape(picture)
            padding, slices = [], []
            for side, wanted in zip((shape[0], shape[1]), self.size, strict=True):
                start, before = tf.maximum(side - wanted, 0) // 2, tf.maximum(wanted - side, 0) // 2
                slices.append(slice(start, start + wanted))
                padding.append([before, tf.maximum(wanted - side, 0) - before])
            picture, fill = picture[tuple(slices)], tf.cast(padding_value, picture.dtype)
            if len(padding_value) == 1:
                picture = tf.pad(picture, [*padding, [0, 0]], constant_values=fill[0])
            else:
                inside = tf.pad(tf.ones_like(picture[..., :1], tf.bool), [*padding, [0, 0]])
                picture = tf.where(inside, tf.pad(picture, [*padding, [0, 0]]), fill)
        return tf.ensure_shape(picture, [*self.size, picture.shape[-1]])
