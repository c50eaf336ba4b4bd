"""Tests that nobody waits for a row lock taken after the statement that locks in order: that would be a deadlock."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from syncbeat_server.directory.model import Member, MemberRole
from syncbeat_server.push import accept as push
from syncbeat_server.push.model import NewNotification, Target
from syncbeat_server.push.store import dedupe_windows, lifecycle
from syncbeat_server.storage.postgres.database import Connection, Database
from tests.push.test_alerts import alert
from tests.support.build import APP, make_directory
from tests.support.fake_clock import FakeClock
from tests.support.seed import accept, add_device, add_members, claim, message, rows_of, until_waiting, value_of

pytestmark = pytest.mark.store

LOCK_WINDOW = "SELECT FROM dedupe_windows WHERE user_id = $1 FOR UPDATE"
ONCE = {"dedupe_key": "once", "dedupe_window_s": 60.0}
ALSO = {
    "alert": lambda: alert("later", "couple"),
    "message beside an alert": lambda: message(Target(scope="couple"), **ONCE),
}


@pytest.mark.parametrize("kind", ALSO)
async def test_dedupe_window_lock_skips_those_of_a_member_who_joined_after_the_lock(
    database: Database, clock: FakeClock, kind: str
) -> None:
    for user in ("ann", "bob"):
        await add_device(database, user)
    await add_members(database, "couple", "ann", "bob")
    await accept(database, alert("first", "couple"), message(Target(scope="couple"), **ONCE))
    await make_directory(database).remove_members(APP, "couple", ["bob"])
    late: list[NewNotification] = [alert("later", "couple"), ALSO[kind]()]

    async def accept_late() -> None:
        async with database.transaction() as conn:
            await push.accept(conn, late)

    async with contextlib.AsyncExitStack() as first, database.transaction() as second:
        held = await first.enter_async_context(database.transaction())
        await held.execute(LOCK_WINDOW, "ann")
        accepting = asyncio.create_task(accept_late())
        await until_waiting(database)
        await make_directory(database).add_members(APP, "couple", [Member("couple", "bob", MemberRole.WRITER)])
        await second.execute(LOCK_WINDOW, "bob")
        await first.aclose()
        await accepting  # though the second one still holds Bob's windows
    query = "SELECT array_agg(DISTINCT user_id) FROM deliveries WHERE notification_id = ANY($1::uuid[])"
    assert await value_of(database, query, [one.notification_id for one in late]) == ["ann"]


async def test_dedupe_window_lock_skips_one_that_came_after_claimed_alerts_locked_theirs(
    database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_device(database, "ann")
    for scope in ("couple", "chat"):
        await add_members(database, scope, "ann")
    await accept(database, alert("first", "couple", "chat"))
    await accept(database, alert("trails", "couple", "chat"))
    await database_execute(database, "DELETE FROM dedupe_windows WHERE scope = 'chat'")
    close = dedupe_windows.close_alerts

    async def close_later(conn: Connection, *arguments: object) -> None:
        # Meanwhile another one opens the window, and somebody else holds it.
        await accept(database, alert("fresh", "chat"))
        async with database.transaction() as other:
            await other.execute("SELECT FROM dedupe_windows WHERE scope = 'chat' FOR UPDATE")
            await close(conn, *arguments)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(dedupe_windows, "close_alerts", close_later)
    await clock.advance(61.0)
    assert [one.content.title for one in await claim(database, "6f1d3c5e-8f0a-4d43-b4a6-000000000001")] != []
    windows = "SELECT scope, trailed_by IS NULL FROM dedupe_windows ORDER BY scope"
    assert await rows_of(database, windows) == [("chat", True), ("couple", True)]


async def test_retention_skips_a_locked_delivery(database: Database, clock: FakeClock) -> None:
    await add_device(database, "ann")
    await add_device(database, "ann", "tablet")
    sent = message(Target(user_id="ann"))
    await accept(database, sent)
    await database_execute(database, "UPDATE deliveries SET state = 'EXPIRED'")
    await database_execute(database, "UPDATE notifications SET expires_at = created_at")
    async with database.transaction() as holding, database.connection() as conn:
        await holding.execute("SELECT FROM deliveries WHERE device_id = 'phone' FOR UPDATE")
        batch = await lifecycle.forget_notifications(conn, -1.0, 100)
        assert (batch.gone, batch.more) == (1, True)
    async with database.connection() as conn:
        assert (await lifecycle.forget_notifications(conn, -1.0, 100)).gone == 2, "the other one, and the notification"


async def database_execute(database: Database, statement: str) -> None:
    async with database.connection() as conn:
        await conn.execute(statement)
