"""TCP helpers for IPv4 and IPv6: probing addresses, listening at ports."""

import contextlib
import socket

PROBE_SECONDS = 2.0


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
