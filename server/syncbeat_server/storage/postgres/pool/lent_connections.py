"""Watches the connections that callers have: a server that vanished closes none, and answers nobody (ADR 138)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context

import asyncpg
from asyncpg.pool import PoolConnectionProxy

_LOOK_S = 1.0
_LONG_S = 2.0
"""Seconds after which a connection that a caller still has raises the suspicion that the server is away."""


class LentConnections:
    """Knows since when each connection of a pool is lent."""

    def __init__(self, suspect: Callable[[], None]) -> None:
        """`suspect` has the server probed, beside the calls."""
        self._suspect = suspect
        self._since: dict[PoolConnectionProxy, float] = {}
        self._looking: asyncio.TimerHandle | None = None

    def lend(self, conn: PoolConnectionProxy) -> None:
        """Note that a caller has a connection from now on."""
        self._since[conn] = asyncio.get_running_loop().time()
        if self._looking is None:
            self._look_later()

    def take_back(self, conn: PoolConnectionProxy) -> None:
        """Note that no caller has it any more."""
        self._since.pop(conn, None)

    def end_waits(self) -> None:
        """End the connections that were lent before the suspicion: the server is away, and their callers hear of it."""
        latest = asyncio.get_running_loop().time() - _LONG_S
        for conn in [one for one, since in self._since.items() if since <= latest]:
            with suppress(asyncpg.InterfaceError):  # it is on its way back
                conn.terminate()

    def _look_later(self) -> None:
        # In an empty context: it is for no single caller.
        self._looking = asyncio.get_running_loop().call_later(_LOOK_S, self._look, context=Context())

    def _look(self) -> None:
        self._looking = None
        if not self._since:
            return
        now = asyncio.get_running_loop().time()
        # Once for each connection or twice: a statement that is slow is no reason to probe for ever.
        if any(_LONG_S <= now - since < _LONG_S + 1.5 * _LOOK_S for since in self._since.values()):
            self._suspect()
        self._look_later()
