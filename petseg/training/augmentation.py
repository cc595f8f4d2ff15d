"""Stateless augmentation of training images, their masks and weight maps, on the device.

The changes to an example are a function of (seed, step, position in the global batch), so they are the same on any
number of replicas and after a restart.
"""

import inspect
import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from petseg import custom_code
from petseg.classes import IGNORED
from petseg.config import AugmentationConfig
from petseg.data.crop_focus import CropFocus, FocusPixels
from petseg.data.examples import BatchPosition
from petseg.errors import ConfigError

Augmentation = Callable[..., tuple[tf.Tensor, ...]]

GREY = 127.5
FURTHER_DRAWS, OWN_STREAM = 3 << 32, 1 << 33  # added to seeds, which are smaller; `random_crops.STREAM` is another
# RGB -> YIQ (NTSC): luma and two colour axes, in which hue is an angle and saturation a radius.
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def build_augmentation(
    config: AugmentationConfig, *, seed: int, batch_size: int, focus: CropFocus | None = None
) -> Augmentation:
    """The random changes of a config, as a function of a batch.

    Args:
      batch_size: global batch size. Random numbers are drawn for all of it; each replica uses its own rows.

    Returns:
      a function (images, masks, step, positions, *maps) -> (images, masks, *maps): float32 [b, H, W, C] in [0, 255],
      uint8 [b, H, W, 1], an int64 scalar, int64 [b], and no weight map or one, float32 [b, H, W, 1], which moves as the
      masks do. What it returns has the size of --crop_size, if given. Images are reflected at their edges, masks are
      IGNORED there, and weights 0.
    """
    strength = config.strengths()
    smallest, largest = sorted((strength["crop_area"], strength["crop_area_max"]))
    moves = (smallest, largest) != (1, 1) or strength["crop_aspect"] > 1 or strength["rotation"] > 0 or config.crop_size
    own = own_augmentation(config.augment) if custom_code.is_reference(config.augment) else None
    recolours = any(strength[name] for name in ("brightness", "contrast", "saturation", "hue"))

    def augment(
        images: tf.Tensor, masks: tf.Tensor, step: tf.Tensor, positions: tf.Tensor, *maps: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        moved: list[tf.Tensor] = [images, masks, *maps]
        drawn = tf.random.stateless_uniform([batch_size, 12], seed=tf.stack([tf.constant(seed, tf.int64), step]))
        # A column for every change, used or not, so that switching one on does not affect the draws of another.
        flip, area, aspect, angle, x, y, brightness, contrast, saturation, hue, hole_x, hole_y = tf.unstack(
            tf.gather(drawn, positions), axis=1
        )
        # Each row is one change's, so that more can follow and runs keep the bits of the others.
        further = tf.random.stateless_uniform(
            [3, batch_size], seed=tf.stack([tf.constant(seed + FURTHER_DRAWS, tf.int64), step])
        )
        upside_down, turned, turns = tf.unstack(tf.gather(further, positions, axis=1))
        if strength["flip"]:
            moved = [mirror(each, flip < strength["flip"], axis=2) for each in moved]
        if strength["vertical_flip"]:
            moved = [mirror(each, upside_down < strength["vertical_flip"], axis=1) for each in moved]
        if strength["quarter_turns"]:
            count = tf.where(turned < strength["quarter_turns"], tf.floor(4 * turns), 0.0)
            moved = [turn(each, count) for each in moved]
        if moves:
            width, height = crop_sides(
                tf.exp(_between(math.log(smallest), math.log(largest), area)),
                tf.exp(_between(-1, 1, aspect) * math.log(strength["crop_aspect"])),
            )
            if focus is not None:
                at = BatchPosition(step, positions, batch_size, seed)
                x, y = focused_positions(focus.pixels(moved[1], at), masks.shape[1:3], width, height, x, y)
            radians = _between(-1, 1, angle) * math.radians(strength["rotation"])
            moved = crop_and_rotate(moved, width, height, radians, x, y, config.training_size(masks.shape[1:3]))
        images, *labels = moved
        if recolours:
            images = recolour(
                images,
                1 + _between(-1, 1, brightness) * strength["brightness"],
                1 + _between(-1, 1, contrast) * strength["contrast"],
                1 + _between(-1, 1, saturation) * strength["saturation"],
                _between(-1, 1, hue) * strength["hue"],
            )
        if strength["cutout"]:
            images = cut_out(images, hole_x, hole_y, strength["cutout"])
        if own is not None:
            return own(tf.gather(_seeds(seed, step, batch_size), positions), images, *labels)
        return images, *labels

    return augment


def own_augmentation(reference: str) -> Callable[..., tuple[tf.Tensor, ...]]:
    """The function of the user that --augment names, with a check of what it returns.

    It gets images float32 [b, H, W, C] in [0, 255], masks uint8 [b, H, W, 1] and seeds int32 [b, 2], one pair per
    example for `tf.random.stateless_...`: an example then changes alike on any number of replicas and after a restart.
    If it has a parameter `weights`, it gets the weight maps too, float32 [b, H, W, 1], ones without any, and returns
    them as the third; a function that changes masks must, if there are weight maps. Returns a function (seeds, images,
    masks, *maps) -> (images, masks, *maps). Raises ConfigError if it cannot be imported; in a call, if it fails or
    changes a shape or dtype.
    """
    function = custom_code.load("augment", reference)
    takes_weights = "weights" in inspect.signature(function).parameters

    def augment(seeds: tf.Tensor, images: tf.Tensor, masks: tf.Tensor, *maps: tf.Tensor) -> tuple[tf.Tensor, ...]:
        own_maps = {"weights": maps[0] if maps else tf.ones_like(masks, tf.float32)} if takes_weights else {}
        given = (images, masks, *own_maps.values())
        with custom_code.explained("augment", reference):
            made = function(images, masks, seeds, **own_maps)
            made = tuple(map(tf.convert_to_tensor, made)) if isinstance(made, tuple | list) else (made,)
        found, wanted = ("; ".join(map(custom_code.described, parts)) for parts in (made, given))
        if found != wanted:
            weights = " and weights" if takes_weights else ""
            raise ConfigError(f"--augment={reference}: returned {found}; must be images and masks{weights}, {wanted}")
        if maps and not takes_weights and made[1] is not masks:
            raise ConfigError(
                f"--augment={reference}: returns other masks, and there are weight maps, which must move with them; "
                "must have a parameter `weights`, and return images, masks and weights"
            )
        return made if takes_weights else (*made, *maps)

    return augment


def check_own_augmentation(reference: str, shape: Sequence[int]) -> None:
    """Traces the function of --augment for images of a shape [b, H, W, C]; raises ConfigError as `own_augmentation`."""
    seeds, images = tf.TensorSpec([shape[0], 2], tf.int32), tf.TensorSpec(shape, tf.float32)
    masks = tf.TensorSpec([*shape[:3], 1], tf.uint8)
    tf.function(own_augmentation(reference), autograph=False).get_concrete_function(seeds, images, masks)


def _seeds(seed: int, step: tf.Tensor, batch_size: int) -> tf.Tensor:
    """Seeds of the examples of a step, int32 [batch_size, 2], independent of the draws of the built-in changes."""
    key = tf.stack([tf.constant(seed + OWN_STREAM, tf.int64), step])
    return tf.random.stateless_uniform([batch_size, 2], seed=key, minval=None, maxval=None, dtype=tf.int32)


def _between(low: float, high: float, drawn: tf.Tensor) -> tf.Tensor:
    """Maps numbers drawn from [0, 1) to [low, high)."""
    return low + (high - low) * drawn


def mirror(images: tf.Tensor, flipped: tf.Tensor, *, axis: int) -> tf.Tensor:
    """Mirrors along an axis those of the images [b, H, W, C] for which `flipped`, bool [b], is True."""
    return tf.where(flipped[:, None, None, None], tf.reverse(images, axis=[axis]), images)


def turn(images: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Turns square images [b, H, H, C] by 0 to 3 quarter turns counter-clockwise, float32 [b]; moves pixels only."""
    odd = (count == 1) | (count == 3)
    images = tf.where(odd[:, None, None, None], tf.transpose(images, [0, 2, 1, 3]), images)
    images = mirror(images, (count == 1) | (count == 2), axis=1)
    return mirror(images, count >= 2, axis=2)


def crop_sides(area: tf.Tensor, aspect: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Width and height of crops of given areas and width-to-height ratios, as fractions of the image's.

    Each is at most 1 unless the area is larger than the image's.
    """
    root, limit = tf.sqrt(area), tf.where(area > 1, math.inf, 1.0)
    return tf.minimum(root * tf.sqrt(aspect), limit), tf.minimum(root / tf.sqrt(aspect), limit)


def focused_positions(
    pixels: FocusPixels, size: tuple[int, int], width: tf.Tensor, height: tf.Tensor, x: tf.Tensor, y: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Positions x and y, as in `crop_and_rotate`, of crops centred on pixels as far as they stay in the image.

    Args:
      width: float32 [b], width of each crop as a fraction of the image's.
    """

    def focused(pixel: tf.Tensor, side: int, share: tf.Tensor, otherwise: tf.Tensor) -> tf.Tensor:
        centre = (tf.cast(pixel, tf.float32) + 0.5) / side
        position = tf.math.divide_no_nan(centre - share / 2, 1 - share)
        return tf.where(pixels.found, tf.clip_by_value(position, 0.0, 1.0), otherwise)

    return focused(pixels.column, size[1], width, x), focused(pixels.row, size[0], height, y)


def crop_and_rotate(
    moved: Sequence[tf.Tensor],
    width: tf.Tensor,
    height: tf.Tensor,
    radians: tf.Tensor,
    x: tf.Tensor,
    y: tf.Tensor,
    size: tuple[int, int],
) -> list[tf.Tensor]:
    """Crops, rotates and resizes in one resampling: images bilinearly, masks and weight maps to the nearest pixel.

    Args:
      moved: images, float32 [b, H, W, C]; masks, uint8 [b, H, W, 1]; weight maps, float32 [b, H, W, 1].
      width: float32 [b], width of each crop as a fraction of the image's.
      radians: float32 [b], rotation of the crop about its centre.
      x: float32 [b], horizontal position of the crop: 0 if both left edges coincide, 1 if both right edges do.
      y: float32 [b], vertical position: 0 at the top, 1 at the bottom.
    """
    images, *labels = moved
    rows, columns = images.shape[1], images.shape[2]
    cos, sin = tf.cos(radians), tf.sin(radians)
    step_x, step_y = width * (columns / size[1]), height * (rows / size[0])  # input pixels per output pixel
    a, b, c, d = step_x * cos, -step_y * sin, step_x * sin, step_y * cos
    centre_x = (columns - 1) / 2 + (x - 0.5) * (1 - width) * columns
    centre_y = (rows - 1) / 2 + (y - 0.5) * (1 - height) * rows
    mid_x, mid_y = (size[1] - 1) / 2, (size[0] - 1) / 2
    offset_x, offset_y = centre_x - a * mid_x - b * mid_y, centre_y - c * mid_x - d * mid_y
    zero = tf.zeros_like(a)
    transforms = tf.stack([a, b, offset_x, c, d, offset_y, zero, zero], axis=1)  # output to input coordinates
    images = tf.raw_ops.ImageProjectiveTransformV3(
        images=images, transforms=transforms, output_shape=list(size), fill_value=0.0,
        interpolation="BILINEAR", fill_mode="REFLECT",
    )  # fmt: skip
    return [images] + [
        tf.raw_ops.ImageProjectiveTransformV3(
            images=each, transforms=transforms, output_shape=list(size),
            fill_value=float(IGNORED) if each.dtype == tf.uint8 else 0.0,
            interpolation="NEAREST", fill_mode="CONSTANT",
        )
        for each in labels
    ]  # fmt: skip


def recolour(
    images: tf.Tensor, brightness: tf.Tensor, contrast: tf.Tensor, saturation: tf.Tensor, hue: tf.Tensor
) -> tf.Tensor:
    """Changes the colours of float32 [b, H, W, C] in [0, 255] by three factors and a hue rotation in turns, all [b].

    Images with another number of channels than 3 only change in brightness and contrast.
    """
    if images.shape[-1] == 3:
        images = tf.einsum("bhwc,bdc->bhwd", images, _colour_matrix(saturation, hue) * brightness[:, None, None])
    else:
        images *= brightness[:, None, None, None]
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    return tf.clip_by_value(mean + contrast[:, None, None, None] * (images - mean), 0.0, 255.0)


def _colour_matrix(saturation: tf.Tensor, hue: tf.Tensor) -> tf.Tensor:
    """RGB to RGB matrices [b, 3, 3] that scale the saturation by factors [b] and rotate the hue by turns [b]."""
    angle = 2 * math.pi * hue
    one, zero = tf.ones_like(angle), tf.zeros_like(angle)
    cos, sin = saturation * tf.cos(angle), saturation * tf.sin(angle)
    rotation = tf.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=1)
    to_yiq = tf.constant(YIQ)
    return tf.linalg.inv(to_yiq) @ tf.reshape(rotation, [-1, 3, 3]) @ to_yiq


def cut_out(images: tf.Tensor, x: tf.Tensor, y: tf.Tensor, share: float) -> tf.Tensor:
    """Paints a square of each image grey (cutout, DeVries and Taylor 2017); the mask keeps its labels there.

    Args:
      images: float32 [b, H, W, C] in [0, 255].
      x: float32 [b], centre of the square: 0 at the left edge, 1 at the right.
      share: side of the square as a fraction of the image's sides. Squares are cut off at the image's edges.
    """
    _, rows, columns, _ = images.shape
    inside_y = tf.abs((tf.range(rows, dtype=tf.float32) + 0.5) / rows - y[:, None]) < share / 2
    inside_x = tf.abs((tf.range(columns, dtype=tf.float32) + 0.5) / columns - x[:, None]) < share / 2
    return tf.where((inside_y[:, :, None] & inside_x[:, None, :])[..., None], GREY, images)
