"""What keeps the queue in order: leases that ran out, records that are old, tokens that age, sums that must hold."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from syncbeat_server.directory.store.token_moves import forget_moves
from syncbeat_server.push.content.templates import Template
from syncbeat_server.push.store import device_tokens, fanout, lifecycle, queue
from syncbeat_server.push.store.queue_frontier import Frontier
from syncbeat_server.storage import idempotency
from syncbeat_server.storage.postgres.database import Connection, Database
from syncbeat_server.storage.retention import DeletedBatch, RetentionRule

_log = logging.getLogger(__name__)

_BATCH = 1_000
_AUDITED = 2_000
_AUDITED_FOR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """By (app, state) how many wait and for how long the oldest has been due; and what no state accounts for."""

    waiting: dict[tuple[str, str], tuple[int, float]]
    unaccounted: int


async def rescue(database: Database, frontier: Frontier[None]) -> int:
    """Put back what workers left behind: how many."""
    reach, rescued = frontier.begin(), 0
    while True:
        async with database.connection() as conn:
            found = await queue.rescue(conn, _BATCH, frontier.place(reach, None).at)
        rescued += found.back
        if found.all or not found.back:
            break
    frontier.stopped_at(None, None, found.now)
    frontier.end(reach)
    if rescued:
        _log.warning("took over deliveries whose worker was gone", extra={"count": rescued})
    return rescued


def old_rows(keep_days: float) -> list[RetentionRule]:
    """What delivering leaves behind, and tokens that age."""

    async def notifications(conn: Connection, limit: int, since: datetime | None) -> DeletedBatch:
        return await lifecycle.forget_notifications(conn, keep_days, limit, since)

    async def tokens(conn: Connection, limit: int, _: None) -> DeletedBatch:
        aged = await device_tokens.age(conn, limit)
        return DeletedBatch(aged, more=aged == limit, place=None)

    return [
        RetentionRule("dedupe_windows", lifecycle.forget_windows),
        RetentionRule("notifications", notifications),
        RetentionRule("request_records", idempotency.forget_old),
        RetentionRule("registration_tokens", tokens),
        RetentionRule("token_removals", device_tokens.forget_removals),
        RetentionRule("token_moves", forget_moves),
    ]


async def warn_of_lacking(database: Database, app_id: str, templates: Mapping[str, Template]) -> None:
    """Log which of an app's new templates do not fit what is scheduled. That is told as it was when it was accepted.

    Raises:
        DependencyDown: the database does not answer.
    """
    async with database.connection() as conn:
        needs = {name: template.variables for name, template in templates.items()}
        lacking = await fanout.lacking(conn, app_id, needs)
    for name, count in sorted(lacking.items()):
        _log.warning(
            "scheduled notifications do not fit a template: they are told as they were accepted",
            extra={"app_id": app_id, "template": name, "count": count},
        )


async def audit(database: Database) -> QueueFigures:
    """Count what waits, and check that what was accepted is the sum of the states."""
    async with database.connection() as conn:
        waiting = await lifecycle.waiting(conn)
        looked_at, unaccounted = await lifecycle.unaccounted(conn, _AUDITED_FOR, _AUDITED)
    if unaccounted:
        _log.error("accepted deliveries are in no state", extra={"unaccounted": unaccounted, "looked_at": looked_at})
    return QueueFigures(waiting, unaccounted)
