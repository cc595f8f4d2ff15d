"""Runs a tf.data service, which makes training batches for other processes: python -m petseg.data.service --port=5050

Runs until Ctrl-C or SIGTERM. The service, a dispatcher with one worker, executes any graph that it is sent: use it only
in trusted networks.
"""

import dataclasses
import logging
import socket
import threading

from petseg.config import command_line
from petseg.config.options import Group, option
from petseg.errors import ConfigError
from petseg.runtime import sockets, startup

logger = logging.getLogger("petseg.data.service")  # __name__ may be __main__


@dataclasses.dataclass(frozen=True)
class ServiceConfig(Group):
    """Flags: the address of the service."""

    port: int = option(5050, "port of the dispatcher; the worker uses any free port", minimum=1, maximum=65535)
    host: str = option("", "name or address of this machine for training processes; empty: its host name")
    debug: bool = option(False, "show the traceback of an error that is otherwise one line")


def main(config: ServiceConfig) -> None:
    """Runs the service until a signal arrives.

    Raises:
      ConfigError: if it cannot listen at the port, or the host has no address.
      StoppedError: on SIGINT or SIGTERM.
    """
    host = config.host or socket.gethostname()
    _check(host, config.port)
    startup.load_tensorflow(show_greetings=config.debug)  # after the flags are checked
    import tensorflow as tf

    from petseg.runtime.signals import StopSignals

    service = tf.data.experimental.service
    with StopSignals():
        dispatcher = service.DispatchServer(service.DispatcherConfig(port=config.port))
        worker = service.WorkerServer(
            service.WorkerConfig(
                dispatcher_address=f"localhost:{config.port}",
                worker_address=f"{host}:%port%",  # sent to training processes; default: localhost
                heartbeat_interval_ms=1000,
            )
        )
        logger.info("the data service is ready: --data_service=grpc://%s:%d --cache=disk", host, config.port)
        threading.Event().wait()  # `worker.join` would block signal handlers
        del worker, dispatcher


def _check(host: str, port: int) -> None:
    """Raises ConfigError for an unusable host or port, for which TensorFlow would print a traceback."""
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        raise ConfigError(f"--host={host}: has no address ({error.strerror}); must be this machine's") from error
    try:
        sockets.listen(port).close()
    except OSError as error:
        raise ConfigError(f"--port={port}: cannot listen there: {error.strerror}; must be a free port") from error


if __name__ == "__main__":
    command_line.run(main, ServiceConfig, __doc__)
