"""The undecoded examples of a split, and how they are decoded: files, positions, target size."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from petseg.classes import Classes
from petseg.config import DataConfig
from petseg.data import catalog, example_decoding, image_flags, mask_files, prefetching, random_crops
from petseg.data.catalog import ARRAY_RECORD, DataSet
from petseg.data.example_decoding import ImageDecoding
from petseg.data.mask_survey import MaskFacts
from petseg.data.record_files import Records
from petseg.data.resizing import Resizing
from petseg.errors import DataError, one_line

JPEG_CANDIDATES = 16  # images among which --decode=scaled needs a JPEG
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SplitSource:
    """Undecoded examples of a split."""

    data_set: DataSet  # the data set
    split: str  # its split, or a slice
    images: ImageDecoding  # decodes its images
    resizing: Resizing  # resizes images and masks
    positions: range  # ascending positions in the split of the N examples
    # for canvases of --resize=crop: heights and widths in image headers, int32 [N, 2]; else None
    picture_sizes: np.ndarray | None = None
    scaled: bool = False  # whether JPEGs are decoded at a reduced size
    # random access to the records; None: files without, read in order
    records: Records | None = None
    weight_dtype: str = ""  # of the weight maps; empty without

    @classmethod
    def open(cls, config: DataConfig, split: str, classes: Classes | None) -> "SplitSource":
        """Opens a split; raises PetsegError if it does not exist or --cache=none cannot read its file format."""
        data_set = catalog.open_data(config, classes)
        positions = range(data_set.num_examples(split))
        records = data_set.records(split)
        if config.cache == "none" and records is None:
            raise DataError(
                f"--cache=none: {data_set.name} is stored as {data_set.file_format}; must be {ARRAY_RECORD}; "
                "`python -m petseg.data.to_array_record` converts it, and --cache=disk reads any format"
            )
        images = image_flags.decoding_of(config, data_set)
        image_flags.check_scale(data_set, split, images)
        resizing = Resizing(config.size, config.resize, images.spec.padding)
        weights = data_set.weight_dtype(split)
        if config.score_weights and not weights:
            raise DataError(f"--score_weights: {data_set.name}, split {split}: has no weight maps; must have them")
        if data_set.weight_feature and not weights:
            logger.warning("%s: split %s has no weight maps; its pixels weigh 1", data_set.name, split)
        return cls(data_set, split, images, resizing, positions, records=records, weight_dtype=weights)

    def on_canvases(self) -> "SplitSource":
        """The same images, not resized but each centred on a canvas of the largest size, for random crops."""
        logger.info("%s: reading the sizes of %d images from their headers", self.split, self.count)
        files = self.undecoded().map(lambda example: example["image"]).as_numpy_iterator()
        with self._naming_unreadable_files():
            sizes = random_crops.sizes_in_headers(files, self.count, self.images.bands.planes)
        height, width = np.maximum(sizes.max(axis=0), self.resizing.size).tolist()
        canvases = Resizing((height, width), "crop", self.resizing.padding)
        return dataclasses.replace(self, resizing=canvases, picture_sizes=sizes)

    def with_scaled_decoding(self) -> "SplitSource":
        """The same images, with JPEGs decoded at a reduced size; raises DataError if there seem to be no JPEGs."""
        with self._naming_unreadable_files():
            first = [example["image"] for example in self.undecoded().take(JPEG_CANDIDATES)]
        if not any(tf.io.is_jpeg(file) for file in first):
            raise DataError(
                f"--decode=scaled: {self.origin}: none of the first {len(first)} images is a JPEG file, and no other "
                "format can be decoded at a reduced size; must be full"
            )
        return dataclasses.replace(self, scaled=True)

    @contextlib.contextmanager
    def _naming_unreadable_files(self) -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:
            for position in self.positions:
                self.check_record(position)
            where = f"{self.data_set.name}, split {self.split}: {self.data_set.location}"
            raise DataError(f"{where} cannot be read: {one_line(error)}") from error

    def check_record(self, position: int) -> None:
        """Raises DataError, naming the example, if its record cannot be made."""
        if self.records is not None:
            self.records.check_record(position)

    @functools.cached_property
    def _part_of(self) -> tuple[str, np.ndarray | None]:
        return self.data_set.part_of(self.split)

    @property
    def count(self) -> int:
        """The number of examples N."""
        return len(self.positions)

    @property
    def origin(self) -> str:
        """Data set with config and version, and split."""
        return f"{self.data_set.full_name}, {self.split}"

    def shape(self, channels: int) -> tuple[int, int, int, int]:
        """Shape (N, H, W, channels) of the decoded examples."""
        return (self.count, *self.resizing.size, channels)

    def where(self, position: int) -> str:
        """Data set, split and number of an example, for messages."""
        split, place = self.place(position)
        return f"{self.data_set.name}, split {split}, example {place}"

    def place(self, position: int) -> tuple[str, int]:
        """The split and the place of an example there; of a fold, in the split that it is a part of."""
        split, chosen = self._part_of
        return split, position if chosen is None else int(chosen[position])

    def undecoded(self) -> tf.data.Dataset:
        """The examples in order, as in `DataSet.raw_examples`."""
        if self.records is not None:
            return self.data_set.parsed(self.records.in_order(self.positions))
        return self.data_set.raw_examples(self.split).take(self.positions.stop).shard(self.positions.step, 0)

    def mask_facts(self, *, spread: int) -> Iterator[tuple[int, MaskFacts]]:
        """Positions and facts of the masks of a TFDS data set; with random access, first of `spread` even ones."""
        order = [self.positions]
        if self.records is not None and self.count > spread:
            order = [self.positions[:: -(-self.count // spread)], self.positions]
        take_mask = tf.autograph.experimental.do_not_convert(lambda example: example["mask"])
        with contextlib.suppress(tf.errors.OpError):  # files that cannot be read are reported when they are decoded
            for positions in order:
                masks = dataclasses.replace(self, positions=positions).undecoded().map(take_mask)
                for position, data in zip(positions, masks.as_numpy_iterator(), strict=False):
                    with contextlib.suppress(DataError):  # as above
                        yield position, MaskFacts.of(mask_files.decode(data, self.data_set.classes.colored))

    def decode(self, example: dict[str, tf.Tensor], keys: Sequence[str] = ()) -> dict[str, tf.Tensor]:
        """Decodes an example as `example_decoding.decode` does."""
        return example_decoding.decode(
            self.data_set, self.images, self.resizing, example, keys, scaled=self.scaled, weights=self.weight_dtype
        )

    def decoded(self, examples: tf.data.Dataset, keys: Sequence[str] = ()) -> tf.data.Dataset:
        """Decodes a data set of examples in parallel."""
        decode = tf.autograph.experimental.do_not_convert(lambda example: self.decode(example, keys))
        return examples.map(decode, num_parallel_calls=prefetching.decodes_at_once())
