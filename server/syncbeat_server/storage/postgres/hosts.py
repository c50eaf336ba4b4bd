"""Connects to one of several PostgreSQL hosts, giving each its share of the time.

asyncpg tries the hosts of an address one after the other within one time-out for all: a first host that takes
connections and never answers, or drops packets, would keep everybody from the others.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import asyncpg

_PORT = 5432
_HOST = re.compile(r"(\[[^\]]+\]|[^\[\]:]+)(?::([0-9]+))?")
# Errors of the host and not of the login: it is away, starts or stops, does not take writes, or is full.
_NOT_HERE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.TargetServerAttributeNotMatched,
)

HostPort = tuple[str, int]


class Hosts:
    """Hosts of an address. The one that connected last is tried first."""

    def __init__(self, url: str) -> None:
        self._hosts = parse_hosts(url)
        self._first = 0

    async def connect(self, url: str, *, timeout: float, **settings: Any) -> asyncpg.Connection:
        """Open a connection within `timeout` seconds; `settings` are those of asyncpg.connect.

        Raises:
            Exception: as asyncpg.connect; of several hosts' errors, one that a server answered is preferred.
        """
        count = len(self._hosts)
        if count < 2:
            opened: asyncpg.Connection = await asyncpg.connect(url, timeout=timeout, **settings)
            return opened
        failures: list[Exception] = []
        for turn in range(count):
            number = (self._first + turn) % count
            host, port = self._hosts[number]
            try:
                opened = await asyncpg.connect(url, host=host, port=port, timeout=timeout / count, **settings)
            except _NOT_HERE as error:
                failures.append(error)
            else:
                self._first = number
                return opened
        raise next((error for error in failures if isinstance(error, asyncpg.PostgresError)), failures[-1])


def without_login(url: str) -> str:
    """Return an address without its user and password."""
    parts = urlsplit(url)
    query = [(name, value) for name, value in parse_qsl(parts.query) if name not in ("user", "password")]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=urlencode(query)))


def parse_hosts(url: str) -> list[HostPort]:
    """Return the hosts and ports of an address that names several; empty if the driver is to choose by itself."""
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if query.get("target_session_attrs") == "prefer-standby":  # it takes a look at all hosts to decide
        return []
    in_front = parts.netloc.rpartition("@")[2]
    named = (in_front or query.get("host", "")).split(",")
    ports = query.get("port", str(_PORT)).split(",")
    if len(ports) == 1:
        ports *= len(named)
    matches = [_HOST.fullmatch(name) for name in named]
    if len(named) < 2 or len(ports) != len(named) or not all(matches) or not all(map(str.isdecimal, ports)):
        return []
    return [
        (unquote(match[1].strip("[]")), int(match[2] or port))
        for match, port in zip(matches, ports, strict=True)
        if match is not None
    ]
