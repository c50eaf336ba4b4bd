"""What finds no room is told, or found by looking: nothing is cut off in silence."""

from __future__ import annotations

import pytest

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.hints import cursor_recorder
from syncbeat_server.sync.model import Cursor
from syncbeat_server.sync.streams import head_sweep
from syncbeat_server.sync.streams.subscription import Subscription
from tests.fakes import FakeClock
from tests.storage.house import PHONE, House
from tests.storage.stage import add_members, couple

pytestmark = pytest.mark.usefixtures("database", "clock")


@pytest.fixture
async def house(database: Database, clock: FakeClock) -> House:
    await couple(database)
    return House(database, clock)


async def test_a_sweep_that_cannot_tell_all_who_joined_lets_every_stream_look(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_sweep, "_MAX_JOINERS", 2)
    first = Subscription(PHONE, all_scopes=False)
    house.hub.add(first)
    for user in ("ann", "bob", "carl"):  # ann joined first, and two are told of
        await house.clock.advance(0.1)
        await add_members(house.database, "chat", user)
    first.members_changed = False
    await house.sweep.sweep(5.0)
    assert first.members_changed


async def test_cursors_that_find_no_room_to_be_recorded_are_told_in_the_log_once(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cursor_recorder, "_MAX_PENDING", 2)
    for number in range(5):
        house.cursors.record_shown(PHONE, [Cursor(f"scope {number}", "e", 1)])
    assert caplog.text.count("too many cursors wait") == 1
    await house.cursors.flush()
    house.cursors.record_shown(PHONE, [Cursor("couple", "e", 1)])
    assert caplog.text.count("too many cursors wait") == 1
