"""Worker processes of the benchmark: spawning, messages and errors."""

import contextlib
import importlib
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

from petseg.errors import PetsegError, one_line
from petseg.runtime import startup


class Worker:
    """The parent's end of a worker process."""

    def __init__(self, title: str, connection: Connection):
        self._title, self.connection = title, connection

    def send(self, message: Any) -> None:
        self.connection.send(message)

    def receive(self, seconds: float | None = None) -> Any:
        """Waits for the worker's next message.

        Raises PetsegError if the worker failed or ended instead, or sent nothing within some seconds.
        """
        try:
            if seconds is not None and not self.connection.poll(max(0.0, seconds)):
                raise PetsegError(f"{self._title}: did not end within its time")
            message = self.connection.recv()
        except EOFError:
            raise PetsegError(f"{self._title}: its process ended") from None
        if isinstance(message, PetsegError):
            raise PetsegError(f"{self._title}: {message}")
        return message


@contextlib.contextmanager
def worker(title: str, target: str, *arguments: Any, environment: Mapping[str, str] | None = None) -> Iterator[Worker]:
    """Starts a process for the duration of a ``with`` block: a fork of one that has loaded TensorFlow.

    Args:
      target: `module:function` in petseg.benchmark. It is imported in the worker only, so that the parent need not load
        TensorFlow, and called with the worker's connection, then the arguments.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["petseg.benchmark.preloaded"])
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, target, arguments, environment or {}), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Worker(title, ours)
    finally:
        process.kill()
        process.join()


def _run(connection: Connection, target: str, arguments: tuple[Any, ...], environment: Mapping[str, str]) -> None:
    """Calls the target in the worker, and sends its error, if any."""
    os.environ.update(environment)
    module, function = target.split(":")
    try:
        with startup.without_greetings():
            startup.load_tensorflow()
        import tqdm

        tqdm.tqdm.set_lock(threading.RLock())  # the default lock is shared by processes; killing one would break it
        getattr(importlib.import_module(f"petseg.benchmark.{module}"), function)(connection, *arguments)
    except (EOFError, KeyboardInterrupt):  # the parent has ended
        pass
    except PetsegError as error:
        connection.send(PetsegError(str(error)))
    except Exception as error:
        connection.send(PetsegError(one_line(error)))
