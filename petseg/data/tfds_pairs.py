"""Reads the image-mask pairs of a TFDS data set for the checker, as it reads the files of a folder."""

import io
from collections.abc import Iterator

import tensorflow as tf

from petseg.classes import Classes
from petseg.config import DataConfig
from petseg.data import catalog
from petseg.data.catalog import DataSet
from petseg.data.folders import folder_files, pair_files
from petseg.data.folders.mask_values import PALETTED, MaskCoding
from petseg.data.folders.pair_files import DecodedPair
from petseg.picture_formats import open_picture


def read_all(config: DataConfig) -> tuple[str, dict[str, int], Classes, Iterator[tuple[str, DecodedPair]]]:
    """Name, split sizes and classes of a TFDS data set, and an iterator over (split, pair)."""
    data_set = catalog.open_data(config)
    sizes = {split: info.num_examples for split, info in data_set.builder.info.splits.items()}
    return data_set.name, sizes, data_set.classes, _pairs(data_set, sizes)


def _pairs(data_set: DataSet, sizes: dict[str, int]) -> Iterator[tuple[str, DecodedPair]]:
    classes, coding = data_set.classes, MaskCoding(data_set.classes)

    def examples() -> Iterator[tuple[str, str, bytes, bytes]]:
        for split in sizes:
            for i, example in enumerate(data_set.raw_examples(split).as_numpy_iterator()):
                name = example["name"].decode() or f"{split}/{i}"
                yield split, name, example["image"], example["mask"]

    def read(each: tuple[str, str, bytes, bytes]) -> tuple[str, DecodedPair]:
        split, name, image, mask = each
        return split, pair_files.decode_pair(name, image, f"mask of {name}", _without_palette(mask, classes), coding)

    return folder_files.map_with_progress(examples(), read, sum(sizes.values()), f"reading {data_set.name}")


def _without_palette(mask: bytes, classes: Classes) -> bytes:
    """A mask as TensorFlow decodes it: palette images as colours or their grey values, never as indices."""
    try:
        with open_picture(io.BytesIO(mask)) as picture:
            if picture.mode not in PALETTED or classes.colored:
                return mask
        pixels = tf.io.decode_image(mask, channels=1, expand_animations=False)
        return tf.io.encode_png(pixels).numpy()
    except (OSError, tf.errors.OpError):
        return mask  # unreadable, as its reader will report
