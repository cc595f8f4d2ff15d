"""One example of a data set: its record -> image and mask at the network's size, and whether they can be used."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from petseg.classes import Classes
from petseg.data import mask_decoding
from petseg.data.catalog import DataSet
from petseg.data.folders import mask_values
from petseg.data.resizing import Resizing
from petseg.errors import DataError

SMALLER = (2, 4, 8)  # by which JPEG's transform can divide the sides of a picture while it is decoded
UNDECODABLE = "image or mask cannot be decoded; each must be a JPEG, PNG, GIF or BMP file"


class BadExampleError(DataError):
    """An example cannot be trained on; others may be like it."""


def decoded_pair(data_set: DataSet, example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Image uint8 [H, W, 3] and class ids uint8 [H, W, 1] as they lie in the files, and a value that means nothing."""
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
    mask = mask_decoding.code(values, data_set.classes)
    return mask, mask_decoding.an_unknown_value(values, mask)


def decode_reduced(file: tf.Tensor, resizing: Resizing) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """A picture decoded only as large as it is needed.

    A JPEG's sides are divided by 8, 4 or 2, the most that leaves both at least as long as they are after resizing;
    pictures of other formats are decoded whole.

    Returns:
      the picture, uint8 [H', W', 3]; its own height and width, int32 [2]; what they were divided by, int32 scalar.
    """

    def smaller_jpeg() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        size = tf.io.extract_jpeg_shape(file)[:2]
        needed = resizing.resized_size(size)
        # Sides are rounded up. Whoever can be divided by 8 can be by 4, so the number of those that fit says which.
        fits = [tf.reduce_all(-(-size // ratio) >= needed) for ratio in SMALLER]
        decoders = [lambda ratio=ratio: tf.io.decode_jpeg(file, 3, ratio=ratio) for ratio in (1, *SMALLER)]
        number = tf.math.count_nonzero(fits, dtype=tf.int32)
        return tf.switch_case(number, decoders), size, tf.gather((1, *SMALLER), number)

    def whole() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        image = _decoded_image(file)
        return image, tf.shape(image)[:2], tf.constant(1)

    return tf.cond(tf.io.is_jpeg(file), smaller_jpeg, whole)


def decode(
    data_set: DataSet,
    resizing: Resizing,
    example: dict[str, tf.Tensor],
    keys: Sequence[str] = (),
    *,
    scaled: bool = False,
) -> dict[str, tf.Tensor]:
    """`image` and `mask` at the network's size, `name`, the labels at some keys, and what `check_example` looks at.

    With `scaled` the image, not the mask, is decoded only as large as it is needed.
    """
    mask, unknown = _decoded_mask(data_set, example["mask"])
    if scaled:
        image, image_size, divisor = decode_reduced(example["image"], resizing)
    else:
        image = _decoded_image(example["image"])
        image_size, divisor = tf.shape(image)[:2], tf.constant(1)
    facts = {"image_size": image_size, "mask_size": tf.shape(mask)[:2], "unknown": unknown}
    size = tf.constant(resizing.size)
    as_it_is = tf.reduce_all(facts["image_size"] == size) & tf.reduce_all(facts["mask_size"] == size)
    image, mask = tf.cond(
        as_it_is, lambda: (image, mask), lambda: (resizing.image(image, image_size, divisor), resizing.mask(mask))
    )
    return {
        "image": tf.ensure_shape(image, [*resizing.size, 3]),
        "mask": tf.ensure_shape(mask, [*resizing.size, 1]),
        "name": example["name"],
        **{key: example[key] for key in keys},
        **facts,
    }


def is_usable(example: dict[str, tf.Tensor]) -> tf.Tensor:
    """Whether `check_example` finds nothing wrong with a decoded example; bool scalar, as a graph."""
    return tf.reduce_all(example["image_size"] == example["mask_size"]) & (example["unknown"] == mask_decoding.NONE)


def check_example(example: dict[str, Any], where: str, classes: Classes) -> None:
    """Raises DataError for an example that would train in silence and teach nonsense."""
    image_size, mask_size = tuple(example["image_size"].tolist()), tuple(example["mask_size"].tolist())
    if image_size != mask_size:
        raise BadExampleError(
            f"{where}: the image is {image_size} (height, width), its mask {mask_size}; both must be one size"
        )
    if example["unknown"] != mask_decoding.NONE:
        found = mask_decoding.shown(example["unknown"], classes)
        raise BadExampleError(
            f"{where}: the mask holds {found}, which is in no class; must be {mask_values.allowed_values_text(classes)}"
        )
