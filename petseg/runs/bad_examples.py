"""Reports bad training examples that the input pipeline found, and ends the run or ignores them (--on_bad_example)."""

import logging
from collections.abc import Callable

from petseg.config import Config
from petseg.data import bad_example_log
from petseg.data.bad_example_log import BadExampleLog
from petseg.data.examples import Examples
from petseg.errors import DataError
from petseg.runtime.strategies import Placement

IGNORED_SHARE, IGNORED_AT_LEAST = 0.01, 10
NONE = -1
logger = logging.getLogger(__name__)


class BadExamples:
    """Checks, between calls of the training loop, whether bad examples were trained on.

    Attributes:
      log: where the input pipeline records bad examples.
    """

    def __init__(self, config: Config, placement: Placement, examples: Examples, newest_checkpoint: Callable[[], str]):
        self._ignore, self._placement = config.data.on_bad_example == "ignore", placement
        self._examples, self._newest_checkpoint = examples, newest_checkpoint
        self._ignored: set[int] = set()
        self.log = BadExampleLog()

    @property
    def limit(self) -> int:
        """The number of different bad examples that a process may ignore: 1% of the split, at least 10."""
        return max(IGNORED_AT_LEAST, int(IGNORED_SHARE * len(self._examples)))

    def check(self, step: int) -> None:
        """Logs bad examples of the steps before `step`. All processes of a cluster call this together.

        With --on_bad_example=stop the run ends before anything of these steps is logged or saved, so a rerun with the
        file fixed gives the same bits as a run that never met the bad example. Raises DataError if the run must end;
        names the example.
        """
        if self._examples.checked:
            return
        found = self.log.pop(step)
        for at, i in found:
            if self._ignore and i not in self._ignored:
                self._ignored.add(i)
                count = f"{len(self._ignored)} of at most {self.limit}"
                logger.warning("step %d: ignored: %s (%s)", at, bad_example_log.reason(self._examples, i), count)
        if self._ignore:
            ignored = max(self._placement.gather(len(self._ignored)))
            if ignored > self.limit:
                raise DataError(
                    f"step {step}: {ignored} bad examples were ignored; must be at most {self.limit} of "
                    f"{len(self._examples)}; rerun to resume from {self._newest_checkpoint()}"
                )
            return
        bad = [i for i in self._placement.gather(found[0][1] if found else NONE) if i != NONE]
        if bad:
            raise DataError(
                f"step {step}: {bad_example_log.reason(self._examples, bad[0])}; fix the file or pass "
                f"--on_bad_example=ignore, then rerun to resume from {self._newest_checkpoint()}"
            )
