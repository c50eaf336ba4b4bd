"""Lets the kernel find out hosts of the database that vanished, by TCP keepalive (ADR 79)."""

from __future__ import annotations

import socket
from typing import Any, cast

import asyncpg

# A host that vanishes closes no connection. It is probed after 10 s of silence, then each 5 s, and given up after three
# probes without an answer, or 15 s after sending data that it does not acknowledge (Linux: tcp(7)).
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 15_000}


def set_keepalive(conn: asyncpg.Connection) -> None:
    """Set the probes of a connection's socket, unless it is that of this machine."""
    sock = cast(Any, conn)._transport.get_extra_info("socket")  # the driver has no option for it
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        option = getattr(socket, name, None)  # not every system has each
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
