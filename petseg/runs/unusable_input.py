"""What follows an example of the training split that cannot be used and is found when its turn comes: the run's side.

`data.unusable_examples` is the input's side: it skips what it may, and marks the last batch that can be made.
"""

import logging
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from petseg.config import Config
from petseg.data import input_pipeline
from petseg.data.decoding import Examples
from petseg.data.example_order import ATTEMPTS
from petseg.data.unusable_examples import NONE, Skipped
from petseg.errors import DataError
from petseg.runtime.strategies import Placement

logger = logging.getLogger(__name__)


class UnusableInput:
    """Tells of examples that were skipped, and ends a run that can have no next batch.

    Args:
      config: config of the run.
      placement: devices and cluster of the run.
      examples: the training split; nothing is done where each of its examples was looked at before.
      goes_on_from: where the same command will go on from, in words.

    Attributes:
      skipped: what the input skipped.
    """

    def __init__(self, config: Config, placement: Placement, examples: Examples, goes_on_from: Callable[[], str]):
        self._config, self._placement, self._examples = config, placement, examples
        self._goes_on_from = goes_on_from
        self.skipped = Skipped()

    def log_skipped(self, step: int) -> bool:
        """Logs what was skipped since the last call; returns whether that is too much for any process.

        All processes of a cluster call this together.
        """
        if self._examples.on_demand is None or not self._examples.on_demand.skips:
            return False
        for i in self.skipped.pop():
            logger.warning(
                "skipped by step %d: %s (%d of %d so far)", step, self._reason(i), len(self.skipped), self._most()
            )
        return self._skipped_by_one() > self._most()

    def check(self, step: int) -> None:
        """Looks at the batch of a step, each process at a part of it, before it is asked for or when none came.

        Raises:
          DataError: if it cannot be made, or too many examples were skipped; names the first.
        """
        on_demand = self._examples.on_demand
        if on_demand is None:
            return
        where = f"the same command goes on from {self._goes_on_from()}"
        if on_demand.skips and (skipped := self._skipped_by_one()) > self._most():
            raise DataError(
                f"step {step}: {skipped} examples were skipped; must be at most {self._most()} of "
                f"{len(self._examples)}; {where}"
            )
        found = [i for i in self._placement.gather(self._first_unusable(step)) if i != NONE]
        if found:
            if on_demand.skips:
                raise DataError(
                    f"step {step}: an example cannot be used, nor can the {ATTEMPTS} drawn in its place; the last: "
                    f"{self._reason(found[0])}; {where}"
                )
            raise DataError(f"step {step}: {self._reason(found[0])}; mended, or with --on_bad_example=skip, {where}")

    def explain(self, step: int, *, stopped_by: int | None) -> None:
        """Says why a run stops before a step, if no process was told to by a signal; all call this together.

        Raises:
          DataError: as `check`; also if the input could not use an example which now can be used.
        """
        if self._examples.on_demand is not None and not any(self._placement.gather(int(stopped_by is not None))):
            self.check(step)
            where = self._goes_on_from()
            raise DataError(
                f"step {step}: an example could not be used, and now can; the same command goes on from {where}"
            )

    def _skipped_by_one(self) -> int:
        """The most examples that any process skipped."""
        return max(self._placement.gather(len(self.skipped)))

    def _first_unusable(self, step: int) -> int:
        """The first example that cannot be used, of the part of a batch that this process looks at."""
        cluster, size = self._placement.cluster, self._config.data.batch_size
        names = ["this process"] if cluster is None else list(cluster.addresses)
        positions = tf.range(names.index(self._placement.name), size, len(names), dtype=tf.int64)
        with tf.device("cpu:0"):
            batch = input_pipeline.part_of_batch(
                self._examples,
                tf.constant(step, tf.int64),
                positions,
                batch_size=size,
                seed=self._config.runtime.seed,
                order_version=self._config.runtime.example_order,
            )
        unusable = np.flatnonzero(~batch["usable"].numpy())
        return int(batch["example_id"].numpy()[unusable[0]]) if len(unusable) else NONE

    def _reason(self, position: int) -> str:
        assert self._examples.on_demand is not None
        try:
            self._examples.on_demand.look_at(position)
        except DataError as error:
            return str(error)
        return f"example {position} of {self._examples.origin}: could not be used, and now can"

    def _most(self) -> int:
        return Skipped.most(len(self._examples))
