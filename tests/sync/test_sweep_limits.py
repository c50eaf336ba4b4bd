"""Tests the limits of sweeps and recorders: what finds no room is told, or found by looking."""

from __future__ import annotations

import pytest

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import Cursor, SweepRule
from syncbeat_server.sync.streams.subscription import Subscription
from tests.support.build import PHONE, SyncFeature
from tests.support.fake_clock import FakeClock
from tests.support.seed import add_members, couple

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


@pytest.fixture
async def sync(database: Database, clock: FakeClock) -> SyncFeature:
    await couple(database)
    return SyncFeature(database, clock)


async def test_head_sweep_overflow_makes_every_stream_look(sync: SyncFeature) -> None:
    sync = sync.under(sweeps=SweepRule(max_rows=2))
    first = Subscription(PHONE, all_scopes=False)
    sync.hub.add(first)
    for user in ("ann", "bob", "carl"):  # ann joined first, and two are told of
        await sync.clock.advance(0.1)
        await add_members(sync.database, "chat", user)
    first.members_changed = False
    await sync.head_sweep.sweep(5.0)
    assert first.members_changed


async def test_cursor_recorder_overflow_is_logged_once(sync: SyncFeature, caplog: pytest.LogCaptureFixture) -> None:
    sync = sync.under(max_pending_cursors=2)
    for number in range(5):
        sync.cursors.record_shown(PHONE, [Cursor(f"scope {number}", "e", 1)])
    assert caplog.text.count("too many cursors wait") == 1
    await sync.cursors.flush()
    sync.cursors.record_shown(PHONE, [Cursor("couple", "e", 1)])
    assert caplog.text.count("too many cursors wait") == 1
