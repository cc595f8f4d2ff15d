"""Examples decoded from their records on demand (--cache=none).

Start-up time and memory do not depend on the number of examples: names and labels are also read on demand.
"""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from petseg.classes import IGNORED
from petseg.data import example_decoding, prefetching, random_crops
from petseg.data.example_decoding import BadExampleError
from petseg.data.examples import Examples, Fetched
from petseg.data.record_files import Records
from petseg.data.split_source import SplitSource
from petseg.errors import DataError, one_line
from petseg.runtime import autotuning

READ_AT_ONCE = 64
COUNTED_MASKS = 2048  # a few seconds of decoding
logger = logging.getLogger(__name__)


class OnDemandExamples(Examples):
    """The examples of a source.

    Args:
      ignore_bad: whether `read` returns bad examples as `fetch` does instead of raising an error.
    """

    def __init__(self, source: SplitSource, records: Records, *, ignore_bad: bool, check_command: str):
        self._source, self._records = source, records
        self._ignore_bad, self._check_command = ignore_bad, check_command
        self.classes, self.origin, self.names = source.data_set.classes, source.origin, Names(self)
        signature = [tf.TensorSpec([None], tf.int64)]
        self._fetch_now = tf.function(self.fetch, input_signature=signature, autograph=False)
        self._read_now = tf.function(self._facts, input_signature=signature, autograph=False)

    def __len__(self) -> int:
        return self._source.count

    def fetch(self, ids: tf.Tensor) -> Fetched:
        size = ids.shape[0] or tf.shape(ids, tf.int64)[0]
        records = tf.data.Dataset.from_tensor_slices((self._records.read(ids), ids))
        without_conversion = tf.autograph.experimental.do_not_convert
        decoded, safely = without_conversion(self._decoded), without_conversion(self._decoded_or_blank)
        # In one data set; if an example cannot be decoded, again with a data set for each example, which is slower.
        whole = records.map(decoded, prefetching.decodes_of_a_part()).batch(size, drop_remainder=True).ignore_errors()
        one_by_one = records.map(safely, prefetching.decodes_of_a_part()).batch(size, drop_remainder=True)
        first = whole.concatenate(one_by_one).take(1).with_options(autotuning.off())
        found = first.get_single_element()
        usable = tf.ensure_shape(found.pop("usable"), ids.shape)
        blank = {"image": self._source.resizing.padding, "mask": (IGNORED,), "weight": (0,)}
        arrays = tf.cond(
            tf.reduce_all(usable),
            lambda: found,
            lambda: {name: _blank_bad(usable, array, blank[name]) for name, array in found.items()},
        )
        shape = [ids.shape[0], *self._source.resizing.size]
        return Fetched(**arrays, usable=usable).moved(lambda array: tf.ensure_shape(array, [*shape, array.shape[-1]]))

    def _decoded(self, record: tf.Tensor, position: tf.Tensor) -> dict[str, tf.Tensor]:
        """Fetched arrays of one example, and whether it is usable."""
        source = self._source
        example = source.decode(source.data_set.parser()(record))
        usable = example_decoding.is_usable(example)
        if source.picture_sizes is not None:
            usable &= tf.reduce_all(example["image_size"] == tf.gather(source.picture_sizes, position))
        return {name: example[name] for name in ("image", "mask", "weight") if name in example} | {"usable": usable}

    def _decoded_or_blank(self, record: tf.Tensor, position: tf.Tensor) -> dict[str, tf.Tensor]:
        height, width = self._source.resizing.size
        spec = self._source.images.spec
        blank = {
            "image": tf.broadcast_to(tf.constant(spec.padding, spec.travels_as), [height, width, spec.channels]),
            "mask": tf.fill([height, width, 1], np.uint8(IGNORED)),
            "usable": tf.constant(False),
        }
        if dtype := self._source.weight_dtype:
            blank["weight"] = tf.zeros([height, width, 1], dtype)
        decode = tf.autograph.experimental.do_not_convert(self._decoded)
        decoded = tf.data.Dataset.from_tensors((record, position)).map(decode).ignore_errors()
        return decoded.concatenate(tf.data.Dataset.from_tensors(blank)).take(1).get_single_element()

    def _facts(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """Names and labels of examples, without decoding images."""
        parser, keys = self._source.data_set.parser(), ("name", *self._source.data_set.label_names())

        def facts(record: tf.Tensor) -> dict[str, tf.Tensor]:
            example = parser(record)
            return {key: example[key] for key in keys}

        records = tf.data.Dataset.from_tensor_slices(self._records.read(ids))
        batch = records.map(tf.autograph.experimental.do_not_convert(facts)).batch(tf.size(ids, tf.int64))
        return batch.with_options(autotuning.off()).get_single_element()

    def read(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = np.asarray(ids, np.int64)
        found = self._fetch_now(tf.constant(ids))
        if not self._ignore_bad:
            for i in ids[~found.usable.numpy()].tolist():
                self.check_example(i)
        return found.image.numpy(), found.mask.numpy()

    def masks_to_count(self) -> Iterator[np.ndarray]:
        """All masks; of a large split, COUNTED_MASKS evenly spaced ones, since each must be decoded."""
        if len(self) <= COUNTED_MASKS:
            return super().masks_to_count()
        logger.info("counting classes in %d of the %d masks of %s", COUNTED_MASKS, len(self), self.origin)
        ids = np.unique(np.linspace(0, len(self) - 1, COUNTED_MASKS).round().astype(np.int64))
        return self.subset(ids).masks_to_count()

    def check_example(self, i: int) -> None:
        source, place = self._source, self._records.place(i)
        where = f"{source.where(i)} ({place})"
        try:
            self._records.check_record(i)
            example = source.data_set.parser()(self._records.read(tf.constant([i], tf.int64))[0])
            where = f"{source.where(i)} ({self._name(i, example['name'].numpy())}, {place})"
            decoded = source.decode(example)
        except BadExampleError as error:
            raise self._error(str(error)) from error
        except tf.errors.InvalidArgumentError as error:
            raise self._error(f"{where}: {example_decoding.UNDECODABLE}") from error
        except tf.errors.OpError as error:
            raise DataError(f"{where}: cannot be read: {one_line(error)}") from error
        facts = {key: value.numpy() for key, value in decoded.items()}
        try:
            example_decoding.check_example(facts, where)
            if source.picture_sizes is not None:
                random_crops.check_size(source.picture_sizes[i], facts["image_size"], where)
        except BadExampleError as error:
            raise self._error(str(error)) from error

    def check(self) -> None:
        self._records.check()

    @functools.cached_property
    def groups(self) -> Mapping[str, Sequence[str]]:  # type: ignore[override]
        """Class labels; reads all records."""
        return self.groups_of(range(len(self)))

    def groups_of(self, ids: Sequence[int]) -> Mapping[str, Sequence[str]]:
        label_names = self._source.data_set.label_names()
        if not label_names:
            return {}
        parts = [self._read_now(tf.constant(some)) for some in _chunks(ids)]
        return distinguishing_labels(
            label_names, {key: np.concatenate([part[key].numpy() for part in parts]) for key in label_names}
        )

    def names_of(self, ids: Sequence[int]) -> list[str]:
        found: list[str] = []
        for some in _chunks(ids):
            names = self._read_now(tf.constant(some))["name"].numpy()
            found += [self._name(i, name) for i, name in zip(some.tolist(), names, strict=True)]
        return found

    def same_files(self, other: "OnDemandExamples") -> bool:
        """Whether both are the same split in the same files."""
        return self._source.origin == other._source.origin and self._records.states == other._records.states

    def _name(self, position: int, name: bytes) -> str:
        return name.decode() or "{}/{}".format(*self._source.place(position))

    def _error(self, what: str) -> BadExampleError:
        return BadExampleError(f"{what}. All faults: {self._check_command}")


class Names(Sequence[str]):
    """Names of examples, read from their records on demand."""

    def __init__(self, examples: OnDemandExamples):
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return tuple(self._examples.names_of(range(len(self))[key]))
        return self._examples.names_of([range(len(self))[key]])[0]

    def __iter__(self) -> Iterator[str]:
        for some in _chunks(range(len(self))):
            yield from self._examples.names_of(some.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names) and self._examples.same_files(other._examples):
            return True
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]


def distinguishing_labels(
    label_names: Mapping[str, Sequence[str]], labels: Mapping[str, np.ndarray]
) -> dict[str, tuple[str, ...]]:
    """Class labels as names, without those that are constant, unknown (-1), or identical to another label."""
    groups: dict[str, tuple[str, ...]] = {}
    for key, names in label_names.items():
        values = labels[key]
        if values.min() >= 0 and len(set(values.tolist())) > 1:
            group = tuple(names[value] for value in values)
            if group not in groups.values():
                groups[key] = group
    return groups


def _blank_bad(usable: tf.Tensor, pictures: tf.Tensor, filling: tuple[int, ...]) -> tf.Tensor:
    return tf.where(usable[:, None, None, None], pictures, tf.constant(filling, pictures.dtype))


def _chunks(ids: Sequence[int]) -> Iterator[np.ndarray]:
    for first in range(0, len(ids), READ_AT_ONCE):
        yield np.array(ids[first : first + READ_AT_ONCE], np.int64)
