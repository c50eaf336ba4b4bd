"""Wake-ups of several scopes, of which a push service keeps one: each tells of the others that are not shown yet."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import pytest

from syncbeat_server.directory.model import Platform, Registration
from syncbeat_server.push.model import MAX_OTHER_SCOPES, ClaimedDelivery, DeliveryState, DeliveryUpdate, Reason
from syncbeat_server.push.store import queue
from syncbeat_server.storage.postgres.database import Database
from tests.push.test_alerts import alert
from tests.support.build import APP, make_directory, make_worker
from tests.support.doubles import ScriptedProvider
from tests.support.fake_clock import FakeClock
from tests.support.seed import accept, add_device, add_members, claim, mark_seen, message, wake
from tests.support.workers import running, until_shown

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


@pytest.fixture
async def ready(database: Database) -> Database:
    await add_device(database, "ann")
    for scope in ("a", "b", "c"):
        await add_members(database, scope, "ann")
    return database


async def sent(database: Database, state: DeliveryState = DeliveryState.SENT) -> dict[str, Sequence[str]]:
    """Claim what is due, and have it sent: of each scope, of which others it told."""
    claimed = await claim(database, str(uuid.uuid4()))
    async with database.connection() as conn:
        await queue.finish(conn, [DeliveryUpdate(one, state, Reason.NONE) for one in claimed])
    return {one.scope: one.other_scopes for one in claimed}


async def test_collapsed_wake_ups_sent_together_name_each_other(ready: Database) -> None:
    await accept(ready, wake(1, "a"), wake(1, "b"), wake(1, "c"))
    assert await sent(ready) == {"a": ("b", "c"), "b": ("a", "c"), "c": ("a", "b")}


async def test_collapsed_wake_up_names_scopes_not_yet_shown(ready: Database, clock: FakeClock) -> None:
    await accept(ready, wake(5, "a"))
    assert await sent(ready) == {"a": ()}
    await accept(ready, wake(1, "b"))
    assert await sent(ready) == {"b": ("a",)}
    await mark_seen(ready, 4, scope="a")  # not as far
    await mark_seen(ready, 1, scope="b")
    await accept(ready, wake(1, "c"))
    assert await sent(ready) == {"c": ("a",)}
    await mark_seen(ready, 5, scope="a")
    await clock.advance(61)
    await accept(ready, wake(2, "b"))
    assert await sent(ready) == {"b": ("c",)}
    await clock.advance(3700)  # a push service holds none for as long
    await accept(ready, wake(9, "a"))
    assert await sent(ready) == {"a": ()}


async def test_collapsed_wake_up_names_only_scopes_woken_and_accepted(ready: Database) -> None:
    await accept(ready, wake(1, "b"))
    assert await sent(ready, DeliveryState.DEAD) == {"b": ()}
    await accept(ready, alert("shown", "c"), message())
    await sent(ready)
    await accept(ready, wake(1, "a"))
    assert await sent(ready) == {"a": ()}


async def test_collapsed_resend_names_scopes_that_came_between(ready: Database, clock: FakeClock) -> None:
    provider = ScriptedProvider()
    first, second = wake(1, "a"), wake(1, "b")
    async with running(worker := make_worker(ready, clock, provider, poll_s=1.0)):
        for one in (first, second):
            await accept(ready, one)
            worker.wake()
            await until_shown(ready, "ann SENT", of=one)
        await mark_seen(ready, 1, scope="b")
        while len(provider.asked) < 3:
            await clock.advance(1.0)
        assert [(d.scope, d.other_scopes, d.resends) for d in provider.asked] == [
            ("a", (), 0),
            ("b", ("a",), 0),
            ("a", (), 1),
        ]
        await accept(ready, wake(1, "c"))
        while len(provider.asked) < 5:
            await clock.advance(1.0)
    again: ClaimedDelivery = provider.asked[-1]
    assert {again.scope, *again.other_scopes} == {"a", "c"}


async def test_collapsed_wake_up_of_many_scopes_flags_more(database: Database) -> None:
    made = Registration(APP, "ann", "phone", Platform.WEB, "token", "", "")
    await make_directory(database).register(made, "test", by_user=False)
    scopes = [f"scope {n:03}" for n in range(MAX_OTHER_SCOPES + 20)]
    for scope in scopes:
        await add_members(database, scope, "ann")
    await accept(database, *(wake(1, scope) for scope in scopes[:-1]))
    await sent(database)
    await accept(database, wake(1, scopes[-1]))
    (others,) = (await sent(database)).values()
    assert len(others) > MAX_OTHER_SCOPES
