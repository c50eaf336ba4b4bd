"""Deletes what is old: batch after batch, kind after kind in turns, for as long as there is any (ADR 77).

Each batch is a transaction of its own, and is followed by a pause as long as it took, so that catching up takes half of
one connection at most and gives way when the database is slow. One process of a database does it at a time.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Connection, Database

_log = logging.getLogger(__name__)

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
"""Earlier than any row."""

_EVERY_S = 60.0
_BATCH, _LEAST_BATCH = 1_000, 10
# A batch is to take so long: it halves above, and doubles well below. A statement is ended after ten seconds.
_LONG_S, _SHORT_S = 1.0, 0.25
_LEAST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 2.0
# What `pg_try_advisory_xact_lock` is asked for: two numbers of ours, "sb" and "old" in ASCII.
_LOCK = (0x7362, 0x6F6C64)


class Batch(NamedTuple):
    """What came of a batch: how many rows went, whether there may be more, and from which place on."""

    gone: int
    more: bool
    place: Any


Forget = Callable[[Connection, int, Any], Awaitable[Batch]]
"""Deletes about so many old rows from a place on; None is the beginning.

A batch begins where the one before it ended: what was deleted stays in the index until it is vacuumed, which a snapshot
that somebody holds prevents, and to walk past it each time would make each batch slower than the last one.
"""


@dataclass(frozen=True)
class OldRows:
    """Rows of one kind that get old, and how they are deleted; `every_s`: how often they are looked for."""

    name: str
    forget: Forget
    every_s: float = _EVERY_S


class Retention:
    """Keeps tables from growing for ever."""

    def __init__(
        self,
        database: Database,
        kinds: Sequence[OldRows],
        clock: Clock,
        forgot: Callable[[str, int], None] = lambda name, count: None,
    ) -> None:
        """`forgot(name, count)` is told of each batch (the metrics hook)."""
        self._database = database
        self._kinds = kinds
        self._clock = clock
        self._forgot = forgot
        self._sizes = {kind.name: _BATCH for kind in kinds}
        self._due_at = {kind.name: 0.0 for kind in kinds}
        self._stopped = False

    def stop(self) -> None:
        """Begin no more batches."""
        self._stopped = True

    async def run(self) -> None:
        """Delete what is old until stopped, and look again each minute."""
        while not self._stopped:
            try:
                await self.sweep()
            except Exception:  # noqa: BLE001  # a bug of one kind must not end the process, nor keep the others for ever
                _log.exception("old rows could not be deleted")
            await self._clock.sleep(_EVERY_S)

    async def sweep(self) -> dict[str, int]:
        """Delete all that is old now, of each kind whose time it is; how many of each."""
        now = self._clock.monotonic()
        waiting = deque[tuple[OldRows, Any]]((kind, None) for kind in self._kinds if self._due_at[kind.name] <= now)
        self._due_at |= {kind.name: now + kind.every_s for kind, _ in waiting}
        gone = {kind.name: 0 for kind, _ in waiting}
        while waiting and not self._stopped:
            kind, place = waiting.popleft()
            began = self._clock.monotonic()
            try:
                batch = await self._batch(kind, place)
            except SyncbeatError as error:
                # The next time with less at once: it may have been too much for one statement.
                self._sizes[kind.name] = max(_LEAST_BATCH, self._sizes[kind.name] // 4)
                _log.warning("cannot delete old rows now", extra={"rows": kind.name, "reason": error.reason})
                continue
            if batch is None:
                break  # another process is at it
            took_s = self._clock.monotonic() - began
            self._resize(kind.name, took_s)
            gone[kind.name] += batch.gone
            if batch.gone:
                self._forgot(kind.name, batch.gone)
            if batch.more:
                waiting.append((kind, batch.place))
            if waiting:
                await self._clock.sleep(min(_LONGEST_PAUSE_S, max(_LEAST_PAUSE_S, took_s)))
        return gone

    async def _batch(self, kind: OldRows, place: Any) -> Batch | None:
        async with self._database.transaction() as conn:
            if not await conn.fetchval("SELECT pg_try_advisory_xact_lock($1, $2)", *_LOCK):
                return None
            return await kind.forget(conn, self._sizes[kind.name], place)

    def _resize(self, name: str, took_s: float) -> None:
        if took_s > _LONG_S:
            self._sizes[name] = max(_LEAST_BATCH, self._sizes[name] // 2)
        elif took_s < _SHORT_S:
            self._sizes[name] = min(_BATCH, self._sizes[name] * 2)


def oldest(table: str, key: str, at: str, kept: str, also: str = "true") -> str:
    """The statement for `forget_oldest`: rows of a table by its primary key, whose time `at` is an interval ago.

    By the key and not by the place in the table (`ctid`), which another version of a row may have taken by then.
    """
    columns = key.split(", ")
    mine, theirs = (", ".join(f"{alias}.{column}" for column in columns) for alias in ("t", "old"))
    return f"""
        WITH old AS MATERIALIZED (
            SELECT {key}, {at} AS aged FROM {table}
            WHERE {at} >= $2 AND {at} < syncbeat_now() - interval '{kept}' AND {also}
            ORDER BY {at} LIMIT $1 FOR UPDATE SKIP LOCKED),
        gone AS (DELETE FROM {table} t USING old WHERE ({mine}) = ({theirs}) RETURNING 1)
        SELECT (SELECT count(*) FROM gone) AS gone, count(*) AS found, max(aged) AS last FROM old"""  # noqa: S608  # names


async def forget_oldest(conn: Connection, statement: str, limit: int, since: datetime | None) -> Batch:
    """Delete up to `limit` rows that are old, from a time on."""
    (row,) = await conn.fetch(statement, limit, since or BEGINNING)
    return Batch(row["gone"], row["found"] == limit and row["gone"] > 0, row["last"])
