"""Client of data services (--data_service): fetches training batches that other processes make."""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from petseg.errors import ClusterError
from petseg.runtime import autotuning, sockets

POLL_SECONDS = 0.5
LOST_SECONDS = 10.0  # TensorFlow would retry forever
LEAST_AT_ONCE = 2
OUT_OF_ORDER = "data service: batch out of order"

logger = logging.getLogger(__name__)


def remote_batches(
    addresses: Sequence[str], first: int, last: int, make: Callable[[tf.Tensor], Any], *, wanted: int = 0
) -> tf.data.Dataset:
    """The batches `make(first)` to `make(last - 1)`, in order, made by data services.

    Each of K services makes every K-th batch. A service must have a single worker: TensorFlow would divide the batches
    among several on a first-come, first-served basis, which loses their order.

    Args:
      make: int64 scalar -> batch, as a graph that any process can run.

    Raises:
      tf.errors.InvalidArgumentError: while iterating, if a batch is out of order.
    """
    service = tf.data.experimental.service
    options = autotuning.off()

    def numbered(element: tf.Tensor) -> tuple[tf.Tensor, Any]:
        return element, make(element)

    def checked(expected: tf.Tensor, numbered: tuple[tf.Tensor, Any]) -> Any:
        element, batch = numbered
        with tf.control_dependencies([tf.debugging.assert_equal(element, expected, OUT_OF_ORDER)]):
            return tf.nest.map_structure(tf.identity, batch)

    parts = [
        tf.data.Dataset.range(first + k, last, len(addresses))
        .map(numbered, max(LEAST_AT_ONCE, -(-wanted // len(addresses))))
        .with_options(options)
        .apply(
            service.distribute(
                processing_mode=service.ShardingPolicy.OFF,
                service=f"grpc://{address}",
                compression=None,  # takes time and hardly shrinks photographs
            )
        )
        for k, address in enumerate(addresses)
    ]
    turns = tf.data.Dataset.range(len(addresses)).repeat()
    dealt = tf.data.Dataset.choose_from_datasets(parts, turns, stop_on_empty_dataset=False)
    return tf.data.Dataset.zip(tf.data.Dataset.range(first, last), dealt).map(checked)


def wait_for_services(addresses: Sequence[str], seconds: float) -> None:
    """Waits until all services answer; raises ClusterError if one does not in time."""
    deadline, logged = time.monotonic() + seconds, False
    while missing := [address for address in addresses if not sockets.answers(address)]:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"--data_service: no answer from {_listed(missing)} within {seconds:g} s; "
                "`python -m petseg.data.service` starts a service"
            )
        if not logged:
            logger.info("waiting for the data service: %s", _listed(missing))
            logged = True
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def watch_services(addresses: Sequence[str], what_remains: str) -> Iterator[None]:
    """Ends the process with an error message when a service has not answered for LOST_SECONDS.

    TensorFlow would retry forever in calls that neither signals nor exceptions interrupt, so the process exits
    immediately, as after `kill -9`; the run can be resumed. Raises ClusterError if the block failed because a service
    was restarted, lost its worker, or has several.
    """
    if not addresses:
        yield
        return
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(addresses, what_remains, over), name="data service", daemon=True)
    watch.start()
    try:
        yield
    except tf.errors.OpError as error:
        if OUT_OF_ORDER in str(error):
            problem = "batches came out of order; there must be one worker behind each address"
        elif "dispatcher" in str(error) or isinstance(error, tf.errors.UnavailableError):
            problem = f"{_listed(addresses)} was restarted, or lost its worker"
        else:
            raise
        raise ClusterError(f"--data_service: {problem}; {what_remains}") from error
    finally:
        over.set()
        watch.join()


def _watch(addresses: Sequence[str], what_remains: str, over: threading.Event) -> None:
    seen = dict.fromkeys(addresses, time.monotonic())
    while not over.wait(POLL_SECONDS):
        for address in addresses:
            if sockets.answers(address):
                seen[address] = time.monotonic()
        lost = [address for address, moment in seen.items() if time.monotonic() - moment > LOST_SECONDS]
        if lost and not over.is_set():
            program = os.path.basename(sys.argv[0])
            error = ClusterError(f"--data_service: lost {_listed(lost)}; restart it, then {what_remains}")
            print(f"{program}: error: {error}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)


def _listed(addresses: Sequence[str]) -> str:
    return ", ".join(f"grpc://{address}" for address in addresses)
