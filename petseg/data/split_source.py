"""The examples of a split, not decoded yet: which ones, from which files, to which size."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from petseg.classes import Classes
from petseg.config import DataConfig
from petseg.data import catalog, example_decoding, random_crops
from petseg.data.catalog import ARRAY_RECORD, DataSet
from petseg.data.record_files import RecordFiles
from petseg.data.resizing import Resizing
from petseg.errors import DataError, one_line
from petseg.runtime import strategies

DECODED_AT_ONCE = 16  # pictures whose pixels are in memory at one time: 24 megapixels take 360 MiB while one is resized
LOOKED_AT = 16  # pictures, for whether there are JPEGs
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SplitSource:
    """Examples of a split, to be decoded at a size.

    Attributes:
      data_set: the data set.
      split: its split, or a slice.
      resizing: how pictures are brought to their size.
      positions: ascending positions of the examples in the split; all of them, or some.
      picture_sizes: int32 [N, 2], heights and widths in the headers of pictures that lie on canvases; else None.
      scaled: whether JPEGs are decoded at a reduced size.
      records: its records by position if they are in array_record files; else None, and they are read in order.
    """

    data_set: DataSet
    split: str
    resizing: Resizing
    positions: range
    picture_sizes: np.ndarray | None = None
    scaled: bool = False
    records: RecordFiles | None = None

    @classmethod
    def open(cls, config: DataConfig, split: str, classes: Classes | None) -> "SplitSource":
        """A split of the data set of a config.

        Raises:
          PetsegError: if there is none, or --cache=none needs its records in another file format.
        """
        data_set = catalog.open_data(config, classes)
        positions = range(data_set.num_examples(split))
        records = RecordFiles(data_set.record_ranges(split)) if data_set.file_format == ARRAY_RECORD else None
        if config.cache == "none" and records is None:
            raise DataError(
                f"--cache=none: {data_set.name} is stored as {data_set.file_format}; must be {ARRAY_RECORD}; "
                "`python -m petseg.data.to_array_record` converts it, and --cache=disk reads any format"
            )
        return cls(data_set, split, Resizing(config.size, config.resize), positions, records=records)

    def on_canvases(self) -> "SplitSource":
        """The same pictures at their own size, each on a canvas that holds the largest, to take crops from."""
        logger.info("%s: reading the sizes of %d pictures from their headers", self.split, self.count)
        files = self.undecoded().map(lambda example: example["image"]).as_numpy_iterator()
        with self._naming_unreadable_files():
            sizes = random_crops.sizes_in_headers(files, self.count)
        canvas = random_crops.canvas_size(sizes, self.resizing.size)
        return dataclasses.replace(self, resizing=Resizing(canvas, "crop"), picture_sizes=sizes)

    def with_scaled_decoding(self) -> "SplitSource":
        """The same pictures, JPEGs among them decoded at a reduced size.

        Raises:
          DataError: if there seem to be no JPEGs among them.
        """
        with self._naming_unreadable_files():
            first = [example["image"] for example in self.undecoded().take(LOOKED_AT)]
        if not any(tf.io.is_jpeg(file) for file in first):
            raise DataError(
                f"--decode=scaled: {self.origin}: none of the first {len(first)} pictures is a JPEG file, and no other "
                "format can be decoded smaller than it is; must be full"
            )
        return dataclasses.replace(self, scaled=True)

    @contextlib.contextmanager
    def _naming_unreadable_files(self) -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:
            where = f"{self.data_set.name}, split {self.split}: the files under {self.data_set.builder.data_path}"
            raise DataError(f"{where} cannot be read: {one_line(error)}") from error

    @property
    def count(self) -> int:
        """The number of examples N."""
        return len(self.positions)

    @property
    def origin(self) -> str:
        """The data set with its config and version, and the split."""
        return f"{self.data_set.full_name}, {self.split}"

    def shape(self, channels: int) -> tuple[int, int, int, int]:
        """(N, H, W, channels), of the decoded examples."""
        return (self.count, *self.resizing.size, channels)

    def where(self, position: int) -> str:
        """Data set, split and number of an example, for messages."""
        return f"{self.data_set.name}, split {self.split}, example {position}"

    def undecoded(self) -> tf.data.Dataset:
        """The examples in order, as `DataSet.raw_examples` gives them."""
        if self.records is not None:
            return self.data_set.parsed(self.records.in_order(self.positions))
        return self.data_set.raw_examples(self.split).take(self.positions.stop).shard(self.positions.step, 0)

    def decode(self, example: dict[str, tf.Tensor], keys: Sequence[str] = ()) -> dict[str, tf.Tensor]:
        """An example as `example_decoding.decode` gives it."""
        return example_decoding.decode(self.data_set, self.resizing, example, keys, scaled=self.scaled)

    def decoded(self, examples: tf.data.Dataset, keys: Sequence[str] = ()) -> tf.data.Dataset:
        """Examples as `decode` gives them, several at one time."""
        decode = tf.autograph.experimental.do_not_convert(lambda example: self.decode(example, keys))
        return examples.map(decode, num_parallel_calls=parallel_decodes())


def parallel_decodes() -> int:
    """How many pictures are decoded at one time: as many as this process may use CPUs, within bounds."""
    return min(strategies.usable_cpus(), DECODED_AT_ONCE)
