"""Examples that are fetched from their records when their turn comes, and looked at only then: --cache=none.

Nothing here grows with the number of examples: a record is found by arithmetic, and what is said of an example, its
name or its labels, is read when somebody asks.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from petseg.classes import IGNORED
from petseg.data import pair_decoding
from petseg.data.numpy_resizing import GREY
from petseg.data.pair_decoding import UnusableExampleError
from petseg.data.records.record_files import RecordFiles
from petseg.data.source import Source, parallel_decodes
from petseg.errors import DataError, one_line
from petseg.runtime import autotuning

READ_AT_ONCE = 64
UNUSABLE = "petseg cannot use an example of"
logger = logging.getLogger(__name__)


class Fetched(NamedTuple):
    """Examples as they came out of their records.

    Attributes:
      images: uint8 [K, H, W, 3]; grey where the example cannot be used.
      masks: uint8 [K, H, W, 1]; IGNORED where it cannot.
      usable: bool [K].
    """

    images: tf.Tensor
    masks: tf.Tensor
    usable: tf.Tensor


Fetch = Callable[[tf.Tensor], Fetched]


class OnDemand:
    """The examples of a source, by position."""

    def __init__(self, source: Source, records: RecordFiles, *, skips: bool, check_command: str):
        """Reads nothing yet.

        Args:
          source: the examples.
          records: their records, all of the split.
          skips: whether an example that cannot be used is skipped where it is one of several, and not an
            error.
          check_command: the command that tells all that is wrong, for errors.
        """
        self._source, self._records = source, records
        self.skips, self._check_command = skips, check_command
        signature = [tf.TensorSpec([None], tf.int64)]
        self._fetch_now = tf.function(self.fetch, input_signature=signature, autograph=False)
        self._read_now = tf.function(self._facts, input_signature=signature, autograph=False)

    def __len__(self) -> int:
        return self._source.count

    # As graphs.

    def fetch(self, ids: tf.Tensor) -> Fetched:
        """Examples by position, int64 [K]."""
        return self._fetch(self._records.read, ids)

    @property
    def fetch_anywhere(self) -> Fetch | None:
        """What `fetch` does, as a graph for any process that sees the files; None where there is none."""
        read = self._records.read_anywhere
        return None if read is None else lambda ids: self._fetch(read, ids)

    def gather(self, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Images and masks of examples by position; what runs it fails if one cannot be used, see `unusable_in`."""
        found = self.fetch(ids)
        named = tf.boolean_mask(ids, ~found.usable)
        usable = tf.debugging.Assert(tf.reduce_all(found.usable), [f"{UNUSABLE} {self._source.origin}:", named])
        with tf.control_dependencies([usable]):
            return tf.identity(found.images), tf.identity(found.masks)

    def _fetch(self, read: Callable[[tf.Tensor], tf.Tensor], ids: tf.Tensor) -> Fetched:
        size = ids.shape[0] or tf.shape(ids, tf.int64)[0]
        records = tf.data.Dataset.from_tensor_slices((read(ids), ids))
        without_conversion = tf.autograph.experimental.do_not_convert
        decoded, safely = without_conversion(self._decoded), without_conversion(self._decoded_or_blank)
        # All at once, and only if one of them cannot be decoded, each by itself: a data set for each takes its time.
        whole = records.map(decoded, parallel_decodes()).batch(size, drop_remainder=True).ignore_errors()
        one_by_one = records.map(safely, parallel_decodes()).batch(size, drop_remainder=True)
        first = whole.concatenate(one_by_one).take(1).with_options(autotuning.off())
        images, masks, usable = first.get_single_element()
        images, masks = tf.cond(
            tf.reduce_all(usable),
            lambda: (images, masks),
            lambda: (_where(usable, images, GREY), _where(usable, masks, IGNORED)),
        )
        images = tf.ensure_shape(images, [ids.shape[0], *self._source.resizing.size, 3])
        return Fetched(images, tf.ensure_shape(masks, [*images.shape[:3], 1]), tf.ensure_shape(usable, ids.shape))

    def _decoded(self, record: tf.Tensor, position: tf.Tensor) -> Fetched:
        source = self._source
        example = source.decode(source.data_set.parser()(record))
        usable = pair_decoding.is_usable(example)
        if source.parts is not None:
            usable &= tf.reduce_all(example["image_size"] == tf.gather(source.parts.sizes, position))
        return Fetched(example["image"], example["mask"], usable)

    def _decoded_or_blank(self, record: tf.Tensor, position: tf.Tensor) -> Fetched:
        height, width = self._source.resizing.size
        blank = Fetched(
            tf.fill([height, width, 3], np.uint8(GREY)),
            tf.fill([height, width, 1], np.uint8(IGNORED)),
            tf.constant(False),
        )
        decode = tf.autograph.experimental.do_not_convert(self._decoded)
        decoded = tf.data.Dataset.from_tensors((record, position)).map(decode).ignore_errors()
        return Fetched(*decoded.concatenate(tf.data.Dataset.from_tensors(blank)).take(1).get_single_element())

    def _facts(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """Names and labels of examples, without decoding pictures."""
        parser, keys = self._source.data_set.parser(), ("name", *self._source.data_set.label_names())

        def facts(record: tf.Tensor) -> dict[str, tf.Tensor]:
            example = parser(record)
            return {key: example[key] for key in keys}

        read = tf.data.Dataset.from_tensor_slices(self._records.read(ids))
        read = (
            read.map(tf.autograph.experimental.do_not_convert(facts))
            .batch(tf.size(ids, tf.int64))
            .with_options(autotuning.off())
        )
        return read.get_single_element()

    # At once.

    def pictures(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images and masks of examples; grey and in no class those that are skipped.

        Raises:
          DataError: if one cannot be used, and is not skipped.
        """
        found = self._fetch_now(tf.constant(ids, tf.int64))
        if not self.skips:
            for i in ids[~found.usable.numpy()].tolist():
                self.look_at(i)
        return found.images.numpy(), found.masks.numpy()

    def look_at(self, position: int) -> None:
        """Raises DataError, which names it, if an example cannot be used."""
        source, place = self._source, self._records.place(position)
        where = f"{source.where(position)} ({place})"
        try:
            example = source.data_set.parser()(self._records.read(tf.constant([position], tf.int64))[0])
            where = f"{source.where(position)} ({self._name(position, example['name'].numpy())}, {place})"
            decoded = source.decode(example)
        except tf.errors.InvalidArgumentError as error:
            raise self._error(f"{where}: {pair_decoding.UNDECODABLE}") from error
        except tf.errors.OpError as error:
            raise DataError(f"{where}: cannot be read: {one_line(error)}") from error
        facts = {key: value.numpy() for key, value in decoded.items()}
        try:
            pair_decoding.check_example(facts, where, source.data_set.classes)
            if source.parts is not None:
                source.parts.check(position, facts["image_size"], where)
        except UnusableExampleError as error:
            raise self._error(str(error)) from error

    def unusable_in(self, error: tf.errors.OpError) -> None:
        """Raises DataError if a graph of `gather` failed since an example of these cannot be used."""
        text = str(error)
        if f"{UNUSABLE} {self._source.origin}:" in text:
            listed = text.split(f"{UNUSABLE} {self._source.origin}:", 1)[1].partition("[")[2].partition("]")[0]
            for position in listed.replace("...", " ").split():
                self.look_at(int(position))

    def check(self) -> None:
        """Raises DataError if the files are no longer what they were."""
        self._records.check()

    def names(self) -> "Names":
        """Names of the examples, read when they are asked for."""
        return Names(self)

    def groups(self) -> "Groups":
        """What `decoding.Examples` has as `groups`, read when it is asked for."""
        return Groups(self, self._source.data_set.label_names())

    def name_of(self, ids: np.ndarray) -> list[str]:
        """Names of some examples."""
        names = self._read_now(tf.constant(ids, tf.int64))["name"].numpy()
        return [self._name(position, name) for position, name in zip(ids.tolist(), names, strict=True)]

    def labels(self, keys: Sequence[str], ids: Sequence[int]) -> dict[str, np.ndarray]:
        """The labels of K examples at some keys, int64 [K]."""
        parts = [self._read_now(tf.constant(some, tf.int64)) for some in _in_turn(ids)] if keys else []
        return {key: np.concatenate([part[key].numpy() for part in parts]) for key in keys}

    def same_as(self, other: "OnDemand") -> bool:
        """Whether both are one split of one data set, in the same files."""
        return self._source.origin == other._source.origin and self._records.states == other._records.states

    def _name(self, position: int, name: bytes) -> str:
        return name.decode() or f"{self._source.split}/{position}"

    def _error(self, what: str) -> UnusableExampleError:
        return UnusableExampleError(f"{what}. Everything: {self._check_command}")


class Names(Sequence[str]):
    """The names of examples, which are read from their records when they are asked for."""

    def __init__(self, examples: OnDemand):
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return tuple(self.of(range(len(self))[key]))
        position = range(len(self))[key]
        return self._examples.name_of(np.array([position]))[0]

    def __iter__(self) -> Iterator[str]:
        return self.of(range(len(self)))

    def of(self, ids: Sequence[int]) -> Iterator[str]:
        """The names of some examples, read a few at a time."""
        for some in _in_turn(ids):
            yield from self._examples.name_of(some)

    def are_those_of(self, other: object) -> bool:
        """Whether both are the names of one split, in the same files; reads nothing."""
        return isinstance(other, Names) and self._examples.same_as(other._examples)

    def __eq__(self, other: object) -> bool:
        if self.are_those_of(other):
            return True
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]


class Groups(Mapping[str, tuple[str, ...]]):
    """Class labels in which examples differ, which are read when they are asked for, by a pass over the records."""

    def __init__(self, examples: OnDemand, label_names: Mapping[str, Sequence[str]], ids: Sequence[int] | None = None):
        self._examples, self._label_names = examples, label_names
        self._ids = range(len(examples)) if ids is None else ids
        self._found: dict[str, tuple[str, ...]] | None = None

    def __getitem__(self, key: str) -> tuple[str, ...]:
        return self._read()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def of(self, ids: np.ndarray) -> "Groups":
        """Those of some examples."""
        return Groups(self._examples, self._label_names, ids.tolist())

    def _read(self) -> dict[str, tuple[str, ...]]:
        if self._found is None:
            self._found = groups_of(self._label_names, self._examples.labels([*self._label_names], self._ids))
        return self._found


class Decoded:
    """Images, or masks, that are decoded, or fetched, whenever they are indexed; uint8 [N, H, W, C].

    Args:
      read: positions int64 [K] -> uint8 [K, H, W, C].
      shape: (N, H, W, C).
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]):
        self._read, self.shape = read, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        everything = range(len(self))
        if isinstance(rows, slice | int | np.integer):
            ids = np.array(everything[rows], np.int64)
        else:
            ids = np.asarray(rows)
            ids = np.where(ids < 0, ids + len(self), ids)
        of_each = (slice(None), *rest)
        found = self._read(np.atleast_1d(ids))[of_each]
        return found if ids.ndim else found[0]

    def spread(self, count: int) -> "Decoded":
        """At most so many of them, from all over."""
        ids = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64))
        return Decoded(lambda rows: self._read(ids[rows]), (len(ids), *self.shape[1:]))


def groups_of(label_names: Mapping[str, Sequence[str]], labels: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    """Labels by name, but for those that tell nothing: all alike, unknown (-1), or the same as another's."""
    groups: dict[str, tuple[str, ...]] = {}
    for key, names in label_names.items():
        values = labels[key]
        if values.min() >= 0 and len(set(values.tolist())) > 1:
            group = tuple(names[value] for value in values)
            if group not in groups.values():
                groups[key] = group
    return groups


def _where(usable: tf.Tensor, pictures: tf.Tensor, filling: int) -> tf.Tensor:
    return tf.where(usable[:, None, None, None], pictures, tf.constant(filling, pictures.dtype))


def _in_turn(ids: Sequence[int]) -> Iterator[np.ndarray]:
    for first in range(0, len(ids), READ_AT_ONCE):
        yield np.array(ids[first : first + READ_AT_ONCE], np.int64)
