"""Records examples that cannot be decoded or have an invalid mask during training (--cache=none).

Such an example enters its batch as a grey image without a labelled pixel: it has no weight in the loss or in any
metric. The input pipeline records it here; `runs.bad_examples` reports it or ends the run.
"""

import threading

import numpy as np
import tensorflow as tf

from petseg.data.examples import Examples
from petseg.errors import DataError


class BadExampleLog:
    """Thread-safe record of the bad examples in the batches that this process has made."""

    def __init__(self) -> None:
        self._lock, self._found = threading.Lock(), list[tuple[int, int]]()

    def pop(self, before_step: int) -> list[tuple[int, int]]:
        """Removes and returns (step, example id) of the batches of steps below `before_step`, in order.

        Batches are prefetched, so later steps may be recorded already; they stay.
        """
        with self._lock:
            popped = sorted({entry for entry in self._found if entry[0] < before_step})
            self._found = [entry for entry in self._found if entry[0] >= before_step]
        return popped

    def raise_first(self, examples: Examples) -> None:
        """Raises DataError, which names the first one, if a bad example was recorded."""
        if found := self.pop(np.iinfo(np.int64).max):
            raise DataError(reason(examples, found[0][1]))

    def recorded(self, parts: tf.data.Dataset) -> tf.data.Dataset:
        """Records the bad examples of batches, or parts of batches.

        Args:
          parts: dictionaries with `step` int64 scalar, `example_id` int64 [b] and `usable` bool [b] beside others.

        Returns:
          the same without `step` and `usable`.
        """

        @tf.autograph.experimental.do_not_convert
        def record(part: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            bad = tf.boolean_mask(part["example_id"], ~part["usable"])
            recorded = tf.cond(
                tf.reduce_all(part["usable"]),
                lambda: tf.constant(True),
                lambda: tf.numpy_function(self._record, [part["step"], bad], tf.bool),
            )
            with tf.control_dependencies([recorded]):
                return {key: tf.identity(value) for key, value in part.items() if key not in ("step", "usable")}

        return parts.map(record)

    def _record(self, step: np.ndarray, ids: np.ndarray) -> bool:
        with self._lock:
            self._found += [(int(step), int(i)) for i in ids]
        return True


def reason(examples: Examples, i: int) -> str:
    """Why an example was bad, for messages."""
    try:
        examples.check_example(i)
    except DataError as error:
        return str(error)
    return f"example {i} of {examples.origin} was unreadable but is readable now"
