"""Data sets of user code: --dataset=FILE.py:function.

The function gets --data_dir and the name of a split, and returns an object with `__len__` and `__getitem__`. Its
examples become records, one by one as they are needed, which then take the path of all other data.
"""

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from petseg import custom_code
from petseg.classes import Classes
from petseg.config import DataConfig
from petseg.config.data_config import named_splits
from petseg.data import images, mask_files, picture_files, weight_map_files
from petseg.data.catalog import DataSet
from petseg.data.example_decoding import BadExampleError
from petseg.data.folders.faults import Fault, Kind
from petseg.data.folders.mask_values import MaskCoding
from petseg.data.images import BandCounts, Bands
from petseg.data.overlaps import Overlap
from petseg.data.picture import Picture, PictureError
from petseg.data.record_files import RecordRange, Records
from petseg.errors import ConfigError, DataError, PetsegError, one_line

KEYS = ("image", "mask", "name", "weights")  # of an example
RECORD = ("image", "mask", "name", "weight")  # of its record
SAMPLED = 8  # examples that stand for all if the source has no fingerprint


class _First(NamedTuple):
    """Format of the first example of a split, which all others must share."""

    bands: Bands
    size: tuple[int, int]  # height and width
    alpha_varies: bool


class Source:
    """The examples of a split, as user code returns them; asks for one at a time.

    Raises DataError if the function fails or returns no examples.
    """

    def __init__(self, reference: str, data_dir: str, split: str):
        self.split, self._reference, self._lock = split, reference, threading.Lock()
        self._where = f"{Path(reference).name}, split {split}"
        function = custom_code.load("dataset", reference)
        self._made = self._call(self._where, lambda: function(data_dir, split))
        if not all(hasattr(type(self._made), name) for name in ("__len__", "__getitem__")):
            found = custom_code.described(self._made)
            raise DataError(f"{self._where}: returned {found}; must be an object with __len__ and __getitem__")
        self._count: int = self._call(self._where, lambda: len(self._made))

    def __len__(self) -> int:
        return self._count

    @property
    def classes(self) -> Classes | None:
        """The classes of the source's attribute `classes`, `Classes` or as in a classes file; None without one."""
        given = getattr(self._made, "classes", None)
        try:
            is_given = given is None or isinstance(given, Classes)
            return given if is_given else Classes.from_dict(list(given) if isinstance(given, tuple) else given)
        except ConfigError as error:
            raise ConfigError(f"{self._where}: {error}") from error

    @functools.cached_property
    def state(self) -> str:
        """A hash of the code, the number of examples, and the source's attribute `fingerprint` or else a sample."""
        given = getattr(self._made, "fingerprint", None)
        found = hashlib.sha256(custom_code.fingerprint("dataset", self._reference).encode())
        found.update(f"{len(self)} {given}".encode())
        for i in np.unique(np.linspace(0, len(self) - 1, SAMPLED, dtype=int)) if given is None and len(self) else ():
            name, *files = self.files(int(i))
            found.update(b"".join([name.encode(), *files]))
        return found.hexdigest()[:16]

    def check(self, classes: Classes) -> None:
        """Raises DataError if the first example or the fingerprint cannot be used, or the example changes."""
        given = getattr(self._made, "fingerprint", None)
        if not isinstance(given, str | int | float | None):
            raise DataError(f"{self._where}: its fingerprint is a {type(given).__name__}; must be a text or a number")
        if not len(self):
            return
        name, _, mask, _ = files = self.files(0)
        if self.files(0) != files:
            raise DataError(
                f"{self._where}, example 0: changes between two calls of __getitem__; must be the same each time, "
                "since runs resume: random changes belong in --augment"
            )
        self.record(0)
        try:
            values = mask_files.decode(mask, classes.colored)
            mask_files.ids_of(values, MaskCoding(classes))
        except DataError as error:
            raise DataError(f"{self._where}, example 0 ({name}): the mask {error}") from error
        if values.numbers.shape != self._first.size:
            sizes = f"image is {self._first.size} (height, width), its mask {values.numbers.shape}"
            raise DataError(f"{self._where}, example 0 ({name}): the {sizes}; both must be one size")

    def files(self, i: int) -> tuple[str, bytes, bytes, bytes]:
        """Name, image, mask and weight map of an example, the last empty without; arrays as files in NumPy's format.

        Raises BadExampleError if the source fails, or returns something else.
        """
        where = f"{self._where}, example {i}"
        with self._lock:
            example = self._call(where, lambda: self._made[i])
        if not isinstance(example, Mapping) or not {"image", "mask"} <= set(example) <= set(KEYS):
            keys = ", ".join(map(str, example)) if isinstance(example, Mapping) else ""
            found = f"a dictionary with {keys or 'nothing'}" if isinstance(example, Mapping) else ""
            found = found or custom_code.described(example)
            raise BadExampleError(
                f"{where}: is {found}; must be a dictionary with image, mask and, if it has them, name and weights"
            )
        name = example.get("name", f"{self.split}/{i}")
        if not isinstance(name, str) or not name:
            raise BadExampleError(f"{where}: its name is {name!r}; must be a non-empty text")
        image = _as_file(example["image"], f"{where}: the image")
        mask = _as_file(example["mask"], f"{where}: the mask", of_bool="uint8")
        has_weights = example.get("weights") is not None
        weights = _as_file(example["weights"], f"{where}: the weight map", of_bool="float32") if has_weights else b""
        return name, image, mask, weights

    def record(self, i: int) -> bytes:
        """An example as a record: image and weight map as files that TensorFlow decodes, the mask as it is.

        Raises:
          BadExampleError: as `files`, or if the image or the weight map cannot be used.
        """
        name, image, mask, weights = self.files(i)
        try:
            stored, picture = _image(image, mask)
            images.check_finite(picture.pixels)
            bands, wanted = Bands.of(picture), self._first.bands
            if (bands.dtype, bands.planes) != (wanted.dtype, wanted.planes) or not bands.gives(wanted.channels):
                raise PictureError(f"has {bands}; must have {wanted}, as that of example 0")
            file = images.record_file(picture, image if picture.pixels is stored.pixels else b"")
        except PictureError as error:
            raise BadExampleError(f"{self._where}, example {i} ({name}): the image {error}") from error
        try:
            weight = weight_map_files.decode(weights) if weights else None
            dtype, wanted_dtype = weight.pixels.dtype.name if weight else "", self.weight_dtype
            if dtype != wanted_dtype:
                raise PictureError(
                    f"is {dtype or 'missing'}; must be {wanted_dtype or 'missing'}, as that of example 0"
                )
        except PictureError as error:
            raise BadExampleError(f"{self._where}, example {i} ({name}): the weight map {error}") from error
        weight_file = images.record_file(weight, b"") if weight else b""
        values = zip(RECORD, (file, mask, name.encode(), weight_file), strict=True)
        features = {key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for key, value in values}
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()

    @functools.cached_property
    def _first(self) -> _First:
        _, image, mask, _ = self.files(0)
        picture = _image(image, mask)[1]
        return _First(Bands.of(picture), picture.size, picture.alpha_varies)

    @functools.cached_property
    def weight_dtype(self) -> str:
        """Dtype of the weight maps; empty without."""
        weights = self.files(0)[3] if len(self) else b""
        return weight_map_files.decode(weights).pixels.dtype.name if weights else ""

    @property
    def band_row(self) -> list[Any]:
        """The bands of the first image, which all have, as a row of `BandCounts`."""
        return [*dataclasses.astuple(self._first.bands), len(self), int(self._first.alpha_varies), self._where]

    def _call(self, where: str, code: Callable[[], Any]) -> Any:
        try:
            return code()
        except PetsegError:
            raise
        except Exception as error:  # user code may raise anything
            raise BadExampleError(f"{where}: failed: {custom_code.explanation(self._reference, error)}") from error


def _image(image: bytes, mask: bytes) -> tuple[Picture, Picture]:
    """An image as stored in its file, then rotated according to EXIF, as in prediction.

    Raises PictureError if it is none, or its mask only fits it as stored.
    """
    stored = picture_files.decode(image)
    upright = stored.upright()
    if stored.size != upright.size and picture_files.decode(mask).upright().size == stored.size:
        raise PictureError(
            f"is turned by EXIF to {upright.size} (height, width), and its mask is {stored.size}, as before; must be "
            "the pixels of both, turned alike"
        )
    return stored, upright


def _as_file(value: Any, what: str, of_bool: str = "bool") -> bytes:
    """An image, mask or weight map as the content of a file; `of_bool` is the dtype that truth values get."""
    if isinstance(value, bytes):
        return value
    try:
        array = np.asarray(value) if hasattr(value, "dtype") and hasattr(value, "shape") else np.empty(0, object)
    except Exception as error:  # a tensor that is not in memory, for instance
        raise BadExampleError(f"{what} cannot become an array: {one_line(error)}") from error
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3) or not array.size:
        raise BadExampleError(
            f"{what} is {custom_code.described(value)}; must be an array of numbers, [H, W, C] or [H, W], or the bytes "
            "of a file"
        )
    return picture_files.as_npy(array.astype(of_bool) if array.dtype.kind == "b" else array)


class SourceRecords(Records[Source]):
    """The examples of sources as records, made when they are read; one that cannot be made is empty."""

    @property
    def states(self) -> dict[str, str]:  # type: ignore[override]
        return {each.origin.split: each.origin.state for each in self._ranges}

    def place(self, position: int) -> str:
        source, i = self._place(position)
        return f"example {i} of {source.split}"

    def check_record(self, position: int) -> None:
        source, i = self._place(position)
        source.record(i)

    def _read(self, positions: np.ndarray) -> np.ndarray:
        records = np.empty(len(positions), object)
        for k, position in enumerate(positions.tolist()):
            try:
                source, i = self._place(position)
                records[k] = source.record(i)
            except PetsegError:
                records[k] = b""
        return records


@dataclasses.dataclass(frozen=True)
class OwnDataSet(DataSet):
    """A data set of user code; a split's source is made at its first use."""

    reference: str = ""  # the code
    data_dir: str = ""
    sources: dict[str, Source] = dataclasses.field(default_factory=dict)  # by split, so far

    def source(self, split: str) -> Source:
        """The examples of a split, checked."""
        if split not in self.sources:
            source = Source(self.reference, self.data_dir, split)
            if not self.config.classes:
                self.classes.check_meanings(source.classes, f"{self.name}, split {split}")
            source.check(self.classes)
            self.sources[split] = source
        return self.sources[split]

    @property
    def full_name(self) -> str:
        return self.name

    @property
    def location(self) -> str:
        return "the examples"

    @property
    def _metadata(self) -> Mapping[str, Any]:
        return {}

    def version_of(self, splits: Collection[str]) -> str:
        return f"{self.name} ({', '.join(str(state) for split in splits for state in self.state_of(split))})"

    def state_of(self, split: str) -> list[Any]:
        return [self.source(name).state for name, _, _ in self._ranges(self.part_of(split)[0])]

    def band_counts(self, splits: Collection[str]) -> BandCounts:
        rows = [self.source(name).band_row for name in sorted(self.sources or splits)]
        return sum((BandCounts([row]) for row in rows), BandCounts())

    def overlap(self, split: str, other: str) -> Overlap:
        shared = named_splits(split) & named_splits(other)
        return super().overlap(split, other) if shared else Overlap(0)

    @property
    def holds_weight_files(self) -> bool:
        return True

    def _weight_dtype(self, name: str) -> str:
        return self.source(name).weight_dtype if self.config.has_weights else ""

    def digests_of(self, split: str) -> None:
        """None."""

    def sizes(self) -> dict[str, int]:
        return {name: len(source) for name, source in self.sources.items()}

    def card(self) -> str:
        return self._table(code=self.reference)

    def files_of(self, split: str) -> Iterator[tuple[str, bytes, bytes, bytes] | Fault]:
        source = self.source(split)
        for i in range(len(source)):
            try:
                yield source.files(i)
            except BadExampleError as error:
                where, _, what = str(error).partition(": ")
                yield Fault(Kind.UNREADABLE, where, what, split)

    def _records(self, split: str) -> SourceRecords:
        ranges = self._ranges(split)
        return SourceRecords([RecordRange(self.source(name), start, stop - start) for name, start, stop in ranges])

    def names(self, split: str) -> list[str]:
        places = ((self.source(name), numbers) for name, numbers in self._positions(split))
        return [source.files(i)[0] for source, numbers in places for i in numbers.tolist()]

    def parser(self) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        features = {key: tf.io.FixedLenFeature([], tf.string) for key in RECORD}
        return lambda record: tf.io.parse_single_example(record, features)

    def label_names(self) -> dict[str, list[str]]:
        return {}

    def _splits_in(self, split: str) -> Mapping[str, Any]:
        names = named_splits(split)
        if "all" in names:
            raise DataError(f"{self.name}: no split all; must name splits of the source, such as train+test")
        return {name: tfds.core.SplitInfo(name=name, shard_lengths=[len(self.source(name))], num_bytes=0)
                for name in names}  # fmt: skip


def open_data(config: DataConfig, classes: Classes | None) -> OwnDataSet:
    """Opens the data set of --dataset=FILE.py:function; as `catalog.open_data`."""
    reference, first = config.dataset, sorted(named_splits(config.train_split))[0]
    source = None
    if classes is None and config.classes:
        classes = Classes.read(config.classes_file)
    if classes is None:
        source = Source(reference, config.data_dir, first)
        classes = source.classes
    name = Path(reference).name
    if classes is None:
        raise DataError(f"{name}: has no attribute classes; --classes must be a file that names them")
    data_set = OwnDataSet(name, None, classes, reference=reference, data_dir=config.data_dir, config=config)
    if source:
        source.check(classes)
        data_set.sources[first] = source
    return data_set
