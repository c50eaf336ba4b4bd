"""Keeps the queue in order: rescues expired leases, deletes old rows, ages tokens, audits the sums."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from syncbeat_server.directory.store import dead_token_removal, token_ageing
from syncbeat_server.directory.store.token_move_rows import forget_moves
from syncbeat_server.push.content.templates import Template
from syncbeat_server.push.delivery.scan_frontier import Frontier
from syncbeat_server.push.store import dedupe_windows, fanout, lifecycle, queue, queue_figures
from syncbeat_server.storage import idempotency
from syncbeat_server.storage.postgres.database import Connection, Database
from syncbeat_server.storage.retention import DeletedBatch, RetentionRule

_log = logging.getLogger(__name__)

_BATCH = 1_000
_AUDITED = 2_000
_AUDITED_FOR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """State of the queue: by (app, state) the count and the oldest's age in seconds, and the audit's difference."""

    waiting: dict[tuple[str, str], tuple[int, float]]
    unaccounted: int


async def rescue(database: Database, frontier: Frontier[None]) -> int:
    """Put deliveries whose lease has expired back into the queue, and return their number."""
    depth, rescued = frontier.begin_scan(), 0
    while True:
        async with database.connection() as conn:
            found = await queue.rescue(conn, _BATCH, frontier.position(depth, None).due_at)
        rescued += found.rescued
        if found.is_last or not found.rescued:
            break
    frontier.advance(None, None, found.now)
    frontier.end_scan(depth)
    if rescued:
        _log.warning("took over deliveries whose worker was gone", extra={"count": rescued})
    return rescued


def old_rows(keep_days: float) -> list[RetentionRule]:
    """Return the retention jobs of the push feature; ended notifications are kept for `keep_days`."""

    async def notifications(conn: Connection, limit: int, since: datetime | None) -> DeletedBatch:
        return await lifecycle.forget_notifications(conn, keep_days, limit, since)

    async def tokens(conn: Connection, limit: int, _: None) -> DeletedBatch:
        aged = await token_ageing.age_tokens(conn, limit)
        return DeletedBatch(aged, more=aged == limit, place=None)

    return [
        RetentionRule("dedupe_windows", dedupe_windows.forget),
        RetentionRule("notifications", notifications),
        RetentionRule("request_records", idempotency.forget_old),
        RetentionRule("registration_tokens", tokens),
        RetentionRule("token_removals", dead_token_removal.forget_removals),
        RetentionRule("token_moves", forget_moves),
    ]


async def warn_of_unfit_templates(database: Database, app_id: str, templates: Mapping[str, Template]) -> None:
    """Log the scheduled notifications that do not fit an app's new templates; they keep their texts of acceptance.

    Raises:
        DependencyDown: the database does not answer.
    """
    async with database.connection() as conn:
        needs = {name: template.variables for name, template in templates.items()}
        unfit = await fanout.count_unfit(conn, app_id, needs)
    for name, count in sorted(unfit.items()):
        _log.warning(
            "scheduled notifications do not fit a template: they are told as they were accepted",
            extra={"app_id": app_id, "template": name, "count": count},
        )


async def audit(database: Database) -> QueueFigures:
    """Count what waits, and check that what was accepted recently is the sum of the states."""
    async with database.connection() as conn:
        waiting = await queue_figures.count_waiting(conn)
        looked_at, unaccounted = await queue_figures.count_unaccounted(conn, _AUDITED_FOR, _AUDITED)
    if unaccounted:
        _log.error("accepted deliveries are in no state", extra={"unaccounted": unaccounted, "looked_at": looked_at})
    return QueueFigures(waiting, unaccounted)
