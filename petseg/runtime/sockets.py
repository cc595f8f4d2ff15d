"""TCP helpers for IPv4 and IPv6: probing addresses, listening at ports, waiting for servers."""

import contextlib
import socket
import time
from collections.abc import Callable

PROBE_SECONDS, POLL_SECONDS = 2.0, 0.2


def answers(address: str) -> bool:
    """Whether a server accepts connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False


def listen(port: int) -> socket.socket:
    """Opens a server socket at a port on all addresses of this machine.

    Raises OSError if the port is in use or not permitted.
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6)


def free_ports(number: int) -> list[int]:
    """Returns free ports; another process may take one before it is used."""
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(listen(0)).getsockname()[1] for _ in range(number)]


def wait_until_all_answer(
    silent: Callable[[], list[str]], seconds: float, on_wait: Callable[[list[str]], None]
) -> list[str]:
    """Waits until all servers answer. TensorFlow itself would wait indefinitely and ignore signals.

    Args:
      silent: returns the names of the servers that do not answer now.
      seconds: timeout in seconds.
      on_wait: called once with the missing names, if there are any.

    Returns:
      the names that were still missing at the timeout; empty if all answer.
    """
    deadline, waiting = time.monotonic() + seconds, False
    while missing := silent():
        if time.monotonic() > deadline:
            return missing
        if not waiting:
            on_wait(missing)
            waiting = True
        time.sleep(POLL_SECONDS)
    return []
