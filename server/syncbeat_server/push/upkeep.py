"""What keeps the queue in order: leases that ran out, records that are old, tokens that age, sums that must hold."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta

from syncbeat_server.clock import Clock
from syncbeat_server.directory.store import forget_moves
from syncbeat_server.push import followup, queue, registrations
from syncbeat_server.storage import idempotency
from syncbeat_server.storage.postgres import Database

_log = logging.getLogger(__name__)

_BATCH = 1_000
_AUDITED = 2_000
_AUDITED_FOR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """By (app, state) how many wait and for how long the oldest has been due; and what no state accounts for."""

    waiting: dict[tuple[str, str], tuple[int, float]]
    unaccounted: int


async def tidy(database: Database, keep_days: float) -> int:
    """Put back what workers left behind: how many. And delete what is old, a batch of each kind."""
    async with database.connection() as conn:
        rescued = await queue.rescue(conn, _BATCH)
        await followup.forget_windows(conn, _BATCH)
        await followup.forget_notifications(conn, keep_days, _BATCH)
        await idempotency.forget_old(conn, _BATCH)
        await registrations.age(conn, _BATCH)
        await registrations.forget_removals(conn, _BATCH)
        await forget_moves(conn, _BATCH)
    if rescued:
        _log.warning("took over deliveries whose worker was gone", extra={"count": rescued})
    return rescued


async def audit(database: Database, clock: Clock) -> QueueFigures:
    """Count what waits, and check that what was accepted is the sum of the states."""
    async with database.connection() as conn:
        waiting = await followup.waiting(conn)
        looked_at, unaccounted = await followup.unaccounted(conn, clock.now() - _AUDITED_FOR, _AUDITED)
    if unaccounted:
        _log.error("accepted deliveries are in no state", extra={"unaccounted": unaccounted, "looked_at": looked_at})
    return QueueFigures(waiting, unaccounted)
