"""Sends and receives wake-ups of workers by NOTIFY and LISTEN, for times when Redis is away.

LISTEN needs a session of its own, which no transaction pooler gives. Notifications are sent by themselves after the
commit: inside the transaction they would cost a third of its throughput.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import asyncpg

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.hosts import Hosts
from syncbeat_server.storage.postgres.statement_comments import CommentedConnection

_log = logging.getLogger(__name__)

_CHANNEL = "syncbeat_deliveries"
_CONNECT_TIMEOUT_S = 5.0
_RECONNECT_S = 1.0
_SELF_TEST_S = 5.0
_LOOK_S = 15.0
_AT_MOST_EVERY_S = 0.02


class PgNotifier:
    """Sends wake-ups, many as one notification."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._wanted = asyncio.Event()

    def notify(self) -> None:
        """Send a wake-up soon, without waiting for it."""
        self._wanted.set()

    async def run(self) -> None:
        """Send the wake-ups asked for, for ever. A wake-up may be lost: workers also poll."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                async with self._database.connection() as conn:
                    await conn.execute("SELECT pg_notify($1, '')", _CHANNEL)
            except SyncbeatError as error:
                _log.warning("cannot notify now", extra={"reason": error.reason})
            await self._clock.sleep(_AT_MOST_EVERY_S)


async def listen(url: str, on_wakeup: Callable[[], None], clock: Clock) -> None:
    """Call `on_wakeup` for each wake-up, for ever; returns if the address leads to a transaction pooler."""
    while True:
        try:
            if not await _listen(url, on_wakeup, clock):
                _log.warning("DATABASE_SESSION_URL leads to a pooler: LISTEN is off")
                return
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            _log.warning("cannot listen to the database now", extra={"error": type(error).__name__})
        await clock.sleep(_RECONNECT_S)


async def _listen(url: str, on_wakeup: Callable[[], None], clock: Clock) -> bool:
    """Listen until the connection is lost; return False when notifications do not arrive through it."""
    arrived, lost = asyncio.Event(), asyncio.Event()

    def on_notification(*_: object) -> None:
        arrived.set()
        on_wakeup()

    conn = await Hosts(url).connect(
        url,
        timeout=_CONNECT_TIMEOUT_S,
        server_settings={"application_name": "syncbeat listen"},
        connection_class=CommentedConnection,
    )
    try:
        conn.add_termination_listener(lambda _: lost.set())
        await conn.add_listener(_CHANNEL, on_notification)
        await conn.execute(f"NOTIFY {_CHANNEL}")
        try:
            async with asyncio.timeout(_SELF_TEST_S):
                await arrived.wait()
        except TimeoutError:
            return False
        while not lost.is_set():
            await clock.sleep(_LOOK_S)
            await conn.execute("SELECT 1", timeout=_CONNECT_TIMEOUT_S)
        return True
    finally:
        await conn.close(timeout=_CONNECT_TIMEOUT_S)
