"""Reads the image-mask pairs of a TFDS data set for the checker, as it reads the files of a folder."""

from collections.abc import Iterator

from petseg.classes import Classes
from petseg.config import DataConfig
from petseg.data import catalog
from petseg.data.catalog import DataSet
from petseg.data.folders import folder_files, pair_files
from petseg.data.folders.mask_values import MaskCoding
from petseg.data.folders.pair_files import DecodedPair


def read_all(config: DataConfig) -> tuple[str, dict[str, int], Classes, Iterator[tuple[str, DecodedPair]]]:
    """Name, split sizes and classes of a TFDS data set, and an iterator over (split, pair)."""
    data_set = catalog.open_data(config)
    sizes = {split: info.num_examples for split, info in data_set.builder.info.splits.items()}
    return data_set.name, sizes, data_set.classes, _pairs(data_set, sizes)


def _pairs(data_set: DataSet, sizes: dict[str, int]) -> Iterator[tuple[str, DecodedPair]]:
    coding = MaskCoding(data_set.classes)

    def examples() -> Iterator[tuple[str, str, bytes, bytes]]:
        for split in sizes:
            for i, example in enumerate(data_set.raw_examples(split).as_numpy_iterator()):
                name = example["name"].decode() or f"{split}/{i}"
                yield split, name, example["image"], example["mask"]

    def read(each: tuple[str, str, bytes, bytes]) -> tuple[str, DecodedPair]:
        split, name, image, mask = each
        return split, pair_files.decode_pair(name, image, f"mask of {name}", mask, coding)

    return folder_files.map_with_progress(examples(), read, sum(sizes.values()), f"reading {data_set.name}")
