"""Connects to one of several PostgreSQL hosts, giving each its share of the time.

asyncpg asks the hosts of an address one after the other within one time for all: a first host that takes connections
and says nothing, or that drops what is sent to it, would keep everybody from the others for as long as it stays so.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

_PORT = 5432
_HOST = re.compile(r"(\[[^\]]+\]|[^\[\]:]+)(?::([0-9]+))?")
# What says "not this host" rather than "not you": it is away, starts or stops, does not take writes, or is full.
_NOT_HERE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.TargetServerAttributeNotMatched,
)

Place = tuple[str, int]


class Hosts:
    """The hosts of an address. Whichever answered last is asked first."""

    def __init__(self, url: str) -> None:
        self._places = places(url)
        self._first = 0

    async def connect(self, url: str, *, timeout: float, **settings: Any) -> asyncpg.Connection:
        """Open a connection within `timeout` seconds; `settings` are those of asyncpg.connect.

        Raises:
            Exception: what asyncpg.connect raises; of several hosts', what a server said, if one did.
        """
        count = len(self._places)
        if count < 2:
            opened: asyncpg.Connection = await asyncpg.connect(url, timeout=timeout, **settings)
            return opened
        failures: list[Exception] = []
        for turn in range(count):
            number = (self._first + turn) % count
            host, port = self._places[number]
            try:
                opened = await asyncpg.connect(url, host=host, port=port, timeout=timeout / count, **settings)
            except _NOT_HERE as error:
                failures.append(error)
            else:
                self._first = number
                return opened
        raise next((error for error in failures if isinstance(error, asyncpg.PostgresError)), failures[-1])


def places(url: str) -> list[Place]:
    """The hosts and ports of an address that names several; none when the driver had better choose itself."""
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if query.get("target_session_attrs") == "prefer-standby":  # no host can tell this for itself
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
