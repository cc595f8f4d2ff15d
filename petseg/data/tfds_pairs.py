"""The pairs of a TFDS data set as the files that they were, so that they are checked as those of a folder are."""

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
    """Opens a TFDS data set.

    Returns:
      its name; the sizes of its splits; its classes; split and pair, one after the other.

    Raises:
      ConfigError: if the classes cannot be used.
      DataError: if the data set cannot be had.
    """
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
        return split, pair_files.decode_pair(name, image, f"mask of {name}", _as_decoded(mask, classes), coding)

    return folder_files.map_with_progress(examples(), read, sum(sizes.values()), f"reading {data_set.name}")


def _as_decoded(mask: bytes, classes: Classes) -> bytes:
    """A mask as TensorFlow decodes it: of a palette the colours, or what those are in grey; never the index."""
    try:
        with open_picture(io.BytesIO(mask)) as picture:
            if picture.mode not in PALETTED or classes.colored:
                return mask
        pixels = tf.io.decode_image(mask, channels=1, expand_animations=False)
        return tf.io.encode_png(pixels).numpy()
    except (OSError, tf.errors.OpError):
        return mask  # which cannot be read, as the one who reads it will say
