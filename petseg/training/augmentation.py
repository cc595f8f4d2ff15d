"""Random changes to training examples, on the device; image and mask move together.

Stateless: what happens to an example is a function of (seed, step, position in the global batch), so it is the same on
any number of replicas and after a restart.
"""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf

from petseg.classes import IGNORED
from petseg.config import AugmentationConfig

Augmentation = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Parts:
    """How far each change may go; the defaults change nothing.

    Attributes:
      flip: share of the examples that are mirrored.
      crop_area: smallest area of a crop, as a share of the image's; sides that are longer than the image's are cut. A
        crop is resized to the size of the image.
      crop_aspect: largest factor by which a crop is wider, or narrower, than the image.
      rotation: largest angle in degrees, either way.
      brightness: the image is multiplied by a factor in [1 - brightness, 1 + brightness].
      contrast: the distance of the image to its mean is multiplied by a factor in [1 - contrast, 1 + contrast].
      saturation: the distance of the image to grey is multiplied by a factor in [1 - saturation, 1 + saturation].
      hue: largest rotation of the colours, either way, in turns.
      cutout: side of a square that is painted grey, as a share of the image's side.
    """

    flip: float = 0.0
    crop_area: float = 1.0
    crop_aspect: float = 1.0
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    cutout: float = 0.0

    @property
    def moves(self) -> bool:
        return self.crop_area < 1 or self.crop_aspect > 1 or self.rotation > 0

    @property
    def recolours(self) -> bool:
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0


SETS = {
    "none": Parts(),
    "flip": Parts(flip=0.5),
    "standard": Parts(
        flip=0.5, crop_area=0.5, crop_aspect=1.2, rotation=10, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02
    ),
    "strong": Parts(
        flip=0.5, crop_area=0.25, crop_aspect=1.33, rotation=20, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.05,
        cutout=0.25,
    ),
}  # fmt: skip

GREY = 127.5
# To luma and two axes of colour, in which hue is an angle and saturation a radius (YIQ, the colours of NTSC).
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def parts_of(config: AugmentationConfig) -> Parts:
    """How far flags let each change go: as their set says, but for those that were given."""
    return dataclasses.replace(SETS[config.augment], **config.changed_parts())


def augmentation(parts: Parts, *, seed: int, batch_size: int) -> Augmentation:
    """What changes the examples of a step.

    Args:
      parts: how far each change may go.
      seed: seed of the run.
      batch_size: global batch size. Randomness is drawn for all of it and each replica picks its own rows.

    Returns:
      a function (images, masks, step, positions) -> (images, masks), with images float32 [b, H, W, 3] in [0, 255],
      masks uint8 [b, H, W, 1], step int64 scalar and positions int64 [b]. Pixels from outside the image are mirrored
      in, and IGNORED in the mask.
    """

    def augment(
        images: tf.Tensor, masks: tf.Tensor, step: tf.Tensor, positions: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        drawn = tf.random.stateless_uniform([batch_size, 12], seed=tf.stack([tf.constant(seed, tf.int64), step]))
        # One column for each decision, whether it is taken or not, so that no part changes what another one draws.
        flip, area, aspect, angle, x, y, brightness, contrast, saturation, hue, hole_x, hole_y = tf.unstack(
            tf.gather(drawn, positions), axis=1
        )
        if parts.flip:
            images, masks = (flip_left_right(both, flip < parts.flip) for both in (images, masks))
        if parts.moves:
            width, height = crop_sides(
                tf.exp(_between(math.log(parts.crop_area), 0.0, area)),
                tf.exp(_between(-1, 1, aspect) * math.log(parts.crop_aspect)),
            )
            radians = _between(-1, 1, angle) * math.radians(parts.rotation)
            images, masks = move(images, masks, width, height, radians, x, y)
        if parts.recolours:
            images = recolour(
                images,
                1 + _between(-1, 1, brightness) * parts.brightness,
                1 + _between(-1, 1, contrast) * parts.contrast,
                1 + _between(-1, 1, saturation) * parts.saturation,
                _between(-1, 1, hue) * parts.hue,
            )
        if parts.cutout:
            images = cut_out(images, hole_x, hole_y, parts.cutout)
        return images, masks

    return augment


def _between(low: float, high: float, drawn: tf.Tensor) -> tf.Tensor:
    return low + (high - low) * drawn


def flip_left_right(images: tf.Tensor, flipped: tf.Tensor) -> tf.Tensor:
    """Mirrors the chosen images.

    Args:
      images: [b, H, W, C] of any dtype.
      flipped: bool [b], whether to mirror each image.
    """
    return tf.where(flipped[:, None, None, None], tf.reverse(images, axis=[2]), images)


def crop_sides(area: tf.Tensor, aspect: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Width and height of crops, as shares of the image's, from their areas and width-to-height ratios; at most 1."""
    root = tf.sqrt(area)
    return tf.minimum(root * tf.sqrt(aspect), 1.0), tf.minimum(root / tf.sqrt(aspect), 1.0)


def move(
    images: tf.Tensor,
    masks: tf.Tensor,
    width: tf.Tensor,
    height: tf.Tensor,
    radians: tf.Tensor,
    x: tf.Tensor,
    y: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Crops, turns and resizes to the old size, in one go; images bilinearly, masks to the nearest pixel.

    Args:
      images: float32 [b, H, W, C].
      masks: uint8 [b, H, W, 1].
      width: float32 [b], widths of the crops, as shares of the images'.
      height: float32 [b], heights of the crops, as shares of the images'.
      radians: float32 [b], angle by which a crop is turned about its own centre.
      x: float32 [b], where the crop lies: 0 at the left, 1 at the right.
      y: float32 [b], where it lies from top, 0, to bottom, 1.
    """
    rows, columns = images.shape[1], images.shape[2]
    cos, sin = tf.cos(radians), tf.sin(radians)
    a, b, c, d = width * cos, -height * sin, width * sin, height * cos
    middle_x, middle_y = (columns - 1) / 2, (rows - 1) / 2
    centre_x, centre_y = middle_x + (x - 0.5) * (1 - width) * columns, middle_y + (y - 0.5) * (1 - height) * rows
    offset_x, offset_y = centre_x - a * middle_x - b * middle_y, centre_y - c * middle_x - d * middle_y
    nought = tf.zeros_like(a)
    transforms = tf.stack([a, b, offset_x, c, d, offset_y, nought, nought], axis=1)  # of places after to places before
    images = tf.raw_ops.ImageProjectiveTransformV3(
        images=images, transforms=transforms, output_shape=[rows, columns], fill_value=0.0,
        interpolation="BILINEAR", fill_mode="REFLECT",
    )  # fmt: skip
    masks = tf.raw_ops.ImageProjectiveTransformV3(
        images=masks, transforms=transforms, output_shape=[rows, columns], fill_value=float(IGNORED),
        interpolation="NEAREST", fill_mode="CONSTANT",
    )  # fmt: skip
    return images, masks


def recolour(
    images: tf.Tensor, brightness: tf.Tensor, contrast: tf.Tensor, saturation: tf.Tensor, hue: tf.Tensor
) -> tf.Tensor:
    """Changes the colours of float32 [b, H, W, 3] in [0, 255] by three factors and a rotation in turns, all [b]."""
    angle = 2 * math.pi * hue
    one, nought = tf.ones_like(angle), tf.zeros_like(angle)
    cos, sin = saturation * tf.cos(angle), saturation * tf.sin(angle)
    turn = tf.stack([one, nought, nought, nought, cos, -sin, nought, sin, cos], axis=1)
    to_yiq = tf.constant(YIQ)
    matrix = tf.linalg.inv(to_yiq) @ tf.reshape(turn, [-1, 3, 3]) @ to_yiq * brightness[:, None, None]
    images = tf.einsum("bhwc,bdc->bhwd", images, matrix)
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    return tf.clip_by_value(mean + contrast[:, None, None, None] * (images - mean), 0.0, 255.0)


def cut_out(images: tf.Tensor, x: tf.Tensor, y: tf.Tensor, share: float) -> tf.Tensor:
    """Paints a square of each image grey (DeVries and Taylor 2017); the mask still says what is behind it.

    Args:
      images: float32 [b, H, W, C] in [0, 255].
      x: float32 [b], where the centre lies, 0 at the left, 1 at the right.
      y: float32 [b], where it lies from top, 0, to bottom, 1.
      share: side of the square as a share of the image's sides; less is seen of a square that reaches over an edge.
    """
    _, rows, columns, _ = images.shape
    inside_y = tf.abs((tf.range(rows, dtype=tf.float32) + 0.5) / rows - y[:, None]) < share / 2
    inside_x = tf.abs((tf.range(columns, dtype=tf.float32) + 0.5) / columns - x[:, None]) < share / 2
    return tf.where((inside_y[:, :, None] & inside_x[:, None, :])[..., None], GREY, images)
