"""Resolves the image flags from a data set: channels, pixel dtype and intensity range."""

import dataclasses
import logging
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from petseg.config import DataConfig, image_spec
from petseg.config.data_config import AUTO, RANGES
from petseg.data import images
from petseg.data.catalog import DataSet
from petseg.data.example_decoding import ImageDecoding
from petseg.data.images import PERCENTILES
from petseg.data.picture import PictureError
from petseg.errors import DataError

MEASURED_IMAGES, MEASURED_NUMBERS = 512, 3 * 2**14  # at most; numbers of one image
CHECKED_IMAGES = 16
FAR = 10  # times the range of all other numbers
LIKE_8_BITS = 16 * 255  # value, beyond which numbers up to 255 are nearly black
logger = logging.getLogger(__name__)


def resolved(config: DataConfig, data_set: DataSet) -> DataConfig:
    """The config with --channels, --image_dtype and --intensity_range as they are in the data set.

    Raises DataError if the images of the data set differ from each other or from the flags; names one.
    """
    counts = data_set.band_counts(config.named_splits)
    channels, bands = counts.resolve(config.channels, config.image_dtype)
    if note := counts.alpha_note(config.channels):
        logger.warning("%s: %s", data_set.name, note)
    text = config.intensity_range
    if text == AUTO:
        text = RANGES["uint8"]
        if bands.dtype != "uint8":
            spec = image_spec.ImageSpec(channels, bands.dtype)
            text = _measured_range(data_set, config.train_split, ImageDecoding(bands, spec))
    return dataclasses.replace(config, channels=channels, image_dtype=bands.dtype, intensity_range=text)


def decoding_of(config: DataConfig, data_set: DataSet) -> ImageDecoding:
    """The decoding of a data set's images; resolves flags that the config leaves open."""
    config = resolved(config, data_set)
    _, bands = data_set.band_counts(config.named_splits).resolve(config.channels, config.image_dtype)
    return ImageDecoding(bands, config.image_spec)


def check_scale(data_set: DataSet, split: str, decoding: ImageDecoding) -> None:
    """Raises DataError if the pixel values of a split are on another scale than the intensity range of its run."""
    if decoding.spec.dtype == "uint8":
        return
    values = np.concatenate(_sampled(data_set, split, decoding, CHECKED_IMAGES) or [np.zeros((1, 1))])
    try:
        images.check_scale(values, decoding.spec)
        if decoding.spec.dtype == "uint16" and 0 < values.max() <= 255 and min(decoding.spec.high) > LIKE_8_BITS:
            raise PictureError(  # of single images, some are dark
                f"holds values of 8 bits, up to {values.max()}; must be on the scale of the training images, whose "
                f"--intensity_range ends at {min(decoding.spec.high):g}"
            )
    except PictureError as error:
        raise DataError(f"{data_set.name}, split {split}: {error}") from error


def _measured_range(data_set: DataSet, split: str, decoding: ImageDecoding) -> str:
    """The range of the pixel values in a split, as the value of --intensity_range.

    One range for RGB, whose channels share a scale; one for each channel of other images. Raises DataError if all
    numbers are the same.
    """
    channels = decoding.spec.channels
    values = _sampled(data_set, split, decoding, MEASURED_IMAGES)
    if not values:
        return RANGES[decoding.spec.dtype]
    _refuse_two_scales(values, split)
    _warn_of_8_bit_values(values, split)
    numbers = np.concatenate(values).astype(np.float64).reshape(-1, 1 if channels == 3 else channels)
    _refuse_no_data(numbers, split)
    low, high = np.percentile(numbers, PERCENTILES, axis=0)
    flat = low >= high
    low, high = np.where(flat, numbers.min(axis=0), low), np.where(flat, numbers.max(axis=0), high)
    if (low >= high).all():
        raise DataError(
            f"--train_split={split}: all pixel values are {low[0]:g}; must differ, or --intensity_range must "
            "be LOW,HIGH"
        )
    high = np.where(low >= high, low + 1, high)
    if decoding.spec.dtype == "uint16":
        low, high = np.floor(low), np.ceil(high)
    text = image_spec.range_text(tuple(low.tolist()), tuple(high.tolist()))
    logger.info(
        "--intensity_range=%s: percentiles %g and %g of %d images of %s are scaled to 0 and 255; %d channel%s of %s",
        text, *PERCENTILES, len(values), split, channels, "s" if channels > 1 else "", decoding.spec.dtype,
    )  # fmt: skip
    return text


def _refuse_two_scales(values: Sequence[np.ndarray], split: str) -> None:
    """Raises DataError if some images are scaled to [0, 1] or standardised, and others are not.

    One range would make the former black.
    """
    largest = [float(each.max()) for each in values if each.dtype.kind == "f"]
    small, large = [number for number in largest if 0 < number <= 1], [number for number in largest if number > 100]
    few = 0.05 * len(values)
    centred = sum(_is_standardised(each) for each in values)
    plain = sum(each.min() >= 0 and 100 < each.max() <= 256 for each in values)
    if min(centred, plain) > few:
        raise DataError(
            f"--train_split={split}: {centred} of {len(values)} images hold pixel values around 0, as standardised "
            f"ones do, {plain} those of 8 bits; must be of one scale, or --intensity_range be LOW,HIGH"
        )
    if min(len(small), len(large)) > few:
        raise DataError(
            f"--train_split={split}: {len(small)} of {len(values)} images hold pixel values up to 1, {len(large)} up "
            f"to {max(large):g}; must be of one scale, or --intensity_range be LOW,HIGH"
        )


def _warn_of_8_bit_values(values: Sequence[np.ndarray], split: str) -> None:
    """Warns if some images of 16 bits hold values of 8 bits only: they may be dark, or on another scale."""
    few = 0.05 * len(values)
    dark = sum(0 < each.max() <= 255 for each in values)
    if values[0].dtype == np.uint16 and dark > few and sum(each.max() > LIKE_8_BITS for each in values) > few:
        logger.warning(
            "--train_split=%s: %d of %d images hold values up to 255, others beyond %d; if not all are of one scale, "
            "the former are black", split, dark, len(values), LIKE_8_BITS,
        )  # fmt: skip


def _is_standardised(numbers: np.ndarray) -> bool:
    """Whether numbers seem to have mean 0 and deviation 1; indices such as NDVI are -1 to 1."""
    largest = np.abs(numbers).max()
    return bool(1 < largest <= images.STANDARDISED and (numbers < -largest / 4).mean() > 0.05)


def _refuse_no_data(numbers: np.ndarray, split: str) -> None:
    """Raises DataError if the smallest or largest of the numbers [N, C] stands for missing data, such as -9999.

    It would decide the range, and all others become one shade.
    """
    for extreme in np.unique([numbers.min(axis=0), numbers.max(axis=0)]):
        others = numbers[(numbers != extreme).all(axis=1)]
        share = 1 - len(others) / len(numbers)
        if not PERCENTILES[0] / 100 <= share < 0.5:  # a background may be one number
            continue
        low, high = np.percentile(others, PERCENTILES, axis=0)
        if ((low < high) & (np.maximum(low - extreme, extreme - high) > FAR * (high - low))).any():
            measured = ",".join(f"{number:.4g}" for number in np.stack([low, high], axis=1).ravel())
            raise DataError(
                f"--train_split={split}: {share:.1%} of the pixel values are {extreme:g}, far from all others, as for "
                f"missing data; --intensity_range must be LOW,HIGH of the others, such as {measured}"
            )


def _sampled(data_set: DataSet, split: str, decoding: ImageDecoding, most: int) -> list[np.ndarray]:
    """Pixel values [N, C] of each of at most so many images of a split."""
    decode = tf.autograph.experimental.do_not_convert(lambda example: decoding.stored(example["image"]))
    examples = data_set.raw_examples(split).shard(math.ceil(data_set.num_examples(split) / most), 0)
    decoded = examples.map(decode).ignore_errors().prefetch(1)  # a bad example is reported when it is loaded
    return [_sample(pixels) for pixels in decoded.as_numpy_iterator()]


def _sample(pixels: np.ndarray) -> np.ndarray:
    """Evenly spaced pixels of an image [H, W, C], of at most MEASURED_NUMBERS numbers: [N, C]."""
    flat = pixels.reshape(-1, pixels.shape[-1])
    return flat[:: math.ceil(len(flat) * max(pixels.shape[-1], 3) / MEASURED_NUMBERS) | 1].copy()
