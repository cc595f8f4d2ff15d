"""Batches that other processes make: the side that asks; `service` is the other one."""

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
LOST_SECONDS = 10.0  # TensorFlow bridges shorter interruptions by itself, and longer ones too: for ever
BATCHES_AT_ONCE = 2
OUT_OF_ORDER = "data service: batch out of order"

logger = logging.getLogger(__name__)


def remote_batches(
    addresses: Sequence[str], first: int, last: int, make: Callable[[tf.Tensor], Any]
) -> tf.data.Dataset:
    """The batches `make(first)` to `make(last - 1)`, in this order, made by the processes that listen at addresses.

    Of K addresses, each has a worker of its own, which makes every K-th batch; they are dealt in turn. TensorFlow would
    also divide the work among workers of one address, first come, first served: then their order would be anyone's.

    Args:
      addresses: HOST:PORT of dispatchers.
      first: number of the first batch.
      last: number behind that of the last batch.
      make: int64 scalar -> batch, as a graph that any process can run.

    Raises:
      tf.errors.InvalidArgumentError: while iterating, if a batch comes out of order.
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
        .map(numbered, BATCHES_AT_ONCE)
        .with_options(options)
        .apply(
            service.distribute(
                processing_mode=service.ShardingPolicy.OFF,
                service=f"grpc://{address}",
                compression=None,  # photographs do not shrink, and each end would spend its time on it
            )
        )
        for k, address in enumerate(addresses)
    ]
    turns = tf.data.Dataset.range(len(addresses)).repeat()
    dealt = tf.data.Dataset.choose_from_datasets(parts, turns, stop_on_empty_dataset=False)
    return tf.data.Dataset.zip(tf.data.Dataset.range(first, last), dealt).map(checked)


def wait_for_services(addresses: Sequence[str], seconds: float) -> None:
    """Returns when somebody listens at each address.

    Raises:
      ClusterError: if that does not happen in time.
    """
    missing = sockets.wait_until_all_answer(
        lambda: [address for address in addresses if not sockets.answers(address)],
        seconds,
        lambda silent: logger.info("waiting for the data service: %s", _listed(silent)),
    )
    if missing:
        raise ClusterError(
            f"--data_service: waited {seconds:g} s in vain for {_listed(missing)}; "
            "`python -m petseg.data.service` starts one"
        )


@contextlib.contextmanager
def watch_services(addresses: Sequence[str], what_remains: str) -> Iterator[None]:
    """Ends the process, with one line, when an address has not been answering for a while.

    TensorFlow goes on asking for ever, in calls that no signal, no exception and no end of the program interrupts. So
    the process ends as after `kill -9`, which a run survives.

    Args:
      addresses: HOST:PORT of the services; nothing is watched if there are none.
      what_remains: end of the line: what the user has left, and can do.

    Raises:
      ClusterError: if the block failed because a service was started anew and knows nothing of this process.
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
            problem = f"{_listed(addresses)} was started anew, or lost its worker"
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
            error = ClusterError(f"--data_service: lost {_listed(lost)}; start it again, then {what_remains}")
            print(f"{program}: error: {error}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)


def _listed(addresses: Sequence[str]) -> str:
    return ", ".join(f"grpc://{address}" for address in addresses)
