"""Decodes one example: record -> image and mask at the network's size, and whether they are valid."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from petseg.classes import Classes
from petseg.data import mask_decoding
from petseg.data.catalog import DataSet
from petseg.data.folders import mask_values
from petseg.data.resizing import Resizing
from petseg.errors import DataError

DIVISORS = (2, 4, 8)  # by which a JPEG decoder can divide the sides of an image
UNDECODABLE = "image or mask cannot be decoded; each must be a JPEG, PNG, GIF or BMP file"


class BadExampleError(DataError):
    """An example that cannot be decoded or has an invalid mask."""


def decoded_pair(data_set: DataSet, example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Image uint8 [H, W, 3] and class ids uint8 [H, W, 1] at their stored size, and an invalid mask value or NONE."""
    return _decoded_image(example["image"]), *_decoded_mask(data_set, example["mask"])


def _decoded_image(file: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_image(file, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    return image


def _decoded_mask(data_set: DataSet, file: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    values = tf.io.decode_image(file, data_set.mask_channels, data_set.mask_dtype, expand_animations=False)
    values.set_shape([None, None, data_set.mask_channels])
    if data_set.holds_ids:
        return values, tf.constant(mask_decoding.NONE)
    mask = mask_decoding.class_ids(values, data_set.classes)
    return mask, mask_decoding.invalid_value(values, mask)


def decode_reduced(file: tf.Tensor, resizing: Resizing) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decodes an image at a reduced size (--decode=scaled).

    A JPEG's sides are divided by the largest of 8, 4 and 2 that leaves both at least as long as after resizing; other
    formats are decoded at full size.

    Returns:
      the image, uint8 [H', W', 3]; its full height and width, int32 [2]; the divisor, int32 scalar.
    """

    def reduced_jpeg() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        size = tf.io.extract_jpeg_shape(file)[:2]
        needed = resizing.resized_size(size)
        # Sides are rounded up. If 8 fits, 4 fits too, so the number of divisors that fit is the index of the largest.
        fits = [tf.reduce_all(-(-size // ratio) >= needed) for ratio in DIVISORS]
        decoders = [lambda ratio=ratio: tf.io.decode_jpeg(file, 3, ratio=ratio) for ratio in (1, *DIVISORS)]
        number = tf.math.count_nonzero(fits, dtype=tf.int32)
        return tf.switch_case(number, decoders), size, tf.gather((1, *DIVISORS), number)

    def whole() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        image = _decoded_image(file)
        return image, tf.shape(image)[:2], tf.constant(1)

    return tf.cond(tf.io.is_jpeg(file), reduced_jpeg, whole)


def decode(
    data_set: DataSet,
    resizing: Resizing,
    example: dict[str, tf.Tensor],
    keys: Sequence[str] = (),
    *,
    scaled: bool = False,
) -> dict[str, tf.Tensor]:
    """Decodes and resizes an example.

    Args:
      data_set: the data set.
      resizing: resizes images and masks.
      example: undecoded, as in `DataSet.raw_examples`.
      keys: class labels to keep.
      scaled: whether to decode a JPEG image at a reduced size.

    Returns:
      `image` uint8 [h, w, 3], `mask` uint8 [h, w, 1], `name`, the labels, and for `check_example` the decoded sizes
      `image_size` and `mask_size`, int32 [2], and `invalid`, an invalid mask value or NONE, int32.
    """
    mask, invalid = _decoded_mask(data_set, example["mask"])
    if scaled:
        image, image_size, divisor = decode_reduced(example["image"], resizing)
    else:
        image = _decoded_image(example["image"])
        image_size, divisor = tf.shape(image)[:2], tf.constant(1)
    facts = {"image_size": image_size, "mask_size": tf.shape(mask)[:2], "invalid": invalid}
    size = tf.constant(resizing.size)
    has_size = tf.reduce_all(facts["image_size"] == size) & tf.reduce_all(facts["mask_size"] == size)
    image, mask = tf.cond(
        has_size, lambda: (image, mask), lambda: (resizing.image(image, image_size, divisor), resizing.mask(mask))
    )
    return {
        "image": tf.ensure_shape(image, [*resizing.size, 3]),
        "mask": tf.ensure_shape(mask, [*resizing.size, 1]),
        "name": example["name"],
        **{key: example[key] for key in keys},
        **facts,
    }


def is_usable(example: dict[str, tf.Tensor]) -> tf.Tensor:
    """Whether `check_example` accepts a decoded example, bool scalar, as a graph."""
    return tf.reduce_all(example["image_size"] == example["mask_size"]) & (example["invalid"] == mask_decoding.NONE)


def check_example(example: dict[str, Any], where: str, classes: Classes) -> None:
    """Raises BadExampleError if image and mask differ in size or the mask has an invalid value."""
    image_size, mask_size = tuple(example["image_size"].tolist()), tuple(example["mask_size"].tolist())
    if image_size != mask_size:
        raise BadExampleError(
            f"{where}: the image is {image_size} (height, width), its mask {mask_size}; both must be one size"
        )
    if example["invalid"] != mask_decoding.NONE:
        found = mask_values.value_text(example["invalid"], classes.colored)
        raise BadExampleError(
            f"{where}: the mask holds {found}, which is in no class; must be {mask_values.allowed_values_text(classes)}"
        )
