"""Tests the removal of registration tokens: by the provider's answers, within limits, and by age."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from syncbeat_server.directory.model import Platform, Registration
from syncbeat_server.directory.store import dead_token_removal, token_ageing
from syncbeat_server.push.model import ClaimedDelivery, Outcome, Reason, Target, Verdict
from syncbeat_server.push.providers import Message
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, make_directory, make_worker
from tests.support.doubles import ScriptedProvider
from tests.support.fake_clock import FakeClock
from tests.support.seed import accept, add_device, claim, couple, deliveries, message, rows_of, shown, until, value_of
from tests.support.workers import running, until_shown

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

UNREGISTERED = Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED)
DAY_S = 86_400.0


async def bury(database: Database, dead: list[ClaimedDelivery]) -> dead_token_removal.TokenRemoval:
    async with database.transaction() as conn:
        uses = [one.token_use for one in dead]
        await dead_token_removal.lock_devices(conn, uses, [])
        return await dead_token_removal.remove_dead_tokens(conn, uses)


async def many(database: Database, count: int) -> list[ClaimedDelivery]:
    """A claimed delivery for each of so many devices."""
    async with database.connection() as conn:
        await conn.execute(
            """INSERT INTO devices (app_id, user_id, device_id, platform, registration_token, token_digest, token_state,
                                    token_registered_at, registered_at, updated_at)
               SELECT $1, 'user-' || n, 'phone', 'ANDROID', 't' || n, sha256(('t' || n)::bytea), 'ACTIVE',
                      syncbeat_now(), syncbeat_now(), syncbeat_now() FROM generate_series(1, $2::int) n""",
            APP,
            count,
        )
    await accept(database, message(*(Target(user_id=f"user-{n}") for n in range(1, min(count, 400) + 1))))
    return await claim(database, str(uuid.uuid4()), limit=count)


async def test_token_removal_limit_stops_at_a_hundred_for_a_wrong_project(
    database: Database, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    dead = await many(database, 400)
    first = await bury(database, dead[:60])
    assert first == dead_token_removal.TokenRemoval(frozenset(), frozenset())
    both = await asyncio.gather(bury(database, dead[60:260]), bury(database, dead[260:]))
    assert any(buried.limit_hit == {APP} for buried in both)
    counts = "SELECT token_state, count(*) FROM devices GROUP BY 1 ORDER BY 1"
    assert await rows_of(database, counts) == [("ACTIVE", 300), ("DEAD", 100)]
    await clock.advance(601)
    await bury(database, dead[::-1])
    assert await rows_of(database, counts) == [("ACTIVE", 200), ("DEAD", 200)]


async def test_token_removal_limit_is_a_twentieth_of_many(database: Database) -> None:
    dead = await many(database, 4000)
    assert (await bury(database, dead)).limit_hit == {APP}
    assert await value_of(database, "SELECT count(*) FROM token_removals") == 200


async def test_token_removal_limit_hit_ends_the_delivery_and_keeps_the_token(
    database: Database, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    await many(database, 103)
    async with database.connection() as conn:
        await conn.execute("UPDATE deliveries SET state = 'PENDING', lease_token = NULL, lease_until = NULL")
    provider = ScriptedProvider(*[UNREGISTERED] * 103)
    async with running(make_worker(database, clock, provider)):

        async def dead() -> bool:
            return bool(await value_of(database, "SELECT bool_and(state = 'DEAD') FROM deliveries"))

        await until(dead)
    assert await value_of(database, "SELECT count(*) FROM devices WHERE token_state = 'ACTIVE'") == 3
    assert "is the project right?" in caplog.text


async def test_dead_token_is_replaced_by_the_newer_one(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    provider = ScriptedProvider(UNREGISTERED, gated=True)
    worker = make_worker(database, clock, provider)
    async with running(worker):

        async def asked() -> bool:
            return bool(provider.asked)

        await until(asked)
        await add_device(database, "ann", token="a newer one")
        provider.gate.set()
        await until_shown(database, "ann SENT", of=sent)
    assert [d.registration_token for d in provider.asked] == ["token-of-ann-phone", "a newer one"]
    assert await value_of(database, "SELECT count(*) FROM token_removals") == 0


async def test_dead_token_replacement_is_followed_three_times(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)

    class Moving(ScriptedProvider):
        async def send(self, message: Message) -> Outcome:
            await add_device(database, "ann", token=f"newer {len(self.asked)}")
            return await super().send(message)

    provider = Moving(*[UNREGISTERED] * 9)
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann DEAD UNREGISTERED", of=sent)
    assert len(provider.asked) == 4


async def heard_of(database: Database, user_id: str, days: float, *, called: float | None = None) -> None:
    """A phone registered, and perhaps called, so many days ago."""
    async with database.connection() as conn:
        await conn.execute(
            """UPDATE devices SET token_registered_at = syncbeat_now() - make_interval(secs => $2::float8 * 86400),
                                  activity_at = syncbeat_now() - make_interval(secs => $3::float8 * 86400)
               WHERE user_id = $1""",
            user_id,
            days,
            called,
        )


async def age(database: Database) -> dict[str, str]:
    async with database.connection() as conn:
        await token_ageing.age_tokens(conn, 100)
    found = await rows_of(database, "SELECT user_id, token_state FROM devices")
    return dict(found)


async def test_token_age_marks_stale_and_registration_refreshes(database: Database, clock: FakeClock) -> None:
    for user_id in ("new", "stale", "called", "old", "iphone"):
        platform = Platform.IOS if user_id == "iphone" else Platform.ANDROID
        made = Registration(APP, user_id, "phone", platform, f"token-{user_id}", "", "")
        await make_directory(database).register(made, "test", by_user=False)
    await heard_of(database, "new", 29.9)
    await heard_of(database, "stale", 30.1)
    await heard_of(database, "called", 300, called=1.0)
    await heard_of(database, "old", 270.1)
    await heard_of(database, "iphone", 1000)
    aged = {"new": "ACTIVE", "stale": "STALE", "called": "ACTIVE", "old": "PRUNED", "iphone": "STALE"}
    assert await age(database) == aged
    sent = message(Target(user_id="stale"), Target(user_id="old"), Target(user_id="iphone"))
    await accept(database, sent)
    assert await shown(database, sent) == ["iphone PENDING", "old SUPPRESSED NO_TOKEN", "stale PENDING"]
    await clock.advance(29 * DAY_S)
    assert (await age(database))["old"] == "PRUNED"
    async with database.connection() as conn:
        await conn.execute("UPDATE devices SET activity_at = syncbeat_now() WHERE user_id IN ('old', 'stale')")
    assert await age(database) == {**aged, "new": "STALE", "old": "ACTIVE", "stale": "ACTIVE", "called": "STALE"}


async def test_token_pruned_for_a_month_is_deleted(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await heard_of(database, "ann", 271)
    assert (await age(database))["ann"] == "PRUNED"
    await clock.advance(30 * DAY_S + 1)
    await age(database)
    left = await rows_of(database, "SELECT token_state, registration_token FROM devices WHERE user_id = 'ann'")
    assert left == [("DEAD", None)]
    await add_device(database, "ann")
    assert (await age(database))["ann"] == "ACTIVE"


async def test_token_move_cancels_what_waits_for_its_old_owner(database: Database) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    await add_device(database, "bob", device_id="tablet", token="token-of-ann-phone")
    assert await shown(database, sent) == ["ann CANCELLED DEVICE_GONE"]
    assert [d.attempts for d in await deliveries(database)] == [0]
