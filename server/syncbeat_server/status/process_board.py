"""Writes the status of this process down for the others every few seconds, and reads theirs (ADR 170).

Redis is its place, and expires it. While this process does not reach Redis it writes a row of PostgreSQL. A reader
looks at both: some of the others may still reach Redis, or no longer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown, SyncbeatError
from syncbeat_server.ops.fault_log import FaultLog
from syncbeat_server.status.asked import asked
from syncbeat_server.status.model import ProcessStatus
from syncbeat_server.status.own_status import OwnStatus
from syncbeat_server.status.records import decode, encode
from syncbeat_server.status.store import process_rows
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.storage.redis.process_records import forget_record, read_records, write_record

_log = logging.getLogger(__name__)

MOST_PROCESSES = 100
"""Of those listed, so that an answer fits a client with gRPC's default limit."""
_MOST_KEPT = 1_000  # in Redis, where each takes 16 KiB at most


@dataclass(frozen=True)
class BoardRule:
    """The seconds between two writes, and those for which a record in Redis and a row of PostgreSQL are believed.

    So that a process which was killed is listed for a quarter of a minute at most while Redis is there, else for half.
    """

    every_s: float = 5.0
    kept_s: float = 15.0
    rows_kept_s: float = 30.0


class ProcessBoard:
    """The statuses of all processes of a deployment, as one of them reads and writes them."""

    def __init__(self, own: OwnStatus, database: Database, bus: RedisBus, clock: Clock, rule: BoardRule) -> None:
        self._own = own
        self._database = database
        self._bus = bus
        self._clock = clock
        self._rule = rule
        self._has_row = False
        self._trouble = FaultLog(_log, "other processes do not hear of this one", "other processes hear of this one")

    async def run(self) -> None:
        """Write the status of this process down at once and every few seconds, for ever."""
        while True:
            try:
                await self.write()
                self._trouble.resolve()
            except Exception as error:  # noqa: BLE001  # the others list it no more, and it serves on
                self._trouble.report(error.message if isinstance(error, SyncbeatError) else type(error).__name__)
            await self._clock.sleep(self._rule.every_s)

    async def write(self) -> None:
        """Write the status of this process down.

        Raises:
            SyncbeatError: neither store takes it.
        """
        own = self._own.read()
        record = encode(own)
        try:
            await write_record(self._bus, own.key, record, self._rule.kept_s, _MOST_KEPT)
        except DependencyDown:
            self._has_row = True  # before it is written: whether a statement that was cut off worked is not known
            async with self._database.connection() as conn:
                await process_rows.write_row(conn, own.key, record)
            return
        if self._has_row:
            await self._delete_row(own.key)

    async def read(self) -> tuple[list[ProcessStatus], int]:
        """Return the statuses of the processes by name, this one's as it is now, and how many more there are."""
        own = self._own.read()
        in_redis, in_rows = await asyncio.gather(
            asked(read_records(self._bus, MOST_PROCESSES)), asked(self._read_rows())
        )
        count, of_redis = (0, list[bytes]()) if in_redis is None else in_redis
        records: list[str | bytes] = [*of_redis, *(in_rows or ())]
        found = {own.key: own}
        for status in map(decode, records):
            if status is not None and status.key != own.key:
                known = found.get(status.key)
                if known is None or known.written_at < status.written_at:
                    found[status.key] = status
        listed = sorted(found.values(), key=lambda one: (one.key != own.key, one.name, one.started_at))
        kept = sorted(listed[:MOST_PROCESSES], key=lambda one: (one.name, one.started_at))
        return kept, max(count, len(found)) - len(kept)

    async def withdraw(self) -> None:
        """Take the status of this process back, which ends; what cannot be taken back expires."""
        await asked(forget_record(self._bus, self._own.key))
        if self._has_row:
            await asked(self._delete_row(self._own.key))

    async def _read_rows(self) -> Sequence[str]:
        async with self._database.connection() as conn:
            return await process_rows.read_rows(conn, self._rule.rows_kept_s, MOST_PROCESSES)

    async def _delete_row(self, key: str) -> None:
        async with self._database.connection() as conn:
            await process_rows.delete_row(conn, key)
        self._has_row = False
