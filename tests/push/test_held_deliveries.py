"""Tests what holds a delivery back for the user's or the device's sake, and how it goes on."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from syncbeat_server.directory.model import Platform, Preferences, QuietHours, Registration
from syncbeat_server.push.content.templates import Template
from syncbeat_server.push.model import Content, Target
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, make_directory, make_worker
from tests.support.doubles import ScriptedProvider, Streams
from tests.support.fake_clock import FakeClock
from tests.support.seed import (
    accept,
    add_members,
    couple,
    deliveries,
    mark_seen,
    message,
    rows_of,
    shown,
    until,
    value_of,
    wake,
)
from tests.support.workers import running, until_shown

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

# The clock stands at 12:00 UTC, which is 13:00 in Berlin.
BERLIN = "Europe/Berlin"
REST = QuietHours(12 * 60, 15 * 60, "")


async def prefer(database: Database, user_id: str = "ann", **wanted: Any) -> None:
    await make_directory(database).set_preferences(APP, user_id, Preferences(**wanted), by_user=False)


async def phone(database: Database, user_id: str, platform: Platform, zone: str = "", device: str = "phone") -> None:
    token = f"token-of-{user_id}-{device}"
    made = Registration(APP, user_id, device, platform, token, zone, "")
    await make_directory(database).register(made, "test", by_user=False)


async def test_quiet_hours_hold_a_message_until_they_end(database: Database, clock: FakeClock) -> None:
    await phone(database, "ann", Platform.ANDROID, BERLIN)
    await prefer(database, quiet_hours=REST)
    sent, critical = message(patient=True), message(critical=True)
    await accept(database, sent, critical)
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider, poll_s=60.0)):
        await until_shown(database, "ann SENT", of=critical)
        await until_shown(database, "ann HELD QUIET_HOURS", of=sent)
        (held,) = [d for d in await deliveries(database) if d.state == "HELD"]
        assert held.due_at - clock.now() == timedelta(hours=2)
        assert held.expires_at - clock.now() == timedelta(hours=3), "its life does not run while it is held"
    await clock.advance(7000)  # nobody looks meanwhile: hours of looking each minute take long
    async with running(make_worker(database, clock, provider, poll_s=60.0)):
        await clock.advance(100)
        assert await shown(database, sent) == ["ann HELD QUIET_HOURS"]
        await until_shown(database, "ann SENT", of=sent, moving=clock)
    assert [(d.attempt, d.ttl_s > 3500) for d in provider.asked] == [(1, True), (1, True)]


@pytest.mark.parametrize("quiet", [QuietHours(22 * 60, 150), QuietHours(60, 150)])
async def test_quiet_hours_that_end_in_a_skipped_hour_hold_once(
    database: Database, clock: FakeClock, quiet: QuietHours
) -> None:
    await phone(database, "ann", Platform.ANDROID, BERLIN)
    await prefer(database, quiet_hours=quiet)
    put_forward = datetime(2030, 3, 31, 1, tzinfo=UTC)
    await clock.advance((put_forward - clock.now()).total_seconds() - 1800)
    sent = message(patient=True)
    await accept(database, sent)
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider, poll_s=60.0)):
        await until_shown(database, "ann HELD QUIET_HOURS", of=sent)
        (held,) = await deliveries(database)
        assert held.due_at == put_forward, "2:30 never comes: held anew each second, for half an hour"
        await until_shown(database, "ann SENT", of=sent, moving=clock)
    assert [d.attempt for d in provider.asked] == [1]


async def test_quiet_hours_expire_a_message_by_its_ttl(database: Database, clock: FakeClock) -> None:
    await phone(database, "ann", Platform.ANDROID, BERLIN)
    await prefer(database, quiet_hours=REST)
    sent = message(ttl_s=600.0)
    await accept(database, sent)
    async with running(make_worker(database, clock, ScriptedProvider(), poll_s=60.0)):
        await until_shown(database, "ann HELD QUIET_HOURS", of=sent)
        await clock.advance(601)
        await until_shown(database, "ann EXPIRED", of=sent, moving=clock)


async def test_quiet_hours_do_not_hold_wake_ups(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await prefer(database, quiet_hours=QuietHours(0, 0, ""), max_per_day=0, muted_types=("news",))
    silent = wake(1, exclude_user_id="bob")
    await accept(database, silent)
    async with running(make_worker(database, clock, ScriptedProvider(), poll_s=60.0)):
        await until_shown(database, "ann SENT", of=silent)


async def test_muted_type_wake_up_is_sent_silently(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await prefer(database, muted_types=("news",))
    silent = replace(wake(1), content=Content(sound="bell", data={"k": "v"}))
    await accept(database, silent)
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider, poll_s=60.0)):
        await until_shown(database, "ann SENT", "bob SENT", of=silent)
    contents = {m.delivery.user_id: m.content for m in provider.messages}
    assert contents == {"ann": Content(data={"k": "v"}), "bob": Content(sound="bell", data={"k": "v"})}


async def test_muted_type_is_suppressed_and_opens_no_window(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await prefer(database, muted_types=("ads",))
    muted = message(type="ads", dedupe_key="k")
    others = [message(type="ads", critical=True), message(type="news"), message(), message(dedupe_key="k")]
    await accept(database, muted, *others)
    assert await shown(database, muted, *others) == ["ann SUPPRESSED MUTED", *["ann PENDING"] * 4]


async def test_daily_limit_is_that_of_the_user(database: Database, clock: FakeClock) -> None:
    await phone(database, "ann", Platform.ANDROID, BERLIN)
    await phone(database, "ann", Platform.IOS, BERLIN, "tablet")
    await prefer(database, max_per_day=2)
    sent = [message(patient=True) for _ in range(3)]
    for one in sent:
        await accept(database, one)
        await clock.advance(1)
    provider = ScriptedProvider()
    worker = make_worker(database, clock, provider, poll_s=60.0)
    async with running(worker):
        await until_shown(database, "ann HELD DAILY_MAXIMUM", "ann HELD DAILY_MAXIMUM", of=sent[2])
        assert await shown(database, *sent[:2]) == ["ann SENT"] * 4, "of each device two"
        midnight = datetime(2030, 1, 1, 23, tzinfo=UTC)  # in Berlin

        async def held_until_midnight() -> bool:
            return {d.due_at for d in await deliveries(database) if d.state == "HELD"} == {midnight}

        await clock.advance(3)  # the outcomes of the others are known
        worker.wake()
        await until(held_until_midnight)
    await clock.advance(11 * 3600 - 13)  # nobody looks meanwhile here either
    async with running(make_worker(database, clock, provider, poll_s=60.0)):
        await until_shown(database, "ann SENT", "ann SENT", of=sent[2], moving=clock)


async def test_daily_limit_is_shared_by_workers_and_counts_a_retry_once(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = [message() for _ in range(40)]
    await accept(database, *sent)
    providers = [ScriptedProvider(*[RuntimeError("again")] * 3) for _ in range(2)]
    async with running(*(make_worker(database, clock, p, app={"max_per_day": 7}, in_flight=8) for p in providers)):

        async def settled() -> bool:
            await clock.advance(5.0)
            counts = dict(await rows_of(database, "SELECT state, count(*) FROM deliveries GROUP BY 1"))
            return counts == {"SENT": 7, "HELD": 33}

        await until(settled)
    failed = 6 - sum(len(provider.script) for provider in providers)
    assert sum(len(provider.asked) for provider in providers) == 7 + failed
    assert failed > 0


async def test_wakeup_budget_merges_what_exceeds_it(database: Database, clock: FakeClock) -> None:
    await phone(database, "ann", Platform.IOS)
    await add_members(database, "couple", "ann")
    await add_members(database, "other", "ann")
    provider = ScriptedProvider()
    async with running(worker := make_worker(database, clock, provider, poll_s=30.0)):
        for sequence in range(1, 6):
            await accept(database, wake(sequence, window=0.0))
            worker.wake()
            await until(partial(nothing_pending, database))
        await accept(database, other := wake(9, scope="other", window=0.0))
        worker.wake()
        await until_shown(database, "ann HELD WAKE_BUDGET", of=other)
        assert [d.sequence for d in provider.asked] == [1, 2, 3]
        states = await rows_of(database, "SELECT scope, sequence, state, reason FROM deliveries ORDER BY 1, 2")
        assert states == [
            *(("couple", n, "SENT", "") for n in (1, 2, 3)),
            ("couple", 4, "SUPPRESSED", "MERGED"),
            ("couple", 5, "HELD", "WAKE_BUDGET"),
            ("other", 9, "HELD", "WAKE_BUDGET"),
        ]
        await mark_seen(database, 9, scope="other")
        await clock.advance(1199)
        assert len(provider.asked) == 3
        await until_shown(database, "ann CANCELLED ALREADY_SEEN", of=other, moving=clock)
        await until(partial(value_of, database, "SELECT bool_and(state <> 'HELD') FROM deliveries"))
    assert [d.sequence for d in provider.asked] == [1, 2, 3, 5]


async def nothing_pending(database: Database) -> bool:
    return not await value_of(database, "SELECT count(*) FROM deliveries WHERE state IN ('PENDING', 'IN_FLIGHT')")


async def test_wakeup_budget_is_not_spent_by_a_stream(database: Database, clock: FakeClock) -> None:
    await phone(database, "ann", Platform.IOS)
    await add_members(database, "couple", "ann")
    streams = Streams()
    streams.users.add("ann")
    sent = wake(1)
    await accept(database, sent)
    async with running(make_worker(database, clock, ScriptedProvider(), streams=streams)):
        await until_shown(database, "ann HELD LIVE_STREAM", of=sent)
        await mark_seen(database, 1)
        await until_shown(database, "ann CANCELLED ALREADY_SEEN", of=sent, moving=clock)
    assert await value_of(database, "SELECT count(*) FROM wake_budgets") == 0


async def test_template_is_rendered_in_each_device_locale(database: Database, clock: FakeClock) -> None:
    for user, locale in (("ann", "de-DE"), ("bob", "")):
        made = Registration(APP, user, "phone", Platform.ANDROID, f"token-{user}", "", locale)
        await make_directory(database).register(made, "test", by_user=False)
    note = Template.parse({"default": ("{who} wrote", "b"), "de": ("{who} schrieb", "b")})
    base = message(Target(user_id="ann"), Target(user_id="bob"))
    told = replace(base, content=Content(template="note", variables={"who": "Eve"}))
    gone = replace(base, notification_id=message().notification_id, content=Content(template="gone"))
    await accept(database, told, gone)
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider, app={"templates": {"note": note}})):
        await until_shown(database, "ann SENT", "bob SENT", of=told)
        await until_shown(database, "ann DEAD REJECTED", "bob DEAD REJECTED", of=gone)
    assert {m.delivery.user_id: m.content.title for m in provider.messages} == {
        "ann": "Eve schrieb",
        "bob": "Eve wrote",
    }
