"""Shows alerts for changes: one a device and call, the first and the last of a window, without spending wake-ups."""

from __future__ import annotations

import itertools
import random
import uuid
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from syncbeat_server.directory.model import Platform, Preferences, QuietHours, Registration
from syncbeat_server.push import accept as push
from syncbeat_server.push.model import Content, NewNotification, Target
from syncbeat_server.push.store import fanout, lifecycle, queue
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, make_directory, make_worker
from tests.support.doubles import ScriptedProvider, Streams
from tests.support.fake_clock import FakeClock
from tests.support.seed import (
    EPOCH,
    accept,
    add_device,
    add_members,
    deliveries,
    mark_seen,
    rows_of,
    shown,
    until,
    value_of,
    wake,
)
from tests.support.workers import running, until_shown

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

SCOPES = ("a", "b", "c")
_sequences = itertools.count(1)


def alert(text: str, *scopes: str, **fields: Any) -> NewNotification:
    """Make the notification of a trigger that shows something; of the scope 'a' unless others are given."""
    sequence = fields.pop("sequence", None) or next(_sequences)
    targets = tuple(Target(scope=scope, epoch=EPOCH, sequence=sequence) for scope in scopes or ("a",))
    content = Content(**{"title": text, **fields.pop("content", {})})
    made = replace(wake(sequence, **fields), targets=targets, content=content, patient=True)
    return made if made.dedupe_window_s else replace(made, dedupe_key="")


async def phone(database: Database, platform: Platform = Platform.ANDROID) -> None:
    made = Registration(APP, "ann", "phone", platform, "token-of-ann", "", "")
    await make_directory(database).register(made, "test", by_user=False)
    for scope in SCOPES:
        await add_members(database, scope, "ann")


def texts(provider: ScriptedProvider) -> list[str]:
    return [message.content.title for message in provider.messages]


async def accept_in_turn(database: Database, *alerts: NewNotification) -> None:
    for one in alerts:
        await accept(database, one)


@pytest.mark.parametrize("content", [{}, {"title": "", "body": "b"}, {"title": "", "badge": 3}])
async def test_alert_costs_no_wake_up_budget(database: Database, clock: FakeClock, content: dict[str, Any]) -> None:
    await phone(database, Platform.IOS)
    sent = [alert("t", window=0.0, content=content) for _ in range(6)]
    await accept(database, *sent)
    async with running(make_worker(database, clock, ScriptedProvider(), poll_s=60.0)):
        for one in sent:
            await until_shown(database, "ann SENT", of=one)
    assert await value_of(database, "SELECT count(*) FROM wake_budgets") == 0


async def test_alert_held_through_quiet_hours_shows_the_latest_text(database: Database, clock: FakeClock) -> None:
    await phone(database)
    await make_directory(database).set_preferences(
        APP, "ann", Preferences(quiet_hours=QuietHours(12 * 60, 15 * 60)), by_user=False
    )
    provider = ScriptedProvider()
    sent = [alert(f"text {n}") for n in range(5)]
    other, each = alert("another type", type="other"), [alert(f"each {n}", window=0.0, type="each") for n in range(2)]
    async with running(worker := make_worker(database, clock, provider, poll_s=5.0)):
        await accept(database, other, *each)
        for one in sent:
            await accept(database, one)
            worker.wake()
            await clock.advance(61)
            await until_shown(database, "ann HELD QUIET_HOURS", of=one, moving=clock)
        assert await shown(database, *sent[:-1]) == ["ann SUPPRESSED MERGED"] * 4
        held = [d for d in await deliveries(database) if d.state == "HELD"]
        assert {d.expires_at > d.due_at + timedelta(minutes=50) for d in held} == {True}, "they would end in an hour"
    await clock.advance(3 * 3600)
    async with running(make_worker(database, clock, provider, poll_s=5.0)):
        await until_shown(database, "ann SENT", of=sent[-1], moving=clock)
        for one in (other, *each):
            await until_shown(database, "ann SENT", of=one, moving=clock)
    assert sorted(texts(provider)) == ["another type", "each 0", "each 1", "text 4"]


CONTENTS: dict[str, dict[str, Any]] = {
    "title": {},
    "with data": {"data": {"k": "v"}},
    "badge": {"title": "", "badge": 3},
    "template": {"title": "", "template": "greeting"},
}


async def mute(database: Database, *types: str) -> None:
    await make_directory(database).set_preferences(APP, "ann", Preferences(muted_types=types), by_user=False)


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
async def test_alert_of_a_muted_type_is_suppressed_and_opens_no_window(
    database: Database, clock: FakeClock, content: dict[str, Any]
) -> None:
    await phone(database)
    await mute(database, "news")
    sent, again = alert("t", "a", "b", content=content), alert("t", "a", content=content)
    (accepted,) = await accept(database, sent)
    assert (accepted.delivery_count, accepted.suppressed_count) == (1, 1)
    await mute(database)
    await accept(database, again)
    assert await shown(database, sent, again) == ["ann SUPPRESSED MUTED", "ann PENDING"]


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
async def test_alert_muted_while_waiting_is_not_sent(
    database: Database, clock: FakeClock, content: dict[str, Any]
) -> None:
    await phone(database)
    waits, trails = alert("t", content=content), alert("t", content=content)
    other, again = alert("not muted", type="other"), alert("again", content=content)
    await accept_in_turn(database, waits, trails, other)
    await mute(database, "news")
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider, poll_s=1.0)):
        for one in (waits, trails):
            await until_shown(database, "ann SUPPRESSED MUTED", of=one, moving=clock)
        await until_shown(database, "ann SENT", of=other)
    assert texts(provider) == ["not muted"]
    assert await value_of(database, "SELECT count(*) FROM wake_budgets") == 0
    await mute(database)
    await accept(database, again)
    assert await shown(database, again) == ["ann PENDING"]


async def test_dedupe_window_shows_the_first_alert_at_once_and_the_last_at_its_end(
    database: Database, clock: FakeClock
) -> None:
    await phone(database)
    provider = ScriptedProvider()
    sent = [alert(f"text {n}") for n in range(1, 6)]
    await accept_in_turn(database, *sent[:4])
    async with running(make_worker(database, clock, provider, poll_s=1.0)):
        await until_shown(database, "ann SENT", of=sent[0])
        assert await shown(database, *sent[1:4]) == ["ann SCHEDULED TRAILING"] * 3
        await clock.advance(55)
        assert texts(provider) == ["text 1"]
        await until_shown(database, "ann SENT", of=sent[3], moving=clock)
        for one in sent[1:3]:
            await until_shown(database, "ann SUPPRESSED MERGED", of=one, moving=clock)
        assert texts(provider) == ["text 1", "text 4"]
        await accept(database, sent[4])  # the end of one window begins the next
        assert await shown(database, sent[4]) == ["ann SCHEDULED TRAILING"]
        await until_shown(database, "ann SENT", of=sent[4], moving=clock)
    assert texts(provider) == ["text 1", "text 4", "text 5"]


async def test_alert_of_several_scopes_is_one_delivery_per_device(database: Database, clock: FakeClock) -> None:
    await phone(database)
    await add_device(database, "bob")
    await add_members(database, "b", "bob")
    sent = alert("one", "a", "b", "c")
    (accepted,) = await accept(database, sent)
    assert accepted.delivery_count == 2
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann SENT", "bob SENT", of=sent)
    assert {(d.user_id, d.scope, d.other_scopes) for d in provider.asked} == {
        ("ann", "a", ("b", "c")),
        ("bob", "b", ()),
    }


async def test_alert_is_left_to_a_stream_that_shows_all_its_scopes(database: Database, clock: FakeClock) -> None:
    await phone(database)
    streams = Streams()
    streams.users.add("ann")
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider, streams=streams, poll_s=1.0)):
        for number, seen in enumerate((("a", "b", "c"), ("a", "b"), ("b", "c")), start=1):
            sent = alert(f"alert {number}", *SCOPES, sequence=number, type=str(number))
            await accept(database, sent)
            await until_shown(database, "ann HELD LIVE_STREAM", of=sent, moving=clock)
            for scope in seen:
                await mark_seen(database, number, scope=scope)
            end = "ann CANCELLED ALREADY_SEEN" if len(seen) == 3 else "ann SENT"
            await until_shown(database, end, of=sent, moving=clock)
    assert texts(provider) == ["alert 2", "alert 3"]


async def test_dedupe_window_of_an_alert_occupies_all_its_scopes(database: Database, clock: FakeClock) -> None:
    await phone(database)
    first, waiting, passes = alert("first"), alert("waiting"), alert("passes", "a", "b")
    await accept_in_turn(database, first, waiting)
    await clock.advance(30)
    later = [alert("later b", "b"), alert("later a", "a"), alert("c is free", "b", "c"), alert("none is free", *SCOPES)]
    await accept_in_turn(database, passes, *later)
    expected = [
        "PENDING",
        "SCHEDULED TRAILING",
        "PENDING",
        *["SCHEDULED TRAILING"] * 2,
        "PENDING",
        "SCHEDULED TRAILING",
    ]
    assert await shown(database, first, waiting, passes, *later) == [f"ann {state}" for state in expected]
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider, poll_s=1.0)):
        await until_shown(database, "ann SENT", of=later[3], moving=clock)
        await until(partial(nothing_waits, database), moving=clock)
    assert texts(provider)[3:] == ["none is free"], "whatever told less is merged into it"


async def nothing_waits(database: Database) -> bool:
    waiting = "SELECT count(*) FROM deliveries WHERE state IN ('PENDING', 'SCHEDULED', 'HELD', 'IN_FLIGHT')"
    return not await value_of(database, waiting)


async def test_alert_that_tells_more_than_a_later_one_is_shown_beside_it(database: Database, clock: FakeClock) -> None:
    await phone(database)
    await accept_in_turn(database, alert("first", *SCOPES), alert("of a and b", "a", "b"), alert("of b", "b"))
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider, poll_s=1.0)):
        await until(partial(nothing_waits, database), moving=clock)
    assert sorted(texts(provider)) == ["first", "of a and b", "of b"]


async def test_dedupe_windows_of_wake_ups_and_alerts_are_independent(database: Database, clock: FakeClock) -> None:
    await phone(database)
    together = [wake(1, "a"), alert("x"), wake(2, "a"), alert("y"), wake(3, "a"), alert("z")]
    await accept(database, *together)
    assert await shown(database, *together) == [
        *["ann PENDING"] * 2,
        *["ann SCHEDULED TRAILING"] * 2,
        "ann SUPPRESSED MERGED",
        "ann SCHEDULED TRAILING",
    ]


@pytest.mark.parametrize("seed", range(3))
async def test_accept_alerts_in_one_batch_equals_one_by_one(database: Database, clock: FakeClock, seed: int) -> None:
    await phone(database)
    dice = random.Random(seed)
    rolls = [
        (dice.sample(SCOPES, dice.randrange(1, 4)), dice.choice("xy"), dice.choice((0.0, 30.0, 60.0)))
        for _ in range(10)
    ]
    ends = []
    for together in (False, True):
        calls = [alert("t", *scopes, type=kind, window=window) for scopes, kind, window in rolls]
        batches = [calls] if together else [[call] for call in calls]
        for batch in batches:
            await accept(database, *batch)
        number = {call.notification_id: index for index, call in enumerate(calls)}
        windows = await rows_of(
            database,
            """SELECT dedupe_key, scope, window_until, duration, opened_by::text, trailed_by::text FROM dedupe_windows
               ORDER BY 1, 2""",
        )
        told = [(*row[:4], number[row[4]], number.get(row[5])) for row in windows]
        ends.append((await shown(database, *calls), told))
        async with database.connection() as conn:
            await conn.execute("DELETE FROM dedupe_windows")
    assert ends[0] == ends[1]


async def test_dedupe_window_of_a_cancelled_alert_returns_to_the_one_before(
    database: Database, clock: FakeClock
) -> None:
    await phone(database)
    sent = [alert("first", *SCOPES), alert("second", "b"), alert("third", *SCOPES)]
    await accept_in_turn(database, *sent)
    async with database.transaction() as conn:
        assert await lifecycle.cancel(conn, APP, sent[2].notification_id) == 1
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider, poll_s=1.0)):
        await until_shown(database, "ann SENT", of=sent[1], moving=clock)
    assert texts(provider) == ["first", "second"]


async def test_alert_whose_attempt_was_lost_is_shown_once(database: Database, clock: FakeClock) -> None:
    """A worker dies between its claim at the end of a window and all that follows."""
    await phone(database)
    sent = [alert("first"), alert("second"), alert("third")]
    await accept_in_turn(database, *sent)
    await clock.advance(61)
    async with database.transaction() as conn:
        lease = str(uuid.uuid4())
        found = await queue.claim(conn, lease, 30.0, {APP: 100})
        await push.close_windows(conn, lease, found.trailing)
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider, poll_s=1.0)):
        await until(partial(nothing_waits, database), moving=clock)
    assert texts(provider) == ["first", "third"]
    assert await shown(database, *sent) == ["ann SENT", "ann SUPPRESSED MERGED", "ann SENT"]


async def test_fanout_of_an_alert_is_counted_by_devices(
    database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "MAX_PER_TRANSACTION", 2)
    await phone(database)
    for user in ("bob", "cat", "dan"):
        await add_device(database, user)
        await add_members(database, "a", user)
        await add_members(database, "b", user)
    sent = alert("many", *SCOPES)
    (accepted,) = await accept(database, sent)
    assert accepted.delivery_count == 4
    async with database.transaction() as conn:
        while await push.expand(conn, [APP]):
            pass
    assert await shown(database, sent) == [f"{user} PENDING" for user in ("ann", "bob", "cat", "dan")]


@pytest.mark.parametrize(("at_once", "written"), [(2, 2), (4, 0)], ids=["large", "small"])
async def test_fanout_cancelled_midway_cancels_the_alert_on_each_device(
    database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, at_once: int, written: int
) -> None:
    """Of three scopes it comes to more rows than are written at once, and to fewer deliveries."""
    monkeypatch.setattr(fanout, "MAX_PER_TRANSACTION", at_once)
    await phone(database)
    users = ("bob", "cat", "dan")
    for user in users:
        await add_device(database, user)
        for scope in SCOPES:
            await add_members(database, scope, user)
    sent = alert("many", *SCOPES)
    (accepted,) = await accept(database, sent)
    async with database.transaction() as conn:
        if written:
            assert await push.expand(conn, [APP]) == written
        assert await lifecycle.cancel(conn, APP, sent.notification_id) == accepted.delivery_count == 4
        while await push.expand(conn, [APP]):
            pass
    assert await shown(database, sent) == [f"{user} CANCELLED" for user in ("ann", *users)]
    again = alert("again", *SCOPES)
    await accept(database, again)
    async with database.transaction() as conn:
        while await push.expand(conn, [APP]):
            pass
    assert await shown(database, again) == [f"{user} PENDING" for user in ("ann", *users)], "it holds nothing off"


async def test_resend_of_a_wake_up_is_not_blocked_by_an_alert(database: Database, clock: FakeClock) -> None:
    await phone(database)
    silent, shows = wake(1, "a"), alert("t", "a", sequence=2)
    provider = ScriptedProvider()
    async with running(worker := make_worker(database, clock, provider, poll_s=1.0)):
        for one in (silent, shows):
            await accept(database, one)
            worker.wake()
            await until_shown(database, "ann SENT", of=one)
        while len(provider.asked) < 3:
            await clock.advance(1.0)
    assert (provider.asked[-1].sequence, provider.asked[-1].resends) == (1, 1)
