"""Deletes old rows in batches, alternating between the kinds, until none are left (ADR 77).

Each batch is a transaction of its own, followed by a pause as long as it took, so that catching up takes half of one
connection at most and yields when the database is slow. One process of a database does so at a time.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Connection, Database

_log = logging.getLogger(__name__)

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
"""A time earlier than that of any row."""

_EVERY_S = 60.0
_BATCH, _LEAST_BATCH = 1_000, 10
# The bounds of a batch's duration: its size halves above the first, and doubles below the second. PostgreSQL ends a
# statement after ten seconds.
_LONG_S, _SHORT_S = 1.0, 0.25
_LEAST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 2.0
# The key of the advisory lock: "sb" and "old" in ASCII.
_LOCK = (0x7362, 0x6F6C64)


class DeletedBatch(NamedTuple):
    """Result of a batch: the number of rows deleted, True if there may be more, and the place to continue from."""

    gone: int
    more: bool
    place: Any


DeleteBatch = Callable[[Connection, int, Any], Awaitable[DeletedBatch]]
"""Deletes about so many old rows from a place on; None is the beginning.

A batch starts where the previous one ended: deleted rows stay in the index until they are vacuumed, which any open
snapshot prevents, and walking past them each time would make each batch slower than the last.
"""


@dataclass(frozen=True)
class RetentionRule:
    """Deletion of one kind of old rows; they are looked for every `every_s` seconds."""

    name: str
    forget: DeleteBatch
    every_s: float = _EVERY_S


class Retention:
    """Deletes old rows of all kinds, so that no table grows for ever."""

    def __init__(
        self,
        database: Database,
        rules: Sequence[RetentionRule],
        clock: Clock,
        on_deleted: Callable[[str, int], None] = lambda name, count: None,
    ) -> None:
        """`on_deleted(name, count)` is called after each batch, for the metrics."""
        self._database = database
        self._rules = rules
        self._clock = clock
        self._on_deleted = on_deleted
        self._sizes = {rule.name: _BATCH for rule in rules}
        self._due_at = {rule.name: 0.0 for rule in rules}
        self._stopped = False

    def stop(self) -> None:
        """Start no more batches."""
        self._stopped = True

    async def run(self) -> None:
        """Delete old rows until stopped, looking for them each minute."""
        while not self._stopped:
            try:
                await self.sweep()
            except Exception:  # noqa: BLE001  # a bug of one rule must not end the process, nor the other rules
                _log.exception("old rows could not be deleted")
            await self._clock.sleep(_EVERY_S)

    async def sweep(self) -> dict[str, int]:
        """Delete all rows that are old now, by each rule that is due; return how many by rule."""
        now = self._clock.monotonic()
        waiting = deque[tuple[RetentionRule, Any]](
            (rule, None) for rule in self._rules if self._due_at[rule.name] <= now
        )
        self._due_at |= {rule.name: now + rule.every_s for rule, _ in waiting}
        gone = {rule.name: 0 for rule, _ in waiting}
        while waiting and not self._stopped:
            rule, place = waiting.popleft()
            began = self._clock.monotonic()
            try:
                batch = await self._batch(rule, place)
            except SyncbeatError as error:
                # A smaller batch next time: it may have been too much for one statement.
                self._sizes[rule.name] = max(_LEAST_BATCH, self._sizes[rule.name] // 4)
                _log.warning("cannot delete old rows now", extra={"rows": rule.name, "reason": error.reason})
                continue
            if batch is None:
                break  # another process holds the lock
            took_s = self._clock.monotonic() - began
            self._resize(rule.name, took_s)
            gone[rule.name] += batch.gone
            if batch.gone:
                self._on_deleted(rule.name, batch.gone)
            if batch.more:
                waiting.append((rule, batch.place))
            if waiting:
                await self._clock.sleep(min(_LONGEST_PAUSE_S, max(_LEAST_PAUSE_S, took_s)))
        return gone

    async def _batch(self, rule: RetentionRule, place: Any) -> DeletedBatch | None:
        async with self._database.transaction() as conn:
            if not await conn.fetchval("SELECT pg_try_advisory_xact_lock($1, $2)", *_LOCK):
                return None
            return await rule.forget(conn, self._sizes[rule.name], place)

    def _resize(self, name: str, took_s: float) -> None:
        if took_s > _LONG_S:
            self._sizes[name] = max(_LEAST_BATCH, self._sizes[name] // 2)
        elif took_s < _SHORT_S:
            self._sizes[name] = min(_BATCH, self._sizes[name] * 2)


def delete_oldest_sql(table: str, key: str, at: str, kept: str, also: str = "true") -> str:
    """Return the statement of `delete_oldest`: deletes a table's rows whose time `at` is longer ago than `kept`.

    Deletes by the primary key and not by the place in the table (`ctid`), which another version of a row may have
    taken by then.
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


async def delete_oldest(conn: Connection, statement: str, limit: int, since: date | None) -> DeletedBatch:
    """Delete up to `limit` old rows, from the time `since` on."""
    (row,) = await conn.fetch(statement, limit, since or BEGINNING)
    return DeletedBatch(row["gone"], row["found"] == limit and row["gone"] > 0, row["last"])
