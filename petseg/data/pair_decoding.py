"""One example of a data set: its record -> image and mask at the network's size, and whether they can be used."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from petseg.classes import Classes
from petseg.data import mask_coding, mask_values
from petseg.data.catalog import DataSet
from petseg.data.resizing import Resizing
from petseg.errors import DataError

UNDECODABLE = "image or mask cannot be decoded; each must be a JPEG, PNG, GIF or BMP file"


class UnusableExampleError(DataError):
    """An example cannot be trained on; others may be like it."""


def decoded_pair(data_set: DataSet, example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Image uint8 [H, W, 3] and class ids uint8 [H, W, 1] as they lie in the files, and a value that means nothing."""
    image = tf.io.decode_image(example["image"], channels=3, expand_animations=False)
    values = tf.io.decode_image(example["mask"], data_set.mask_channels, data_set.mask_dtype, expand_animations=False)
    image.set_shape([None, None, 3])
    values.set_shape([None, None, data_set.mask_channels])
    if data_set.holds_ids:
        return image, values, tf.constant(mask_coding.NONE)
    mask = mask_coding.code(values, data_set.classes)
    return image, mask, mask_coding.an_unknown_value(values, mask)


def decode(
    data_set: DataSet, resizing: Resizing, example: dict[str, tf.Tensor], keys: Sequence[str] = ()
) -> dict[str, tf.Tensor]:
    """`image` and `mask` at the network's size, `name`, the labels at some keys, and what `check_example` looks at."""
    image, mask, unknown = decoded_pair(data_set, example)
    facts = {"image_size": tf.shape(image)[:2], "mask_size": tf.shape(mask)[:2], "unknown": unknown}
    size = tf.constant(resizing.size)
    as_it_is = tf.reduce_all(facts["image_size"] == size) & tf.reduce_all(facts["mask_size"] == size)
    image, mask = tf.cond(as_it_is, lambda: (image, mask), lambda: (resizing.image(image), resizing.mask(mask)))
    return {
        "image": tf.ensure_shape(image, [*resizing.size, 3]),
        "mask": tf.ensure_shape(mask, [*resizing.size, 1]),
        "name": example["name"],
        **{key: example[key] for key in keys},
        **facts,
    }


def is_usable(example: dict[str, tf.Tensor]) -> tf.Tensor:
    """Whether `check_example` finds nothing wrong with a decoded example; bool scalar, as a graph."""
    return tf.reduce_all(example["image_size"] == example["mask_size"]) & (example["unknown"] == mask_coding.NONE)


def check_example(example: dict[str, Any], where: str, classes: Classes) -> None:
    """Raises DataError for an example that would train in silence and teach nonsense."""
    image_size, mask_size = tuple(example["image_size"].tolist()), tuple(example["mask_size"].tolist())
    if image_size != mask_size:
        raise UnusableExampleError(
            f"{where}: the image is {image_size} (height, width), its mask {mask_size}; both must be one size"
        )
    if example["unknown"] != mask_coding.NONE:
        found = mask_coding.shown(example["unknown"], classes)
        raise UnusableExampleError(
            f"{where}: the mask holds {found}, which is in no class; must be {mask_values.shown_values(classes)}"
        )
