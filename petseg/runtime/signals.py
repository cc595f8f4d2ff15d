"""Stop requests: SIGTERM (schedulers) and SIGINT (Ctrl-C) as flags that compiled code can read."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from petseg.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Restores Python's signal handlers after a block in which a library may replace them in C.

    TensorFlow's coordination service installs a SIGTERM handler that only sets a flag inside TensorFlow: a process of a
    cluster would ignore SIGTERM.
    """
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if handler is not None:
                    signal.signal(number, handler)


class StopSignals:
    """Context manager that turns SIGTERM and SIGINT into stop requests.

    A signal raises `StoppedError` at once, except within ``deferred``: there the first signal is only recorded, so that
    the program can save its state and stop; a second one raises.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._raised: int | None = None  # the signal for which `StoppedError` was raised
        self._deferring = False
        self._callbacks: list[Callable[[], None]] = []

    def __enter__(self) -> "StopSignals":
        self._catches = threading.current_thread() is threading.main_thread()  # the only one that may set handlers
        if not self._catches:
            return self
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        # Python runs handlers only between bytecode instructions, so not during a compiled loop; the wake-up pipe is
        # written at once.
        self._handlers_before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        self._descriptor_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="stop signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not self._catches:
            return
        signal.set_wakeup_fd(self._descriptor_before)
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        os.close(self._write_end)  # ends the thread
        self._thread.join()
        os.close(self._read_end)
        if self._raised and isinstance(error, Exception):  # native code that is interrupted may replace the error
            raise StoppedError(self._raised) from error

    def call(self, callback: Callable[[], None]) -> None:
        """Registers a function to call from another thread as soon as a signal arrives."""
        self._callbacks.append(callback)

    def stopped(self, what_remains: str) -> StoppedError:
        """Returns the error to exit with, also if another process of the cluster received the signal."""
        sender = "" if self.received else ", sent to another process,"
        return StoppedError(self.received or signal.SIGTERM, f"{sender} {what_remains}")

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Records the first signal instead of raising."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _handle(self, number: int, frame: object) -> None:
        again, self.received = self.received is not None, number
        if again or not self._deferring:
            self._raised = number
            raise StoppedError(number)

    def _watch(self) -> None:
        while byte := os.read(self._read_end, 1):
            if byte[0] in SIGNALS:
                for callback in self._callbacks:
                    callback()
