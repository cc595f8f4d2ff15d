"""Makes training batches for other processes: python -m petseg.data.service --port=5050, until Ctrl-C or SIGTERM.

What listens at the port is TensorFlow's data service, a dispatcher with one worker. It runs the graphs that it is sent,
whoever sends them: only in a network whose users you trust.
"""

import dataclasses
import logging
import socket
import threading

from petseg.config import command_line
from petseg.config.options import Group, option
from petseg.errors import ConfigError
from petseg.runtime import sockets, startup

logger = logging.getLogger("petseg.data.service")  # whose __name__ is __main__


@dataclasses.dataclass(frozen=True)
class ServiceConfig(Group):
    """Where the service listens."""

    port: int = option(5050, "port to listen at; the worker listens at any other", minimum=1, maximum=65535)
    host: str = option("", "name or address by which trainings reach this machine; empty: its host name")
    debug: bool = option(False, "show the traceback of an error that is otherwise one line")


def main(config: ServiceConfig) -> None:
    """Runs the service until a signal comes.

    Raises:
      ConfigError: if it cannot listen, or the host has no address.
      StoppedError: when a signal comes.
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
                worker_address=f"{host}:%port%",  # what trainings are told; `localhost` if nothing is said
                heartbeat_interval_ms=1000,
            )
        )
        logger.info("the data service is ready: --data_service=grpc://%s:%d --cache=disk", host, config.port)
        threading.Event().wait()  # and not `worker.join`, during which no signal handler runs
        del worker, dispatcher


def _check(host: str, port: int) -> None:
    """Raises ConfigError for what TensorFlow would answer with a traceback."""
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        raise ConfigError(f"--host={host}: has no address ({error.strerror}); must be what trainings reach") from error
    try:
        sockets.listen(port).close()
    except OSError as error:
        raise ConfigError(f"--port={port}: cannot listen there: {error.strerror}") from error


if __name__ == "__main__":
    command_line.run(main, ServiceConfig, __doc__)
