"""Writes checkpoints in a thread while training continues."""

import concurrent.futures
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Context manager that runs one write at a time, in a thread or at once; leaving it waits for the last one."""

    def __init__(self, *, in_thread: bool = False):
        self._thread = ThreadPoolExecutor(1, "checkpoints", _lower_priority) if in_thread else None
        self._write: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Begins a write, once the one before has ended."""
        self.wait()
        if self._thread is None:
            write()
        else:
            self._write = self._thread.submit(write)

    def check(self) -> None:
        """Raises the error of a write that has failed; does not wait."""
        if self._write is not None and self._write.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the current write, and raises its error."""
        if self._write is not None:
            concurrent.futures.wait([self._write])  # a signal may interrupt it; the write then stays the current one
            write, self._write = self._write, None
            write.result()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            logger.error("%s", failed)  # the error that ends the run is raised
        finally:
            if self._thread is not None:
                # A thread at its end still holds the model; one that a signal left writing is not waited for.
                self._thread.shutdown(wait=self._write is None)


def _lower_priority() -> None:
    """Lowers the scheduling priority of this thread below that of the training steps."""
    with contextlib.suppress(OSError):  # only Linux has priorities of threads
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + 10)
