"""Rendezvous: the processes of a cluster agree on its members before TensorFlow starts.

TensorFlow needs the list of members at its start; it blocks indefinitely on missing workers and ignores signals. So
each process first listens at its own address and asks those before it in the list. The first one that is present leads:
it waits for the others and sends them the list of members.
"""

import contextlib
import json
import logging
import math
import socket
import threading
import time
from collections.abc import Mapping

from petseg.errors import ClusterError
from petseg.runtime import sockets

POLL_SECONDS = 0.2
FRESH_SECONDS = 4.0  # a process that has not asked for longer counts as missing
MOST_BYTES = 2**20

# Answers of a process at the rendezvous until the list of members is known. WORKS: TensorFlow listens there, so the
# process trains. None: no process answers.
LEADS, FOLLOWS, WORKS = "leads", "follows", "works"
Answer = str | list[str] | None

logger = logging.getLogger(__name__)


def meet(addresses: Mapping[str, str], name: str, listener: socket.socket, *, fewest: int, seconds: float) -> list[str]:
    """Returns the names of the members in their order, the same list in each of them.

    These are all processes as soon as all are present, or those present at the timeout if they are enough. If fewer
    than all are enough, a late process waits without limit until the others restart.

    Args:
      addresses: "host:port" of each process by its name, in the same order in all processes.

    Raises:
      ClusterError: if too few are present at the timeout.
    """
    with _Server(listener, addresses) as server:
        members = _Rendezvous(addresses, name, server, fewest, seconds).members()
    if len(members) == len(addresses):
        return members
    silent = f"no answer from {_described(addresses.keys() - set(members), addresses)} within {seconds:g} s"
    if len(members) < fewest:
        raise ClusterError(silent)
    logger.warning("%s; continues with %d of %d processes", silent, len(members), len(addresses))
    return members


class _Rendezvous:
    """State of this process at the rendezvous; the arguments are those of `meet`."""

    def __init__(self, addresses: Mapping[str, str], name: str, server: "_Server", fewest: int, seconds: float):
        self._addresses, self._name, self._server = addresses, name, server
        self._may_come_later = fewest < len(addresses)
        self._seconds, self._deadline = seconds, time.monotonic() + seconds
        self._predecessors = list(addresses)[: list(addresses).index(name)]
        self._leader, self._logged = "", set[str]()

    def members(self) -> list[str]:
        """Returns the names of the members, which may be too few."""
        while True:
            answer = self._ask_predecessors()
            if isinstance(answer, list) and self._name in answer:
                return answer
            members = None
            if answer is None:
                members = self._lead()
            elif answer in (LEADS, FOLLOWS):
                self._reset_deadline()
            else:
                members = self._wait_for_training_processes()
            if members is not None:
                self._announce(members)
                return members
            time.sleep(POLL_SECONDS)

    def _ask_predecessors(self) -> Answer:
        """Returns the answer of the leader, or else of the first predecessor that answers."""
        for each in ([self._leader] if self._leader else []) + self._predecessors:
            answer = ask(self._addresses[each], self._name)
            if answer is not None:
                self._leader = each if answer == LEADS else ""
                self._server.state = FOLLOWS
                return answer
        self._leader = ""
        return None

    def _lead(self) -> list[str] | None:
        """Returns the names of the members; None while this process has to wait."""
        self._server.state = LEADS
        missing = self._missing()
        if not missing:
            return list(self._addresses)
        if not self._is_late():
            self._log_once("%s waits for %s", _described(missing, self._addresses))
            return None
        answers = [ask(self._addresses[each], self._name) for each in missing]
        if WORKS in answers:
            return self._wait_for_training_processes()
        has_just_come = any(answer is not None for answer in answers)
        return None if has_just_come else self._present()

    def _wait_for_training_processes(self) -> list[str] | None:
        """Waits for processes that train: without limit if they may do so without this one, else until the timeout."""
        if not self._may_come_later:
            return self._present() if self._is_late() else None
        self._log_once("%s waits until the others, which train without it, restart")
        self._reset_deadline()
        return None

    def _reset_deadline(self) -> None:
        self._deadline = time.monotonic() + self._seconds

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def _present(self) -> list[str]:
        missing = self._missing()
        return [each for each in self._addresses if each not in missing]

    def _missing(self) -> set[str]:
        since = time.monotonic() - FRESH_SECONDS
        return {
            each for each in self._addresses if each != self._name and self._server.asked.get(each, -math.inf) < since
        }

    def _log_once(self, message: str, *values: str) -> None:
        if message not in self._logged:
            logger.info(message, self._name, *values)
            self._logged.add(message)

    def _announce(self, members: list[str]) -> None:
        """Waits until the members that are present have received the list."""
        self._server.state = members
        deadline = time.monotonic() + 2 * FRESH_SECONDS
        while not self._server.informed.issuperset(set(members) - {self._name}) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 4)


class _Server:
    """Context manager that answers other processes in a thread; closes the socket at the end."""

    def __init__(self, listener: socket.socket, addresses: Mapping[str, str]):
        self._listener, self._addresses = listener, addresses
        self.state: str | list[str] = FOLLOWS
        self.informed: set[str] = set()
        self.asked: dict[str, float] = {}  # the last time at which each process asked
        self._is_open = True
        self._thread = threading.Thread(target=self._serve, name="rendezvous", daemon=True)

    def __enter__(self) -> "_Server":
        self._listener.settimeout(POLL_SECONDS / 2)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_open = False
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while self._is_open:
            with contextlib.suppress(OSError, ValueError):  # no connection, a lost one, or another protocol
                connection, _ = self._listener.accept()
                with connection:
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(1.0)
        with connection.makefile("rb") as lines:
            name = json.loads(lines.readline(MOST_BYTES))
        if not isinstance(name, str) or (name and name not in self._addresses):
            return
        state = self.state
        connection.sendall(json.dumps({"petseg": state}).encode())
        if not name:  # a probe of `is_waiting_at`
            return
        self.asked[name] = time.monotonic()
        if isinstance(state, list):
            self.informed.add(name)


def is_waiting_at(address: str) -> bool:
    """Whether the process at an address is at the rendezvous, so does not train; does not count as asking."""
    return ask(address, "") not in (WORKS, None)


def ask(address: str, name: str) -> Answer:
    """Asks the process at an address in the name of another one (empty: only a probe)."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=sockets.PROBE_SECONDS) as connection:
            return _answer_of(connection, name)
    except OSError:
        return None


def _answer_of(connection: socket.socket, name: str) -> Answer:
    try:
        connection.sendall(json.dumps(name).encode() + b"\n")
        text = b""
        while (part := connection.recv(MOST_BYTES)) and (text or part).startswith(b"{"):
            text += part
        return json.loads(text).get("petseg", WORKS)
    except TimeoutError:
        return None  # the process is stopped, but its kernel accepts connections
    except (OSError, ValueError):
        return WORKS


def _described(names: set[str], addresses: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({address})" for name, address in addresses.items() if name in names)
