"""Tests what answered and missed wake-ups tell of a device and of an app."""

from __future__ import annotations

from functools import partial

import pytest

from syncbeat_server.push.model import Outcome, Reason, Verdict
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, make_worker
from tests.support.doubles import ScriptedProvider
from tests.support.fake_clock import FakeClock
from tests.support.seed import accept, add_device, add_members, known_to_answer, message, until, value_of, wake
from tests.support.workers import running

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


async def test_reach_decays_with_a_half_life_of_a_day(database: Database, clock: FakeClock) -> None:
    decay = "SELECT syncbeat_decay(syncbeat_now() - $1::interval, 86400)"
    assert await value_of(database, "SELECT syncbeat_decay(NULL, 86400)") == 0
    for days, left in ((0, 1.0), (1, 0.5), (2, 0.25), (100_000, 0.0)):
        assert await value_of(database, decay.replace("$1::interval", f"interval '{days} days'")) == pytest.approx(left)
    assert await value_of(database, "SELECT syncbeat_decay(syncbeat_now() + interval '1 day', 86400)") == 1.0


async def test_reach_collapse_marks_the_app_broken(database: Database, clock: FakeClock) -> None:
    for number in range(25):
        await add_device(database, f"user-{number}")
    await add_members(database, "many", *(f"user-{number}" for number in range(25)))
    await known_to_answer(database)
    async with database.connection() as conn:
        await conn.execute(
            """INSERT INTO app_reach (app_id, first_answered, first_missed, counted_at)
               VALUES ($1, 1000, 50, syncbeat_now())""",
            APP,
        )
    broken = partial(value_of, database, "SELECT broken_until > syncbeat_now() FROM app_reach")
    async with running(worker := make_worker(database, clock, ScriptedProvider())):
        await accept(database, wake(1, scope="many"))
        worker.wake()
        await until(partial(value_of, database, "SELECT bool_and(state = 'SENT') FROM deliveries"))
        assert not await broken()
        await until(broken, moving=clock)


async def test_breaker_open_marks_the_app_broken_until_it_closes(database: Database, clock: FakeClock) -> None:
    await add_device(database, "ann")
    await accept(database, *(message() for _ in range(8)))
    provider = ScriptedProvider(*[Outcome(Verdict.RETRY, Reason.UNAVAILABLE)] * 8)
    for_s = partial(
        value_of, database, "SELECT extract(epoch FROM broken_until - syncbeat_now())::float8 FROM app_reach"
    )
    async with running(make_worker(database, clock, provider)):
        await until(for_s, moving=clock)
        assert 60 < await for_s() <= 90
        await until(partial(value_of, database, "SELECT bool_and(state = 'SENT') FROM deliveries"), moving=clock)
        await until(partial(value_of, database, "SELECT broken_until < syncbeat_now() FROM app_reach"), moving=clock)
