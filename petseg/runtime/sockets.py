"""Who listens at an address, and listening at a port, in IPv4 and IPv6 alike."""

import contextlib
import socket
import time
from collections.abc import Callable

PROBE_SECONDS, POLL_SECONDS = 2.0, 0.2


def answers(address: str) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False


def listen(port: int) -> socket.socket:
    """A server's socket at a port of all of this machine's addresses.

    Raises:
      OSError: if the port is taken, or may not be used.
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6)


def free_ports(number: int) -> list[int]:
    """Ports at which nobody listens; another process may take one before it is used."""
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(listen(0)).getsockname()[1] for _ in range(number)]


def wait_until_all_answer(
    silent: Callable[[], list[str]], seconds: float, tell: Callable[[list[str]], None]
) -> list[str]:
    """Waits until nobody is silent any more. TensorFlow itself would wait for ever, deaf to signals.

    Args:
      silent: a function that returns the names of those that do not answer now.
      seconds: longest wait, in seconds.
      tell: a function that is called once, with the names of those that are waited for, if there are any.

    Returns:
      the names of those that were still silent when the time was up; empty if all answer.
    """
    deadline, told = time.monotonic() + seconds, False
    while missing := silent():
        if time.monotonic() > deadline:
            return missing
        if not told:
            tell(missing)
            told = True
        time.sleep(POLL_SECONDS)
    return []
