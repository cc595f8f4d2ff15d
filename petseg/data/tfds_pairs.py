"""Reads the pairs of a TFDS data set, or of user code, for the checker, as it reads the files of a folder."""

from collections.abc import Iterator
from typing import Any

from petseg import custom_code
from petseg.classes import Classes
from petseg.config import DataConfig
from petseg.data import catalog
from petseg.data.catalog import DataSet
from petseg.data.folders import folder_files, pair_files
from petseg.data.folders.faults import Fault
from petseg.data.folders.mask_values import MaskCoding
from petseg.data.folders.pair_files import DecodedPair
from petseg.data.picture_files import FileContent


def read_all(config: DataConfig) -> tuple[str, dict[str, int], Classes, Iterator[tuple[str, DecodedPair]]]:
    """Name, split sizes and classes of a data set, and an iterator over (split, pair)."""
    is_code = custom_code.is_reference(config.dataset)  # which names no splits itself
    data_set = catalog.open_with_splits(config) if is_code else catalog.open_data(config)
    sizes = data_set.sizes()
    return data_set.name, sizes, data_set.classes, _pairs(data_set, sizes)


def _pairs(data_set: DataSet, sizes: dict[str, int]) -> Iterator[tuple[str, DecodedPair]]:
    coding = MaskCoding(data_set.classes)

    def read(each: tuple[str, Any]) -> tuple[str, DecodedPair]:
        split, files = each
        if isinstance(files, Fault):
            return split, DecodedPair(files.where, faults=(files,))
        name, image, mask, weight = files
        with_weight = (f"weight map of {name}", FileContent(weight)) if weight else None
        return split, pair_files.decode_pair(name, image, f"mask of {name}", mask, coding, weight=with_weight)

    examples = ((split, files) for split in sizes for files in data_set.files_of(split))
    return folder_files.map_with_progress(examples, read, sum(sizes.values()), f"reading {data_set.name}")
