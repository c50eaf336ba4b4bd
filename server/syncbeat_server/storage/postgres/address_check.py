"""Tries an address of PostgreSQL: where it leads, whether by a pooler, if it is encrypted, and how many may connect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from syncbeat_server.ops.hosts import is_this_machine
from syncbeat_server.storage.postgres.driver_errors import translated_errors
from syncbeat_server.storage.postgres.hosts import Hosts
from syncbeat_server.storage.postgres.statement_comments import connect_apart

_CONNECT_S = 5.0
# What is reserved for superusers, and since version 16 for others, is not the service's. A limit of -1 is none.
_FACTS = """SELECT pg_backend_pid() AS process,
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           - coalesce(current_setting('reserved_connections', true), '0')::int AS server,
       (SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user) AS login,
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS database"""


@dataclass(frozen=True)
class AddressFacts:
    """Facts that a connection to an address found.

    Attributes:
        place: Host and port of the server, or `socket`.
        direct: Whether it leads to PostgreSQL itself and not to a pooler in transaction mode.
        private: Whether it does not leave this machine.
        encrypted: Whether it uses TLS.
        most_connections: How many connections PostgreSQL lets the login have, those of others among them.
    """

    place: str
    direct: bool
    private: bool
    encrypted: bool
    most_connections: int

    @property
    def exposed(self) -> bool:
        """Return True if others on the way could read along."""
        return not (self.private or self.encrypted)


async def try_address(url: str) -> AddressFacts:
    """Connect once, and return what is there.

    Raises:
        DependencyDown: it cannot be reached.
        StatementRejected: it refuses the login, or the database is missing.
    """
    with translated_errors():
        conn = await connect_apart(Hosts(url), url, "syncbeat-check", _CONNECT_S)
        transport = cast(Any, conn)._transport  # the driver has no other way to ask; and only while it is open
        try:
            peer, encrypted = transport.get_extra_info("peername"), transport.get_extra_info("ssl_object") is not None
            (row,) = await conn.fetch(_FACTS, timeout=_CONNECT_S)
        finally:
            await conn.close(timeout=_CONNECT_S)
    limits = [int(row[name]) for name in ("server", "login", "database") if row[name] >= 0]
    direct = row["process"] == conn.get_server_pid()
    return AddressFacts(place_of(peer), direct, is_private(peer), encrypted, min(limits))


def place_of(peer: object) -> str:
    """Return a socket's other end in words."""
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "socket"


def is_private(peer: object) -> bool:
    """Return True if a socket's other end is on this machine."""
    return not isinstance(peer, tuple) or is_this_machine(peer[0])
