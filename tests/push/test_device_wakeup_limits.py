"""Divides a device's wake-ups: nobody spends those of other scopes and of other users."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from syncbeat_server.directory.model import Platform, Registration
from syncbeat_server.push.model import NewNotification
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import NewChange
from tests.events.test_publish import call
from tests.push.test_held_deliveries import nothing_pending
from tests.support.build import APP, make_directory, make_publisher, make_worker
from tests.support.doubles import ScriptedProvider
from tests.support.fake_clock import FakeClock
from tests.support.seed import accept, add_members, rows_of, shown, until, wake
from tests.support.workers import running, until_shown

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


@pytest.fixture
async def ready(database: Database) -> Database:
    """Ann has an Android phone and an iPhone, and is in two chats with eve."""
    for device, platform in (("android", Platform.ANDROID), ("iphone", Platform.IOS)):
        made = Registration(APP, "ann", device, platform, f"token-{device}", "", "")
        await make_directory(database).register(made, "test", by_user=False)
    for scope in ("chat", "other"):
        await add_members(database, scope, "ann", "eve")
    return database


def by(caller: str, sequence: int, scope: str = "chat") -> NewNotification:
    return replace(wake(sequence, scope, type=f"type {sequence}", window=0.0), caller=caller)


async def spent(database: Database) -> Counter[tuple[str, str]]:
    """Count the wake-ups of each scope that were sent to each device."""
    rows = await rows_of(database, "SELECT device_id, scope FROM deliveries WHERE state = 'SENT'")
    return Counter((device, scope) for device, scope in rows)


async def test_wakeup_share_of_one_writer_is_half(ready: Database, clock: FakeClock) -> None:
    publisher = make_publisher(ready, clock)
    for number in range(50):
        change = NewChange("chat", f"k{number}", "{}")
        await publisher.publish(call(change, user_id="eve", type=f"type {number}", window=0.0))
    eve_too = [by("user:eve", 200 + n, "other") for n in range(5)]
    await accept(ready, *eve_too)
    async with running(worker := make_worker(ready, clock, ScriptedProvider(), poll_s=60.0)):
        await until(partial(nothing_pending, ready))
        assert await spent(ready) == {("android", "chat"): 10, ("iphone", "chat"): 2}, "not by another scope either"
        for sender in (by("user:ann", 301, "other"), by("service:backend", 302), by("service:backend", 303, "other")):
            await accept(ready, sender)
            worker.wake()
            await until(partial(nothing_pending, ready))
            assert "ann SENT" in await shown(ready, sender)
    callers = await rows_of(ready, "SELECT DISTINCT caller FROM notifications ORDER BY 1")
    assert callers == [("service:backend",), ("user:ann",), ("user:eve",)]


async def test_wakeup_share_exhausted_is_sent_when_it_has_refilled(ready: Database, clock: FakeClock) -> None:
    for number in range(1, 12):
        await accept(ready, by("user:eve", number))
    last = by("user:eve", 12)
    await accept(ready, last)
    async with running(make_worker(ready, clock, ScriptedProvider(), poll_s=60.0)):
        await until(partial(nothing_pending, ready))
        assert (await shown(ready, last))[0] == "ann HELD WAKE_BUDGET"
    await clock.advance(1190)
    async with running(make_worker(ready, clock, ScriptedProvider(), poll_s=5.0)):
        await until_shown(ready, "ann SENT", "ann SENT", of=last, moving=clock)
