"""What becomes of an example that cannot be used, and is found when its turn comes: --on_bad_example.

Either another one takes its place, by a rule that is a function of (seed, step, position, attempt) alone; or the batch
before it is marked as the last one, so that the run ends after a whole step.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from petseg.data.example_order import ATTEMPTS
from petseg.data.on_demand import Fetch

SKIPPED_SHARE, SKIPPED_AT_LEAST = 0.01, 10
NONE = -1
LAST = "last"


class Drawn(NamedTuple):
    """The examples that came to stand at some positions of a batch.

    Attributes:
      ids: int64 [K].
      images: uint8 [K, H, W, 3].
      masks: uint8 [K, H, W, 1].
      usable: bool [K]; False where all attempts failed.
      skipped: int64 [K, ATTEMPTS], the examples that could not be used, where they would have stood; else NONE.
    """

    ids: tf.Tensor
    images: tf.Tensor
    masks: tf.Tensor
    usable: tf.Tensor
    skipped: tf.Tensor


def draw(fetch: Fetch, ids: tf.Tensor, substitutes: Callable[[tf.Tensor], tf.Tensor] | None) -> Drawn:
    """Fetches examples, and others where they cannot be used, as a graph.

    Args:
      fetch: what fetches examples.
      ids: int64 [K], the examples whose turn it is.
      substitutes: attempt, int64 scalar from 1 -> the examples that are tried then, int64 [K]; None: none are.
    """
    images, masks, usable = fetch(ids)
    first = Drawn(ids, images, masks, usable, tf.fill([ids.shape[0], ATTEMPTS], tf.constant(NONE, tf.int64)))
    if substitutes is None:
        return first

    def goes_on(attempt: tf.Tensor, drawn: Drawn) -> tf.Tensor:
        return (attempt <= ATTEMPTS) & ~tf.reduce_all(drawn.usable)

    def again(attempt: tf.Tensor, drawn: Drawn) -> tuple[tf.Tensor, Drawn]:
        where = tf.where(~drawn.usable)
        chosen = tf.gather_nd(substitutes(attempt), where)
        places = tf.concat([where, tf.fill(tf.shape(where), attempt - 1)], axis=1)
        skipped = tf.tensor_scatter_nd_update(drawn.skipped, places, tf.gather_nd(drawn.ids, where))
        found = {"ids": chosen, **fetch(chosen)._asdict()}
        updated = {key: tf.tensor_scatter_nd_update(getattr(drawn, key), where, new) for key, new in found.items()}
        return attempt + 1, Drawn(**updated, skipped=skipped)

    _, drawn = tf.while_loop(goes_on, again, (tf.constant(1, tf.int64), first), parallel_iterations=1)
    return Drawn(*(tf.ensure_shape(value, before.shape) for value, before in zip(drawn, first, strict=True)))


class Skipped:
    """The examples that this process skipped; the input tells of them from threads of its own."""

    def __init__(self) -> None:
        self._lock, self._seen, self._untold = threading.Lock(), set[int](), list[int]()

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, ids: np.ndarray) -> None:
        """Adds examples; NONE is none."""
        with self._lock:
            for i in np.unique(ids[ids != NONE]).tolist():
                if i not in self._seen:
                    self._seen.add(i)
                    self._untold.append(i)

    def pop(self) -> list[int]:
        """Those that came since the last call."""
        with self._lock:
            untold, self._untold = self._untold, []
            return untold

    @staticmethod
    def most(count: int) -> int:
        """How many of so many examples may be skipped."""
        return max(SKIPPED_AT_LEAST, int(SKIPPED_SHARE * count))


def ending_in_time(parts: tf.data.Dataset, at_once: int, skipped: Skipped) -> tf.data.Dataset:
    """The parts of batches, and `last`, bool [b], in that before one that holds what cannot be used.

    A part is handed on when the next one of the same replica is known. So a run is told in time, at the end of a whole
    step, and all processes hear of it together; no step has to fail in the middle. The very first part has none before
    it: who begins looks at it.

    Args:
      parts: parts of batches with `usable`, bool [b], and `skipped`, int64 [b, ATTEMPTS], which go no further.
      at_once: number of parts of each step, those of the replicas of this host.
      skipped: is told what was skipped.
    """
    # Before and behind the true ones stand as many that are none.
    none = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), parts.element_spec)
    none["usable"] = tf.ones_like(none["usable"])
    none["skipped"] = tf.fill(none["skipped"].shape, tf.constant(NONE, tf.int64))
    ends = tf.data.Dataset.from_tensors(none).repeat(at_once)

    def add(ids: np.ndarray) -> bool:
        skipped.add(ids)
        return True

    def shifted(state: tuple[Any, ...], part: dict[str, tf.Tensor]) -> tuple[tuple[Any, ...], dict[str, tf.Tensor]]:
        before, *rest = state
        told = tf.cond(
            tf.reduce_any(before["skipped"] != NONE),
            lambda: tf.numpy_function(add, [before["skipped"]], tf.bool),
            lambda: True,
        )
        last = tf.fill(tf.shape(before["usable"]), told & ~tf.reduce_all(part["usable"]))
        handed_on = {key: value for key, value in before.items() if key not in ("usable", "skipped")}
        return (*rest, part), {**handed_on, LAST: tf.ensure_shape(last, before["usable"].shape)}

    shifted = tf.autograph.experimental.do_not_convert(shifted)
    return parts.concatenate(ends).scan((none,) * at_once, shifted).skip(at_once)
