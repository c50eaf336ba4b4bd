"""Scheduled notifications: whom they go to, and what they say, is resolved when they are due."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from syncbeat_server.directory.model import Preferences
from syncbeat_server.events.user_lifecycle import UserLifecycle
from syncbeat_server.push import accept as push
from syncbeat_server.push.content.templates import Template
from syncbeat_server.push.delivery.maintenance import warn_of_unfit_templates
from syncbeat_server.push.model import Content, DeliveryState, NewNotification, Notification, Target
from syncbeat_server.push.store import fanout, notifications, queue_figures
from syncbeat_server.push.store import lifecycle as lifecycle_store
from syncbeat_server.storage.postgres.database import Database
from tests.push.test_delivery_lifecycle import crowd, expand_all
from tests.support.build import APP, make_directory, make_user_lifecycle, make_worker
from tests.support.doubles import ScriptedProvider
from tests.support.fake_clock import START, FakeClock
from tests.support.seed import accept, add_device, add_members, couple, deliveries, message, shown, value_of
from tests.support.workers import running, until_shown

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

HOUR = timedelta(hours=1)
Change = Callable[[Database], Awaitable[object]]


def scheduled(*targets: Target, **fields: Any) -> NewNotification:
    return message(*(targets or (Target(scope="couple"),)), due_at=START + HOUR, **fields)


async def told(database: Database, notification: NewNotification) -> Notification:
    async with database.connection() as conn:
        found = await notifications.find_notification(conn, APP, notification.notification_id)
    assert found is not None
    return found


async def cancel(database: Database, notification: NewNotification) -> int | None:
    async with database.transaction() as conn:
        return await lifecycle_store.cancel(conn, APP, notification.notification_id)


async def come_due(database: Database, clock: FakeClock) -> list[int]:
    await clock.advance(HOUR.total_seconds())
    return await expand_all(database)


async def leave(database: Database) -> None:
    await make_directory(database).remove_members(APP, "couple", ["bob"])


async def join(database: Database) -> None:
    await add_device(database, "cat")
    await add_members(database, "couple", "cat")


async def new_phone(database: Database) -> None:
    await make_directory(database).unregister(APP, "ann", "phone", by_user=False)
    await add_device(database, "ann", "newer")


async def sign_out_and_in(database: Database) -> None:
    await make_directory(database).unregister(APP, "ann", "phone", by_user=False)
    await add_device(database, "ann")


async def mute(database: Database) -> None:
    await make_directory(database).set_preferences(APP, "ann", Preferences(muted_types=("news",)), by_user=False)


async def unmute(database: Database) -> None:
    await make_directory(database).set_preferences(APP, "bob", Preferences(), by_user=False)


async def lose_token(database: Database) -> None:
    await add_device(database, "ann", token="")


def lifecycle(database: Database) -> UserLifecycle:
    return make_user_lifecycle(database)


async def disable(database: Database) -> None:
    await lifecycle(database).disable(APP, "ann")


async def disable_and_enable(database: Database) -> None:
    await lifecycle(database).disable(APP, "ann")
    await lifecycle(database).enable(APP, "ann")


async def give_token_away(database: Database) -> None:
    await add_device(database, "eve", token="token-of-ann-phone")


BOB = "bob SUPPRESSED MUTED"
CHANGES: dict[str, tuple[Change, list[str]]] = {
    "left": (leave, ["ann PENDING"]),
    "joined": (join, ["ann PENDING", BOB, "cat PENDING"]),
    "new phone": (new_phone, ["ann PENDING", BOB]),
    "signed out and in": (sign_out_and_in, ["ann PENDING", BOB]),
    "muted": (mute, ["ann SUPPRESSED MUTED", BOB]),
    "unmuted": (unmute, ["ann PENDING", "bob PENDING"]),
    "token lost": (lose_token, ["ann SUPPRESSED NO_TOKEN", BOB]),
    "token moved": (give_token_away, ["ann SUPPRESSED NO_TOKEN", BOB]),
    "disabled": (disable, [BOB]),
    "disabled and enabled": (disable_and_enable, ["ann PENDING", BOB]),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_scheduled_targets_are_resolved_when_due(database: Database, clock: FakeClock, what: str) -> None:
    change, expected = CHANGES[what]
    await couple(database)
    await make_directory(database).set_preferences(APP, "bob", Preferences(muted_types=("news",)), by_user=False)
    sent = scheduled(type="news", ttl_s=600.0)
    (answer,) = await accept(database, sent)
    assert (answer.delivery_count, answer.suppressed_count) == (2, 0)
    early = await told(database, sent)
    assert (early.resolved, early.expanding, early.counts) == (False, False, {DeliveryState.SCHEDULED: 2})
    assert await expand_all(database) == []
    await change(database)
    await come_due(database, clock)
    assert await shown(database, sent) == expected
    late = await told(database, sent)
    assert (late.resolved, late.expanding) == (True, False)
    assert late.counts == Counter(d.state for d in await deliveries(database, sent))
    assert {d.expires_at for d in await deliveries(database, sent)} == {late.expires_at} == {START + 7 * HOUR / 6}


async def test_scheduled_in_the_past_is_sent_now(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message(due_at=START - HOUR)
    await accept(database, sent)
    assert await shown(database, sent) == ["ann PENDING"]
    found = await told(database, sent)
    assert (found.due_at, found.resolved) == (START, True)


async def test_scheduled_opens_no_dedupe_window_before_it_is_due(database: Database, clock: FakeClock) -> None:
    await couple(database)
    later = scheduled(Target(user_id="ann"), dedupe_key="k")
    now, repeat = message(dedupe_key="k"), message(dedupe_key="k")
    for one in (later, now):
        await accept(database, one)
    assert await shown(database, now) == ["ann PENDING"]
    await come_due(database, clock)
    await accept(database, repeat)
    assert await shown(database, later, repeat) == ["ann PENDING", "ann SUPPRESSED DUPLICATE"]


async def test_scheduled_is_resolved_by_the_worker(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent, more = scheduled(), [scheduled(Target(user_id="ann")) for _ in range(150)]
    await accept(database, sent, *more)
    provider = ScriptedProvider()
    await clock.advance(HOUR.total_seconds() - 3)
    async with running(make_worker(database, clock, provider)):
        await clock.advance(2)
        assert provider.asked == []
        await until_shown(database, "ann SENT", "bob SENT", of=sent, moving=clock)
        await until_shown(database, "ann SENT", of=more[-1], moving=clock)


async def test_scheduled_resolved_too_late_expires(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = scheduled(Target(user_id="ann"), ttl_s=60.0)
    await accept(database, sent)
    await clock.advance(HOUR.total_seconds() + 60)
    async with running(make_worker(database, clock, ScriptedProvider())):
        await until_shown(database, "ann EXPIRED", of=sent, moving=clock)


@pytest.mark.parametrize("count", [2, 1500])
async def test_scheduled_cancelled_before_due_adds_up(database: Database, clock: FakeClock, count: int) -> None:
    await crowd(database, count)
    sent = scheduled(Target(scope="crowd"), dedupe_key="k")
    (answer,) = await accept(database, sent)
    assert answer.delivery_count == count
    assert [await cancel(database, sent) for _ in range(2)] == [count, 0]
    await expand_all(database)
    found = await told(database, sent)
    assert found.resolved
    assert sum(found.counts.values()) == count
    assert found.counts[DeliveryState.CANCELLED] == count - count // 10
    assert await value_of(database, "SELECT count(*) FROM dedupe_windows") == 0
    assert await come_due(database, clock) == []


async def test_fanout_of_a_scheduled_target_grown_beyond_a_page(database: Database, clock: FakeClock) -> None:
    await crowd(database, 900)
    sent = scheduled(Target(scope="crowd"))
    await accept(database, sent)
    async with database.connection() as conn:
        await conn.execute(
            """INSERT INTO devices SELECT (jsonb_populate_record(d, jsonb_build_object(
                   'device_id', 'tablet', 'token_digest', NULL, 'registration_token', NULL, 'token_state', 'NONE'))).*
               FROM devices d"""
        )
    assert sum(await come_due(database, clock)) == 1800
    found = await told(database, sent)
    assert (found.resolved, sum(found.counts.values())) == (True, 1800)


async def test_fanout_of_small_jobs_does_not_wait_for_large_ones(database: Database, clock: FakeClock) -> None:
    await crowd(database, 3000)
    large, small = message(Target(scope="crowd")), scheduled(Target(user_id="u1"))
    await accept(database, small)
    await clock.advance(HOUR.total_seconds())
    await accept(database, large)
    async with database.transaction() as conn:
        assert await push.expand(conn, [APP]) == 1001
    assert await shown(database, small) == ["u1 PENDING"]


async def test_erase_user_removes_it_from_scheduled_targets(database: Database, clock: FakeClock) -> None:
    await couple(database)
    alone, both, scope = (
        scheduled(Target(user_id="bob")),
        scheduled(Target(user_id="ann"), Target(user_id="bob", device_id="phone")),
        scheduled(),
    )
    await accept(database, alone, both, scope)
    assert (await lifecycle(database).delete(APP, "bob")).cancelled == 2
    assert await value_of(database, "SELECT count(*) FROM expansions WHERE targets::text LIKE '%bob%'") == 0
    await lifecycle(database).enable(APP, "bob")
    await add_device(database, "bob")
    await come_due(database, clock)
    with pytest.raises(AssertionError):
        await told(database, alone)
    assert await shown(database, both, scope) == ["ann PENDING", "ann PENDING"]


async def test_erase_user_between_fanout_pages_keeps_the_sum_right(database: Database, clock: FakeClock) -> None:
    await crowd(database, 1500)
    sent = message(Target(scope="crowd"))
    await accept(database, sent)
    async with database.transaction() as conn:
        await push.expand(conn, [APP])
    await lifecycle(database).delete(APP, "u1")
    await expand_all(database)
    found = await told(database, sent)
    assert (await value_of(database, "SELECT accepted FROM notifications"), sum(found.counts.values())) == (1499, 1499)


async def test_scheduled_counts_as_waiting(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await accept(database, scheduled())
    await clock.advance(HOUR.total_seconds() + 30)
    async with database.connection() as conn:
        assert await queue_figures.count_waiting(conn) == {(APP, "SCHEDULED"): (2, 30.0)}


def template(text: str) -> Template:
    return Template.parse({"default": (text, "body"), "de": (f"{text} deutsch", "body")})


TEMPLATES = {
    "gained a variable": ({"note": template("{who} and {whom}")}, "Eve"),
    "is gone": ({}, "Eve"),
    "changed": ({"note": template("new {who}")}, "new Eve"),
}


@pytest.mark.parametrize("what", TEMPLATES)
async def test_scheduled_template_is_of_due_time_or_the_accepted_text(
    database: Database, clock: FakeClock, what: str
) -> None:
    templates, title = TEMPLATES[what]
    await couple(database)
    texts = {"default": ("Eve", "body"), "de": ("Eve deutsch", "body")}
    content = Content(template="note", variables={"who": "Eve"}, texts=texts)
    now, later = (replace(made, content=content) for made in (message(), scheduled(Target(user_id="ann"))))
    await accept(database, now, later)
    async with database.connection() as conn:
        needs = {name: one.variables for name, one in templates.items()}
        assert await fanout.count_unfit(conn, APP, needs) == ({} if what == "changed" else {"note": 1})
        await conn.execute("UPDATE devices SET locale = 'de' WHERE user_id = 'ann'")
    provider = ScriptedProvider()
    await clock.advance(HOUR.total_seconds() - 1)
    async with running(make_worker(database, clock, provider, app={"templates": templates})):
        await until_shown(database, "ann SENT", of=later, moving=clock)
    assert {m.content.title for m in provider.messages} == {f"{title} deutsch"}


async def test_scheduled_template_without_kept_text(database: Database, clock: FakeClock) -> None:
    await couple(database)
    old = replace(message(), content=Content(template="note", variables={}))
    await accept(database, old)
    async with running(make_worker(database, clock, ScriptedProvider())):
        await until_shown(database, "ann DEAD REJECTED", of=old)


async def test_scheduled_template_mismatch_is_reported(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    await couple(database)
    await accept(database, *(scheduled(content=Content(template="note", variables={"who": "Eve"})) for _ in range(2)))
    await warn_of_unfit_templates(database, APP, {"note": template("{who} and {whom}")})
    await warn_of_unfit_templates(database, APP, {"note": template("{who}")})
    (told_of,) = [r for r in caplog.records if "do not fit" in r.message]
    assert vars(told_of).items() >= {"app_id": APP, "template": "note", "count": 2}.items()
