import ctypes
import os
import signal
import threading
import time

import pytest

from petseg.errors import StoppedError
from petseg.runtime.signals import StopSignals, handlers_kept


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_program_where_nothing_can_be_lost(number, code):
    with pytest.raises(StoppedError, match="stopped by SIG") as caught, StopSignals():
        send(number)
    assert caught.value.exit_code == code


def replace_error():
    """Does what native code may do in which a signal arrives."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except StoppedError as error:
        raise AttributeError("'str' object has no attribute 'keys'") from error


def test_a_signal_ends_the_program_also_if_native_code_replaces_its_error():
    with pytest.raises(StoppedError) as stopped, StopSignals():
        replace_error()
    assert stopped.value.exit_code == 143


def test_a_deferred_signal_wakes_other_threads_and_is_kept():
    woken = threading.Event()
    with StopSignals() as signals:
        signals.call(woken.set)
        with signals.deferred():
            assert signals.received is None
            send(signal.SIGTERM)
            assert woken.wait(5)
            assert signals.received == signal.SIGTERM
            with pytest.raises(StoppedError):  # a second signal ends the program at once
                send(signal.SIGINT)


def test_signal_handlers_are_restored_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_handler_that_a_library_installs_natively_does_not_stay(number):
    ignore, woken = ctypes.c_void_p(1), threading.Event()
    libc = ctypes.CDLL(None)
    with StopSignals() as signals:
        signals.call(woken.set)
        with handlers_kept():
            libc.signal(int(number), ignore)
            send(number)
            assert not woken.is_set()  # that one is lost
        with pytest.raises(StoppedError) as caught:
            send(number)
    assert caught.value.exit_code == 128 + number
    assert woken.is_set()
