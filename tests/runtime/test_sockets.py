import socket

import pytest

from petseg.runtime import sockets


def test_a_port_that_is_listened_at_answers_in_both_families_until_it_is_closed():
    with sockets.listen(0) as server:
        port = server.getsockname()[1]
        assert sockets.answers(f"127.0.0.1:{port}")
        assert sockets.answers(f"localhost:{port}")
        if socket.has_dualstack_ipv6():
            assert server.family == socket.AF_INET6
        with pytest.raises(OSError, match="in use"):
            sockets.listen(port)
    assert not sockets.answers(f"127.0.0.1:{port}")
