"""Tests monthly quotas: counted in memory, kept in PostgreSQL, shared by processes, and begun anew with the month."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import date, timedelta

import pytest

from syncbeat_server.auth.accounts import user_access as auth
from syncbeat_server.errors import DependencyDown
from syncbeat_server.ratelimit.erasure import erase_user
from syncbeat_server.ratelimit.model import NO_QUOTA, LimitSubject, MethodClass, QuotaCharge, QuotaDecision, TierLimit
from syncbeat_server.ratelimit.quotas import FLUSH_S, QuotaCounters
from syncbeat_server.ratelimit.retention import OLD_ROWS
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.retention import Retention
from tests.support.build import make_quotas
from tests.support.doubles import FailingDatabase
from tests.support.fake_clock import START, FakeClock

pytestmark = pytest.mark.store

APP, ANN, VIENNA = "shop", "user:ann", "Europe/Vienna"


def charge(
    quota: int | None,
    subject: LimitSubject = LimitSubject.PRINCIPAL,
    method_class: MethodClass = MethodClass.HINT,
    cost: int = 1,
) -> QuotaCharge:
    return QuotaCharge(TierLimit(subject, method_class, None, quota), cost)


TEN = (charge(10),)


async def take(
    quotas: QuotaCounters, charges: Sequence[QuotaCharge] = TEN, who: str = ANN, zone: str = "UTC"
) -> QuotaDecision:
    """Decide as a call does: from memory, else after reading."""
    decision = quotas.take_quota(APP, who, zone, charges)
    if decision is None:
        await quotas.load(APP, who, zone, charges)
        decision = quotas.take_quota(APP, who, zone, charges)
    assert decision is not None
    return decision


async def admitted(quotas: QuotaCounters, calls: int, who: str = ANN) -> int:
    return sum([(await take(quotas, TEN, who)).admitted for _ in range(calls)])


async def stored(database: Database) -> dict[tuple[str, str, str, str], int]:
    async with database.connection() as conn:
        rows = await conn.fetch("SELECT subject, name, method_class, month::text, used FROM quota_usage")
    return {(row["subject"], row["name"], row["method_class"], row["month"]): row["used"] for row in rows}


async def test_quota_admits_its_number_and_tells_what_is_left(database: Database, clock: FakeClock) -> None:
    quotas = make_quotas(database, clock)
    ends = (START.replace(day=1, hour=0) + timedelta(days=31)).timestamp()
    assert await take(quotas) == QuotaDecision(True, 10, 9, ends, TEN[0].limit)
    assert await admitted(quotas, 20) == 9
    assert await take(quotas) == QuotaDecision(False, 10, 0, ends, TEN[0].limit)
    assert await take(quotas, (charge(None),)) is NO_QUOTA
    assert not (await take(quotas, (charge(0, method_class=MethodClass.SEND),))).admitted


async def test_quota_of_several_limits_is_taken_from_all_or_none(database: Database, clock: FakeClock) -> None:
    quotas = make_quotas(database, clock)
    both = (
        charge(100, LimitSubject.APP),
        charge(10),
        charge(30, method_class=MethodClass.BYTES, cost=12),
    )
    assert (await take(quotas, both)).remaining == 9
    assert (await take(quotas, both))[:3] == (True, 30, 6)
    refused = await take(quotas, both)
    assert refused[:3] == (False, 30, 6)
    assert refused.by is both[2].limit, "a metadata's subject and class come from it"
    assert (await take(quotas, both, "user:bob"))[:3] == (True, 10, 9)
    await quotas.flush()
    month = "2030-01-01"
    assert await stored(database) == {
        ("app", "", "hint", month): 3,
        ("principal", ANN, "hint", month): 2,
        ("principal", ANN, "bytes", month): 24,
        ("principal", "user:bob", "hint", month): 1,
        ("principal", "user:bob", "bytes", month): 12,
    }


async def test_quota_counts_are_written_every_two_seconds_and_read_by_the_next_process(
    database: Database, clock: FakeClock
) -> None:
    quotas = make_quotas(database, clock)
    task = asyncio.create_task(quotas.run())
    assert await admitted(quotas, 4) == 4
    assert await stored(database) == {}
    await clock.advance(FLUSH_S)
    assert await stored(database) == {("principal", ANN, "hint", "2030-01-01"): 4}
    assert await admitted(quotas, 3) == 3  # lost when the process is killed now
    task.cancel()
    following = make_quotas(database, clock)
    assert await admitted(following, 20) == 6


async def test_quota_is_shared_by_processes_but_for_two_seconds(database: Database, clock: FakeClock) -> None:
    one, two = make_quotas(database, clock), make_quotas(database, clock)
    assert (await admitted(one, 4), await admitted(two, 4)) == (4, 4)
    await one.flush()
    await two.flush()
    assert await admitted(two, 20) == 2
    await two.flush()
    await take(one)  # one too many, by what it knew
    await one.flush()
    assert await admitted(one, 20) == 0
    assert await stored(database) == {("principal", ANN, "hint", "2030-01-01"): 11}


async def test_quota_counts_taken_during_a_write_are_written_with_the_next(
    database: Database, clock: FakeClock
) -> None:
    quotas = make_quotas(database, clock)
    await take(quotas)
    async with database.transaction() as conn:
        await conn.execute("LOCK TABLE quota_usage IN SHARE MODE")
        writing = asyncio.create_task(quotas.flush())
        for _ in range(3):
            await asyncio.sleep(0)
            await take(quotas)
    await writing
    await asyncio.gather(quotas.flush(), quotas.flush())
    assert await stored(database) == {("principal", ANN, "hint", "2030-01-01"): 4}
    assert await admitted(quotas, 20) == 6


async def test_quota_begins_anew_with_the_month_of_the_time_zone(database: Database, clock: FakeClock) -> None:
    quotas = make_quotas(database, clock)
    await clock.advance(30 * 86_400.0 + 10 * 3_600.0)  # 31 January, 22:00 in UTC
    assert [(await take(quotas, zone=VIENNA)).admitted for _ in range(11)] == [True] * 10 + [False]
    await clock.advance(3_600.0)  # 1 February in Vienna
    assert (await take(quotas, zone=VIENNA)).remaining == 9
    await quotas.flush()
    assert await stored(database) == {
        ("principal", ANN, "hint", "2030-01-01"): 10,
        ("principal", ANN, "hint", "2030-02-01"): 1,
    }


async def test_quota_outage_counts_on_in_memory_and_is_made_up_for(database: Database, clock: FakeClock) -> None:
    other = make_quotas(database, clock)
    assert await admitted(other, 7) == 7
    await other.flush()
    failing = FailingDatabase(database)
    quotas = make_quotas(failing.as_database, clock)
    failing.error = DependencyDown("away")
    assert await admitted(quotas, 12) == 10  # what others have used is not known, but its own calls are counted
    with pytest.raises(DependencyDown):
        await quotas.flush()
    failing.error = None
    await quotas.flush()
    assert await stored(database) == {("principal", ANN, "hint", "2030-01-01"): 17}
    assert await admitted(quotas, 5) == 0


async def test_quota_refusal_is_checked_anew_after_a_minute(database: Database, clock: FakeClock) -> None:
    quotas = make_quotas(database, clock)
    assert await admitted(quotas, 12) == 10
    await quotas.flush()
    async with database.connection() as conn:  # as an operator does
        await conn.execute("DELETE FROM quota_usage")
    await clock.advance(59.0)
    assert await admitted(quotas, 1) == 0
    await clock.advance(2.0)
    assert await admitted(quotas, 12) == 10


async def test_quota_counts_in_memory_are_bounded(
    database: Database, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    quotas = make_quotas(database, clock, size=3)
    for number in range(5):
        assert await admitted(quotas, 2, f"user:{number}") == 2
    assert "too many quota counts" in caplog.text
    await quotas.flush()
    assert {key[1]: used for key, used in (await stored(database)).items()} == {f"user:{at}": 2 for at in range(3)}
    # Those that were put out of memory are read again, also while they wait to be written.
    assert await admitted(quotas, 1, "user:0") == 1
    for number in range(1, 4):
        await take(quotas, TEN, f"user:{number}")
    assert (await take(quotas, TEN, "user:0")).remaining == 6


async def test_quota_counts_of_an_erased_user_do_not_come_back(database: Database, clock: FakeClock) -> None:
    quotas = make_quotas(database, clock)
    assert await admitted(quotas, 4) == 4
    await quotas.flush()
    assert await admitted(quotas, 2) == 2
    assert await admitted(quotas, 2, "user:bob") == 2
    async with database.transaction() as conn:
        await auth.erase(conn, APP, "ann")
        await erase_user(conn, APP, "ann")
        writing = asyncio.create_task(quotas.flush())  # waits for the end of the transaction
        await asyncio.sleep(0)
    await writing
    assert await stored(database) == {("principal", "user:bob", "hint", "2030-01-01"): 2}


async def test_quota_counts_of_old_months_are_deleted(database: Database, clock: FakeClock) -> None:
    async with database.connection() as conn:
        await conn.execute(
            """INSERT INTO quota_usage SELECT 'shop', 'principal', 'user:' || n, 'hint', month, 1, syncbeat_now()
               FROM generate_series(1, 30) n, unnest($1::date[]) month""",
            [date(2029, 9, 1), date(2029, 10, 1), date(2029, 11, 1), date(2030, 1, 1)],
        )
    assert await Retention(database, OLD_ROWS, clock).sweep() == {"quota_usage": 30}
    assert {key[3] for key in await stored(database)} == {"2029-10-01", "2029-11-01", "2030-01-01"}
