"""Decodes one example: record -> image and mask at the network's size, and whether they are valid."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from petseg.classes import IGNORED
from petseg.config.image_spec import CODES, ImageSpec
from petseg.data import mask_files, weight_map_files
from petseg.data.catalog import DataSet
from petseg.data.folders.mask_values import MaskCoding
from petseg.data.images import LUMA, Bands
from petseg.data.resizing import Resizing
from petseg.errors import DataError

DIVISORS = (2, 4, 8)  # by which a JPEG decoder can divide the sides of an image
UNDECODABLE = "the image cannot be decoded; must be a JPEG, PNG, GIF or BMP file"


class BadExampleError(DataError):
    """An example that cannot be decoded or has an invalid mask."""


@dataclasses.dataclass(frozen=True)
class ImageDecoding:
    """Decodes the image files of records, as graphs that agree with `images.prepared`."""

    bands: Bands  # the bands that the files hold
    spec: ImageSpec  # the images of the run

    def __call__(self, file: tf.Tensor) -> tf.Tensor:
        """An image in transport format, uint8 or uint16 [H, W, C]."""
        return self._encoded(self.stored(file))

    def stored(self, file: tf.Tensor) -> tf.Tensor:
        """An image with the pixel values of its file, uint8, uint16 or float32 [H, W, C]."""
        return self._unstacked(file) if self.bands.is_stacked else self._with_channels(self._plain(file))

    def from_rgb(self, image: tf.Tensor) -> tf.Tensor:
        """Decoded RGB, uint8 [H, W, 3], as an image in transport format."""
        return self._encoded(self._with_channels(image))

    def _plain(self, file: tf.Tensor) -> tf.Tensor:
        channels = 4 if self.bands.is_used_alpha(self.spec.channels) or self.spec.channels == 4 else 3

        def others() -> tf.Tensor:
            return tf.io.decode_image(file, channels, tf.as_dtype(self.bands.dtype), expand_animations=False)

        is_eight_bit_rgb = channels == 3 and self.bands.dtype == "uint8"
        image = tf.cond(tf.io.is_jpeg(file), lambda: _decoded_jpeg(file), others) if is_eight_bit_rgb else others()
        return tf.ensure_shape(image, [None, None, channels])

    def _with_channels(self, image: tf.Tensor) -> tf.Tensor:
        """The wanted channels of decoded RGB or RGBA."""
        channels = self.spec.channels
        if channels == 2:  # grey and opacity
            return tf.gather(image, [0, 3], axis=-1)
        if channels == 1:  # integers, as `images.luma`
            grey = tf.reduce_sum(tf.cast(image, tf.int32) * tf.constant(LUMA), axis=-1, keepdims=True)
            return tf.cast((grey + 500) // 1000, image.dtype)
        return image

    def _unstacked(self, file: tf.Tensor) -> tf.Tensor:
        bands, count = self.bands, self.bands.count + self.bands.alpha
        stored = tf.uint8 if bands.dtype == "uint8" else tf.uint16
        planes = tf.io.decode_png(file, 1, stored)[..., 0]
        width = tf.shape(planes)[1]
        image = tf.transpose(tf.reshape(planes, [bands.planes, -1, width]), [1, 2, 0])
        if bands.dtype == "float32":
            image = tf.bitcast(tf.reshape(image, [-1, width, count, 2]), tf.float32)
        if not bands.is_used_alpha(self.spec.channels):
            image = image[..., : bands.count]
        if bands.count == 1 and self.spec.channels == 3:
            image = tf.repeat(image, 3, axis=-1)
        if bands.count == 3 and self.spec.channels == 1:
            image = tf.reduce_sum(image * (tf.constant(LUMA, tf.float32) / 1000), axis=-1, keepdims=True)
        return tf.ensure_shape(image, [None, None, self.spec.channels])

    def _encoded(self, image: tf.Tensor) -> tf.Tensor:
        """As `ImageSpec.encode`."""
        if self.spec.dtype != "float32":
            return image
        low, high = tf.constant(self.spec.low, tf.float32), tf.constant(self.spec.high, tf.float32)
        share = tf.clip_by_value((image - low) / (high - low), 0, 1)
        return tf.cast(tf.round(share * CODES), tf.uint16)


def _decoded_jpeg(file: tf.Tensor, ratio: int = 1) -> tf.Tensor:
    """RGB of a JPEG file, with the exact cosine transform, as Pillow decodes it; sides divided by `ratio`."""
    return tf.io.decode_jpeg(file, 3, ratio=ratio, dct_method="INTEGER_ACCURATE")


def decoded_pair(
    data_set: DataSet, images: ImageDecoding, example: dict[str, tf.Tensor], weights: str = ""
) -> tuple[tf.Tensor, ...]:
    """The mask's fault, if any; image in transport format [H, W, C] and class ids uint8 [H, W, 1], not resized.

    With `weights`, the dtype of the weight map, the weight map [H, W, 1] too.
    """
    mask, problem = _decoded_mask(data_set, example["mask"])
    maps = [decoded_weight(data_set, example["weight"], weights)] if weights else []
    return problem, images(example["image"]), mask, *maps


def _decoded_mask(data_set: DataSet, file: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Class ids uint8 [H, W, 1], and what is wrong with the mask, a string scalar, empty if nothing is."""
    if data_set.holds_ids:
        mask, problem = tf.io.decode_image(file, 1, expand_animations=False), tf.constant("")
    else:
        coding = MaskCoding(data_set.classes)

        def read(data: bytes | np.ndarray) -> tuple[np.ndarray, bytes]:
            try:
                data = data.item() if isinstance(data, np.ndarray) else data  # an array of one object in eager mode
                values = mask_files.decode(data, coding.classes.colored)
                return mask_files.ids_of(values, coding)[..., None], b""
            except DataError as error:
                return np.full((1, 1, 1), IGNORED, np.uint8), str(error).encode()

        # As for the disk cache, declared stateless, so that op determinism does not run it sequentially.
        mask, problem = tf.numpy_function(read, [file], [tf.uint8, tf.string], stateful=False)
        problem.set_shape([])
    mask.set_shape([None, None, 1])
    return mask, problem


def decoded_weight(data_set: DataSet, stored: tf.Tensor, dtype: str) -> tf.Tensor:
    """A weight map [H, W, 1] of `dtype`, not scaled."""
    if data_set.holds_weight_files:
        return ImageDecoding(Bands(dtype, 1), ImageSpec(1, dtype)).stored(stored)
    weight = data_set.builder.info.features[data_set.weight_feature].decode_example(stored)
    weight = tf.convert_to_tensor(weight)
    return tf.ensure_shape(weight[..., None] if weight.shape.rank == 2 else weight, [None, None, 1])


def _weight_problem(weight: tf.Tensor) -> tf.Tensor:
    """The fault of a weight map, a string scalar, empty if there is none; as `weight_map_files.problem`."""
    weight = tf.cast(weight, tf.float32)
    wrong = {
        weight_map_files.ALL_ZERO: tf.reduce_all(weight == 0),
        weight_map_files.NEGATIVE: tf.reduce_any(weight < 0),
        weight_map_files.NOT_FINITE: ~tf.reduce_all(tf.math.is_finite(weight)),
    }
    problem = tf.constant("")
    for text, is_so in wrong.items():
        problem = tf.where(is_so, text, problem)
    return problem


def decode_reduced(
    file: tf.Tensor, images: ImageDecoding, resizing: Resizing
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decodes an image at a reduced size (--decode=scaled).

    A JPEG's sides are divided by the largest of 8, 4 and 2 that leaves both at least as long as after resizing; other
    formats are decoded at full size. Returns the image in transport format, [H', W', C]; its full height and width,
    int32 [2]; the divisor, int32 scalar.
    """

    def reduced_jpeg() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        size = tf.io.extract_jpeg_shape(file)[:2]
        needed = resizing.resized_size(size)
        # Sides are rounded up. If 8 fits, 4 fits too, so the number of divisors that fit is the index of the largest.
        fits = [tf.reduce_all(-(-size // ratio) >= needed) for ratio in DIVISORS]
        decoders = [lambda ratio=ratio: images.from_rgb(_decoded_jpeg(file, ratio)) for ratio in (1, *DIVISORS)]
        number = tf.math.count_nonzero(fits, dtype=tf.int32)
        return tf.switch_case(number, decoders), size, tf.gather((1, *DIVISORS), number)

    def whole() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        image = images(file)
        return image, tf.shape(image)[:2], tf.constant(1)

    return tf.cond(tf.io.is_jpeg(file), reduced_jpeg, whole)


def decode(
    data_set: DataSet,
    images: ImageDecoding,
    resizing: Resizing,
    example: dict[str, tf.Tensor],
    keys: Sequence[str] = (),
    *,
    scaled: bool = False,
    weights: str = "",
) -> dict[str, tf.Tensor]:
    """Decodes and resizes an example.

    Returns:
      `image` uint8 or uint16 [h, w, C], `mask` uint8 [h, w, 1], `name`, the labels, and for `check_example` the
      decoded sizes `image_size` and `mask_size`, int32 [2], and `problem`, what is wrong with the mask, a string. With
      a weight map, `weight` [h, w, 1], and `weight_size` and `weight_problem` too.
    """
    mask, problem = _decoded_mask(data_set, example["mask"])
    if scaled:
        image, image_size, divisor = decode_reduced(example["image"], images, resizing)
    else:
        image = images(example["image"])
        image_size, divisor = tf.shape(image)[:2], tf.constant(1)
    facts = {"image_size": image_size, "mask_size": tf.shape(mask)[:2], "problem": problem}
    size = tf.constant(resizing.size)
    has_size = tf.reduce_all(facts["image_size"] == size) & tf.reduce_all(facts["mask_size"] == size)
    image, mask = tf.cond(
        has_size, lambda: (image, mask), lambda: (resizing.image(image, image_size, divisor), resizing.mask(mask))
    )
    with_weight = {}
    if weights:
        weight = decoded_weight(data_set, example["weight"], weights)
        facts |= {"weight_size": tf.shape(weight)[:2], "weight_problem": _weight_problem(weight)}
        with_weight["weight"] = tf.ensure_shape(resizing.weight(weight), [*resizing.size, 1])
    return {
        **with_weight,
        "image": tf.ensure_shape(image, [*resizing.size, images.spec.channels]),
        "mask": tf.ensure_shape(mask, [*resizing.size, 1]),
        "name": example["name"],
        **{key: example[key] for key in keys},
        **facts,
    }


def is_usable(example: dict[str, tf.Tensor]) -> tf.Tensor:
    """Whether `check_example` accepts a decoded example, bool scalar, as a graph."""
    usable = tf.reduce_all(example["image_size"] == example["mask_size"]) & (example["problem"] == "")
    if "weight" in example:
        usable &= tf.reduce_all(example["weight_size"] == example["mask_size"]) & (example["weight_problem"] == "")
    return usable


def check_example(example: dict[str, Any], where: str) -> None:
    """Raises BadExampleError if image, mask and weight map differ in size, or mask or weight map cannot be used."""
    if example["problem"]:
        raise BadExampleError(f"{where}: the mask {example['problem'].decode()}")
    image_size, mask_size = tuple(example["image_size"].tolist()), tuple(example["mask_size"].tolist())
    if image_size != mask_size:
        raise BadExampleError(
            f"{where}: the image is {image_size} (height, width), its mask {mask_size}; both must be one size"
        )
    if "weight" not in example:
        return
    if example["weight_problem"]:
        raise BadExampleError(f"{where}: the weight map {example['weight_problem'].decode()}")
    if (weight_size := tuple(example["weight_size"].tolist())) != mask_size:
        raise BadExampleError(
            f"{where}: the mask is {mask_size} (height, width), its weight map {weight_size}; both must be one size"
        )
