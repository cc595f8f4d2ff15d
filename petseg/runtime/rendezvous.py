"""The processes of a cluster meet before TensorFlow starts, and agree on who takes part.

TensorFlow must be told at the start who takes part, and waits for ever for who does not come, deaf to signals. So each
process first listens at its own address, and asks those before it in the list. The first one that is there leads: it
waits for the others, and tells them who goes on.
"""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Mapping

from petseg.errors import ClusterError
from petseg.runtime import sockets

POLL_SECONDS = 0.2
FRESH_SECONDS = 4.0  # who has not asked for so long is gone
MOST_BYTES = 2**20

# What a process answers while it meets the others, until it knows the names of those that go on. One that trains does
# not answer like this, for TensorFlow listens there: WORKS. Nobody answers: None.
LEADS, FOLLOWS, WORKS = "leads", "follows", "works"
Answer = str | list[str] | None

logger = logging.getLogger(__name__)


def meet(addresses: Mapping[str, str], name: str, listener: socket.socket, *, fewest: int, seconds: float) -> list[str]:
    """The names of those that take part, in their order, the same in each of them.

    All of them, as soon as all are there; or those that are there when the time is up, if they are enough. If fewer
    than all are enough, who comes later waits until those that went on without it meet again, however long that takes.

    Args:
      addresses: "host:port" of each process by its name, in the same order in all of them.
      name: name of this process.
      listener: a server's socket at the address of this process; closed at the end.
      fewest: smallest number of processes that may go on.
      seconds: longest wait for those that are not there, in seconds.

    Raises:
      ClusterError: if there are too few when the time is up.
    """
    with _Desk(listener, addresses) as desk:
        members = _Meeting(addresses, name, desk, fewest, seconds).members()
    if len(members) == len(addresses):
        return members
    waited = f"waited {seconds:g} s in vain for {_described(addresses.keys() - set(members), addresses)}"
    if len(members) < fewest:
        raise ClusterError(waited)
    logger.warning("%s; goes on with %d of %d processes", waited, len(members), len(addresses))
    return members


class _Meeting:
    """What a process knows of the others while it meets them; the arguments are those of `meet`."""

    def __init__(self, addresses: Mapping[str, str], name: str, desk: "_Desk", fewest: int, seconds: float):
        self._addresses, self._name, self._desk = addresses, name, desk
        self._may_come_later = fewest < len(addresses)
        self._seconds, self._deadline = seconds, time.monotonic() + seconds
        self._before = list(addresses)[: list(addresses).index(name)]
        self._leader, self._said = "", set[str]()

    def members(self) -> list[str]:
        """The names of those that go on, which may be too few."""
        while True:
            answer = self._ask_those_before()
            if isinstance(answer, list) and self._name in answer:
                return answer
            members = None
            if answer is None:
                members = self._lead()
            elif answer in (LEADS, FOLLOWS):
                self._start_to_wait()
            else:
                members = self._wait_for_those_at_work()
            if members is not None:
                self._tell(members)
                return members
            time.sleep(POLL_SECONDS)

    def _ask_those_before(self) -> Answer:
        """What the leader answers, or else the first one before this process that answers at all."""
        for each in ([self._leader] if self._leader else []) + self._before:
            answer = ask(self._addresses[each], self._name)
            if answer is not None:
                self._leader = each if answer == LEADS else ""
                self._desk.state = FOLLOWS
                return answer
        self._leader = ""
        return None

    def _lead(self) -> list[str] | None:
        """The names of those that go on; None as long as this process waits."""
        self._desk.state = LEADS
        missing = self._missing()
        if not missing:
            return list(self._addresses)
        if not self._is_late():
            self._say_once("%s waits for %s", _described(missing, self._addresses))
            return None
        answers = [ask(self._addresses[each], self._name) for each in missing]
        if WORKS in answers:
            return self._wait_for_those_at_work()
        has_just_come = any(answer is not None for answer in answers)
        return None if has_just_come else self._here()

    def _wait_for_those_at_work(self) -> list[str] | None:
        """Waits for processes that train; for ever if they do so without this one, else until they must be gone."""
        if not self._may_come_later:
            return self._here() if self._is_late() else None
        self._say_once("%s waits until the others, which train without it, start again")
        self._start_to_wait()
        return None

    def _start_to_wait(self) -> None:
        self._deadline = time.monotonic() + self._seconds

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def _here(self) -> list[str]:
        missing = self._missing()
        return [each for each in self._addresses if each not in missing]

    def _missing(self) -> set[str]:
        return {each for each in self._addresses if each != self._name and not self._desk.knows(each)}

    def _say_once(self, message: str, *values: str) -> None:
        if message not in self._said:
            logger.info(message, self._name, *values)
            self._said.add(message)

    def _tell(self, members: list[str]) -> None:
        """Has the others that are here told who goes on."""
        self._desk.state = members
        deadline = time.monotonic() + 2 * FRESH_SECONDS
        while not self._desk.told.issuperset(set(members) - {self._name}) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 4)


class _Desk:
    """Answers the processes that ask, in a thread of its own, inside ``with``; closes the socket at the end.

    Attributes:
      state: what is answered.
      told: names of those that were told who goes on.
    """

    def __init__(self, listener: socket.socket, addresses: Mapping[str, str]):
        self._listener, self._addresses = listener, addresses
        self.state: str | list[str] = FOLLOWS
        self.told: set[str] = set()
        self._asked: dict[str, float] = {}
        self._is_open = True
        self._thread = threading.Thread(target=self._serve, name="rendezvous", daemon=True)

    def __enter__(self) -> "_Desk":
        self._listener.settimeout(POLL_SECONDS / 2)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_open = False
        self._thread.join()
        self._listener.close()

    def knows(self, name: str) -> bool:
        """Whether a process asked just now."""
        return name in self._asked and time.monotonic() - self._asked[name] < FRESH_SECONDS

    def _serve(self) -> None:
        while self._is_open:
            with contextlib.suppress(OSError, ValueError):  # nobody came, or one that left, or speaks of other things
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
        if not name:  # `is_held_at` only looks
            return
        self._asked[name] = time.monotonic()
        if isinstance(state, list):
            self.told.add(name)


def is_held_at(address: str) -> bool:
    """Whether the process at an address is at the rendezvous, and so does not train; it is not counted as asked."""
    return ask(address, "") not in (WORKS, None)


def ask(address: str, name: str) -> Answer:
    """What the process at an address answers to the one of a name."""
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
        return None  # it is halted: its system accepts connections for it
    except (OSError, ValueError):
        return WORKS


def _described(names: set[str], addresses: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({address})" for name, address in addresses.items() if name in names)
