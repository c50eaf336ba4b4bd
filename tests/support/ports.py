"""Ports of this machine that stay free until a test listens on them."""

from __future__ import annotations

import random
import socket

# Below what systems give to whoever asks for any port, so that no other server of a test and no connection takes one
# between now and then, in this test process or in another.
_PORTS = range(20_000, 32_000)
_TRIES = 100


def free_port() -> int:
    """A TCP port that nobody listens on.

    Raises:
        AssertionError: none was found.
    """
    for port in random.SystemRandom().sample(_PORTS, _TRIES):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError(f"none of {_TRIES} ports is free")
