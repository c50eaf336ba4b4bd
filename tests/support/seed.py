"""Sets up users, devices and notifications for tests, and looks at what came of them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg

from syncbeat_server.directory.model import Member, MemberRole, Platform, Registration
from syncbeat_server.push import accept as push
from syncbeat_server.push.model import (
    Acceptance,
    ClaimedDelivery,
    Content,
    Delivery,
    DeliveryFilter,
    Kind,
    NewNotification,
    Target,
)
from syncbeat_server.push.store import notifications as notifications_store
from syncbeat_server.push.store import queue
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, make_directory
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import FakeClock, wait_until

EPOCH = "epoch-1"
_MOMENT = datetime(2030, 1, 1, tzinfo=UTC)
_numbers = itertools.count(1)


async def add_device(database: Database, user_id: str, device_id: str = "phone", token: str | None = None) -> None:
    """Register a device, with a token of its own unless another is given ('' for none)."""
    known = f"token-of-{user_id}-{device_id}" if token is None else token
    registration = Registration(APP, user_id, device_id, Platform.ANDROID, known, "", "")
    await make_directory(database).register(registration, "test", by_user=False)


async def add_members(database: Database, scope: str, *user_ids: str, role: MemberRole = MemberRole.WRITER) -> None:
    await make_directory(database).add_members(APP, scope, [Member(scope, user_id, role) for user_id in user_ids])


async def couple(database: Database, scope: str = "couple") -> None:
    """A scope of two users with a phone each."""
    await add_device(database, "ann")
    await add_device(database, "bob")
    await add_members(database, scope, "ann", "bob")


def message(*targets: Target, **fields: Any) -> NewNotification:
    """A message to show; to ann unless targets are given."""
    return NewNotification(
        app_id=fields.pop("app_id", APP),
        notification_id=push.new_notification_id(_MOMENT),
        kind=Kind.MESSAGE,
        caller="service:test",
        content=fields.pop("content", None) or Content(title=f"message {next(_numbers)}"),
        targets=targets or (Target(user_id="ann"),),
        **fields,
    )


def wake(sequence: int, scope: str = "couple", **fields: Any) -> NewNotification:
    """A wake-up of a scope's members for a change; with a window of a minute unless another is given."""
    kind = fields.pop("type", "news")
    excluded = {name: fields.pop(name) for name in ("exclude_user_id", "exclude_device_id") if name in fields}
    return NewNotification(
        app_id=APP,
        notification_id=push.new_notification_id(_MOMENT),
        kind=Kind.SYNC,
        caller="service:test",
        content=Content(),
        targets=(Target(scope=scope, epoch=fields.pop("epoch", EPOCH), sequence=sequence, **excluded),),
        type=kind,
        dedupe_key=f"sync:{kind}",
        dedupe_window_s=fields.pop("window", 60.0),
        **fields,
    )


async def accept(database: Database, *notifications: NewNotification) -> list[Acceptance]:
    """Accept them as one batch. The scopes of wake-ups are in their epoch, and at least as far as devices may show."""
    async with database.transaction() as conn:
        wanted = [target for one in notifications for target in one.targets if target.epoch]
        for target in sorted(wanted, key=lambda target: target.scope or ""):
            await conn.execute(
                "UPDATE scopes SET epoch = $2, head = greatest(head, $3, 100) WHERE scope = $1",
                *(target.scope, target.epoch, target.sequence),
            )
        return await push.accept(conn, notifications)


async def deliveries(database: Database, *notifications: NewNotification) -> list[Delivery]:
    """Every delivery, or those of these notifications in their order."""
    async with database.connection() as conn:
        found = await notifications_store.list_deliveries(conn, APP, DeliveryFilter(), None, 10_000)
    if not notifications:
        return found
    return [d for n in notifications for d in found if d.notification_id == n.notification_id]


async def shown(database: Database, *notifications: NewNotification) -> list[str]:
    """'user STATE REASON' of the deliveries, sorted within each notification."""
    lines: list[str] = []
    for notification in notifications:
        lines += sorted(f"{d.user_id} {d.state} {d.reason}".strip() for d in await deliveries(database, notification))
    return lines


async def states(database: Database) -> Counter[str]:
    """Return how many deliveries are in each state."""
    return Counter(delivery.state.value for delivery in await deliveries(database))


async def claim(database: Database, lease_token: str, limit: int = 100, lease_s: float = 30.0) -> list[ClaimedDelivery]:
    """Claim as a worker does."""
    async with database.transaction() as conn:
        found = await queue.claim(conn, lease_token, lease_s, {APP: limit})
        if found.trailing:
            await push.close_windows(conn, lease_token, found.trailing)
        return await queue.read_claimed(conn, lease_token, found.keys)


async def mark_seen(
    database: Database, sequence: int, user_id: str = "ann", scope: str = "couple", epoch: str = EPOCH
) -> None:
    """A phone has shown everything up to a cursor."""
    async with database.connection() as conn:
        await conn.execute(
            """INSERT INTO device_cursors (app_id, user_id, device_id, scope, epoch, sequence, seen_at)
               VALUES ($1, $2, 'phone', $3, $4, $5, syncbeat_now())
               ON CONFLICT (app_id, user_id, device_id, scope)
               DO UPDATE SET epoch = excluded.epoch, sequence = excluded.sequence""",
            APP,
            user_id,
            scope,
            epoch,
            sequence,
        )


async def value_of(database: Database, query: str, *arguments: object) -> Any:
    """One value, as the service's login."""
    async with database.connection() as conn:
        return await conn.fetchval(query, *arguments)


async def rows_of(database: Database, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    """All rows, as the service's login."""
    async with database.connection() as conn:
        return [tuple(row.values()) for row in await conn.fetch(query, *arguments)]


async def cut_connections(urls: DatabaseUrls) -> int:
    """End every connection of the service to its database, as a failover does; how many."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        ended: Sequence[Any] = await conn.fetch(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = $1 AND usename = 'syncbeat_app' AND pid <> pg_backend_pid()""",
            urls.name,
        )
        return len(ended)
    finally:
        await conn.close()


async def until(holds: Callable[[], Awaitable[object]], what: str = "", moving: FakeClock | None = None) -> None:
    """Wait until a question to the database is answered by yes, while the clock moves if it is given."""

    async def moved() -> object:
        if moving is not None:
            await moving.advance(1.0)
        return await holds()

    # The way may be long: each second that the clock moves costs workers some statements.
    await wait_until(moved, timeout_s=100.0, what=what)


async def known_to_answer(database: Database) -> None:
    """All devices have answered nearly all of their wake-ups."""
    async with database.connection() as conn:
        await conn.execute("UPDATE devices SET reach_answered = 99, reach_missed = 1, reach_at = syncbeat_now()")


async def until_waiting(database: Database) -> None:
    """Until a transaction waits for another one's lock."""

    async def waits() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return bool(await value_of(database, query))

    await until(waits, "a transaction that waits")
