"""Progress of a run on the terminal."""

import logging
import time

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)


class Progress:
    """A progress bar on a terminal or in a notebook; otherwise a log line every `log_every` steps."""

    def __init__(self, first_step: int, last_step: int, *, steps_per_epoch: int, log_every: int, hidden: bool = False):
        self._first_step, self._last_step = first_step, last_step
        self._steps_per_epoch, self._log_every, self._hidden = steps_per_epoch, log_every, hidden
        self._began, self._step, self._shown = time.monotonic(), first_step, ""
        self._bar = tqdm(
            desc=self._epoch(first_step),
            initial=first_step,
            total=last_step,
            unit="step",
            disable=True if hidden else None,  # None: disable unless the output is a terminal
            dynamic_ncols=True,
            smoothing=0,  # estimate the time left from the whole run so far, evaluations included
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps{postfix} [{elapsed}<{remaining}]",
        )

    def close(self) -> None:
        """Ends the bar, so that other output can follow."""
        self._bar.close()

    def start(self) -> None:
        """Starts the clock of the remaining time, without the preparation before."""
        self._began = time.monotonic()
        self._bar.unpause()

    def show(self, *, loss: float, mean_iou: float, images_per_second: float) -> None:
        """Sets the numbers to show, those of the last summary."""
        self._shown = f"loss {loss:.4f}, mean IoU {mean_iou:.4f}, {images_per_second:.1f} images/s"
        self._bar.set_postfix_str(self._shown, refresh=False)

    def advance(self, step: int) -> None:
        """Moves the display to a step."""
        before, self._step = self._step, step
        self._bar.set_description_str(self._epoch(step), refresh=False)
        self._bar.update(step - before)
        due = step // self._log_every > before // self._log_every or step == self._last_step
        if self._bar.disable and not self._hidden and due:
            # At the speed so far, evaluations and checkpoints included.
            left = (time.monotonic() - self._began) / max(step - self._first_step, 1) * (self._last_step - step)
            logger.info("step %d/%d, %s: %s, %s left", step, self._last_step, self._epoch(step), self._shown or "-",
                        tqdm.format_interval(left))  # fmt: skip

    def _epoch(self, step: int) -> str:
        epochs = -(-self._last_step // self._steps_per_epoch)
        return f"epoch {min(step // self._steps_per_epoch + 1, epochs)}/{epochs}"
