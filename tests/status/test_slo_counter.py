"""Tests the counts of objectives in PostgreSQL: processes add up, restarts keep them, an outage loses none."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.errors import ConfigurationError, DependencyDown
from syncbeat_server.ops.metrics.rpc import CALL_SECONDS
from syncbeat_server.status.figures_entry import put_figure
from syncbeat_server.status.model import FigureRule, Goals, Series, SloReport, Sums, Verdict
from syncbeat_server.status.policy.slo_windows import SloTimes, Span
from syncbeat_server.status.slo_counter import SloCounter
from syncbeat_server.status.slo_report import SloReporter, SloRule
from syncbeat_server.status.store import slo_counts, slo_figures
from syncbeat_server.storage.postgres.database import Database
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import FakeClock, wait_until

pytestmark = pytest.mark.store

TIMES = SloTimes()
COMPLAINTS = FigureRule("complaints", 5.0, 20.0)


class Process:
    """The objectives of one process: its calls, those of them that failed, and who reports."""

    def __init__(self, database: Database, clock: FakeClock, times: SloTimes = TIMES) -> None:
        self.calls = self.failed = 0
        self.counter = SloCounter(database, clock, times)
        self.counter.add_counters(self.read)
        rule = SloRule(Goals(), times, (COMPLAINTS,), 3_600.0, CALL_SECONDS)
        self.reporter = SloReporter(self.counter, database, clock, rule)

    def read(self) -> Sums:
        return {Series.CALLS: (float(self.calls), float(self.failed), float(self.failed))}

    def serve(self, calls: int, failed: int = 0) -> None:
        self.calls += calls
        self.failed += failed

    async def report(self, window_s: float | None = None) -> SloReport:
        return await self.reporter.report(window_s)


def figure(report: SloReport, name: str) -> tuple[float, Verdict]:
    return next((one.value, one.verdict) for one in report.triggers if one.name == name)


def budget(report: SloReport, name: str = "availability") -> float:
    return next(one.budget_left for one in report.objectives if one.name == name)


async def test_two_processes_add_up(database: Database, clock: FakeClock) -> None:
    one, two = Process(database, clock), Process(database, clock)
    one.serve(1_000)
    two.serve(1_000, failed=10)
    await asyncio.gather(one.counter.write(), two.counter.write())
    for process in (one, two):
        report = await process.report()
        assert (report.workload.calls, report.workload.errors) == (2_000, 10)
        assert figure(report, "errors") == (0.005, Verdict.OK)
    one.serve(500)
    assert (await one.report()).workload.calls == 2_500, "it knows what it has not written yet"
    assert (await two.report()).workload.calls == 2_000
    await one.counter.write()
    assert (await two.report()).workload.calls == 2_500


async def test_restart_keeps_the_budget(database: Database, clock: FakeClock) -> None:
    first = Process(database, clock)
    first.serve(100_000, failed=50)
    await first.counter.write()
    before = budget(await first.report())
    assert before == pytest.approx(0.5)
    await clock.advance(29 * 86_400.0)
    after = await Process(database, clock).report()
    assert budget(after) == before
    assert after.workload.calls == 0, "the last hour had none"
    assert after.window_s == 3_600.0
    await clock.advance(2 * 86_400.0)
    assert budget(await Process(database, clock).report()) == 1.0


async def test_windows_end_when_their_time_is_over(database: Database, clock: FakeClock) -> None:
    process = Process(database, clock)
    process.serve(1_000, failed=100)
    await process.counter.write()
    report = await process.report()
    assert report.verdict is Verdict.ROLLBACK
    rate, verdict = figure(report, "availability_fast_burn")
    assert (round(rate), verdict) == (100, Verdict.ROLLBACK)
    await clock.advance(360.0)
    assert figure(await process.report(), "availability_fast_burn") == (0.0, Verdict.OK), "five minutes are over"
    assert figure(await process.report(), "errors") == (0.1, Verdict.ROLLBACK)
    await clock.advance(3_600.0)
    assert figure(await process.report(), "errors") == (0.0, Verdict.OK)
    assert (await process.report()).verdict is Verdict.WARN, "the budget of 30 days burnt over the last six hours"
    assert (await process.report(86_400.0)).workload.calls == 1_000
    await clock.advance(6 * 3_600.0)
    assert (await process.report()).verdict is Verdict.OK


async def test_scaled_windows_end_sooner(database: Database, clock: FakeClock) -> None:
    process = Process(database, clock, SloTimes(1 / 360))  # an hour is ten seconds
    process.serve(1_000, failed=100)
    await process.counter.write()
    assert (await process.report()).verdict is Verdict.ROLLBACK
    await clock.advance(12.0)
    assert (await process.report()).verdict is Verdict.WARN
    await clock.advance(60.0)
    assert (await process.report()).verdict is Verdict.OK


async def test_outage_turns_the_verdict_and_loses_nothing(
    stores: EmbeddedStores, database: Database, clock: FakeClock
) -> None:
    process = Process(database, clock)
    process.serve(1_000)
    await process.counter.write()
    stores.kill_postgres()
    try:
        process.serve(100, failed=100)
        with pytest.raises(DependencyDown):
            await process.counter.write()
        down = await process.report()
        assert (down.verdict, figure(down, "database_down")) == (Verdict.ROLLBACK, (1.0, Verdict.ROLLBACK))
        assert (down.workload.calls, down.workload.errors, down.objectives) == (100, 100, ())
        assert await process.reporter.standing() is None
    finally:
        stores.start_postgres()

    async def written() -> bool:
        try:
            await process.counter.write()
        except DependencyDown:
            return False
        return True

    await wait_until(written)
    report = await Process(database, clock).report()
    assert (report.workload.calls, report.workload.errors) == (1_100, 100)
    assert figure(report, "database_down") == (0.0, Verdict.OK)
    assert report.verdict is Verdict.ROLLBACK, "the hour had 9 % of failures"


async def test_counts_of_an_outage_fall_into_the_time_of_it(database: Database, clock: FakeClock) -> None:
    process = Process(database, clock)
    process.serve(100, failed=100)
    process.counter.collect()
    await clock.advance(1_800.0)
    process.serve(1_000)
    await process.counter.write()
    spans = [TIMES.window(span) for span in (Span.FIVE_MINUTES, Span.HOUR)]
    async with database.connection() as conn:
        five_minutes, hour = await slo_counts.sums(conn, spans)
    assert (five_minutes[Series.CALLS], hour[Series.CALLS]) == ((1_000.0, 0.0, 0.0), (1_100.0, 100.0, 100.0))


async def test_report_during_a_slow_write_loses_nothing(
    database: Database, database_urls: DatabaseUrls, clock: FakeClock
) -> None:
    process = Process(database, clock)
    await process.counter.write()
    process.serve(10)
    blocker = await asyncpg.connect(database_urls.admin_url)
    try:
        await blocker.execute("BEGIN")
        await blocker.execute("LOCK TABLE slo_counts")
        writing = asyncio.create_task(process.counter.write())
        await wait_until(lambda: not process.counter.unwritten())
        process.serve(5)
        report = await process.report()
        assert figure(report, "database_down")[1] is Verdict.ROLLBACK
    finally:
        await blocker.close()
    await asyncio.gather(writing, return_exceptions=True)  # PostgreSQL may have given it up for the lock
    await process.counter.write()
    assert (await process.report()).workload.calls == 15


async def test_unwritten_counts_are_bounded(database: Database, clock: FakeClock) -> None:
    process = Process(database, clock)
    for _ in range(200):
        process.serve(10)
        process.counter.collect()
        await clock.advance(60.0)
    unwritten = process.counter.unwritten()
    assert len(unwritten) == 60
    assert sum(counts[Series.CALLS][0] for _, counts in unwritten) == 2_000
    await process.counter.write()
    assert process.counter.unwritten() == []
    assert (await process.report(12 * 3_600.0)).workload.calls == 2_000


async def test_many_processes_write_without_deadlocks(database: Database, clock: FakeClock) -> None:
    processes = [Process(database, clock) for _ in range(12)]
    for _ in range(3):
        for process in processes:
            process.serve(10)
            process.counter.collect()
        await clock.advance(60.0)
    await asyncio.gather(*(process.counter.write() for process in processes))
    assert (await processes[0].report()).workload.calls == 360


async def test_old_buckets_are_deleted(database: Database, clock: FakeClock) -> None:
    process = Process(database, clock)
    process.serve(10)
    await process.counter.write()
    async with database.transaction() as conn:
        assert (await slo_counts.delete_old(conn, 100, None)).gone == 0
    await clock.advance(9 * 3_600.0)
    async with database.transaction() as conn:
        assert (await slo_counts.delete_old(conn, 100, None)).gone == 1, "the minute"
    assert (await process.report(12 * 3_600.0)).workload.calls == 10
    await clock.advance(32 * 86_400.0)
    async with database.transaction() as conn:
        assert (await slo_counts.delete_old(conn, 100, None)).gone == 1, "the hour"


async def test_deadlocks_are_counted_once_by_all_processes(
    database: Database, database_urls: DatabaseUrls, clock: FakeClock
) -> None:
    one, two = Process(database, clock), Process(database, clock)
    await one.counter.write()
    await deadlock(database_urls)

    async def told() -> float:
        await asyncio.gather(one.counter.write(), two.counter.write())
        return figure(await one.report(), "deadlocks")[0]

    assert await wait_until(told) == 1.0
    await asyncio.gather(one.counter.write(), two.counter.write())
    assert figure(await two.report(), "deadlocks") == (1.0, Verdict.WARN)


async def test_deadlocks_are_read_under_the_lock_of_their_mark(
    database: Database, database_urls: DatabaseUrls, clock: FakeClock
) -> None:
    process = Process(database, clock)
    await process.counter.write()
    async with database.transaction() as conn:
        assert not await slo_counts.has_new_deadlocks(conn)  # which reads the count, as the first statement may
        await deadlock(database_urls)

        async def counted() -> bool:
            async with database.connection() as other:
                return await slo_counts.has_new_deadlocks(other)

        await wait_until(counted)
        assert await slo_counts.take_deadlocks(conn) == 1.0


async def deadlock(urls: DatabaseUrls) -> None:
    """Let two sessions wait for each other until PostgreSQL ends one."""
    first, second = await asyncpg.connect(urls.admin_url), await asyncpg.connect(urls.admin_url)
    try:
        for conn, own in ((first, 1), (second, 2)):
            await conn.execute("SET deadlock_timeout = '10ms'")
            await conn.execute("BEGIN")
            await conn.execute("SELECT pg_advisory_xact_lock($1)", own)
        locked = await asyncio.gather(
            first.execute("SELECT pg_advisory_xact_lock(2)"),
            second.execute("SELECT pg_advisory_xact_lock(1)"),
            return_exceptions=True,
        )
        assert [type(one) for one in locked if isinstance(one, Exception)] == [asyncpg.DeadlockDetectedError]
    finally:
        await first.close()
        await second.close()


async def test_figures_from_outside_count_until_they_are_old(database: Database, clock: FakeClock) -> None:
    process = Process(database, clock)
    assert "complaints" not in {one.name for one in (await process.report()).triggers}
    for number in range(20):  # of rules that there were once
        await put_figure(database, (FigureRule(f"a{number}", 5.0, 20.0),), f"a{number}", 1.0)
    await put_figure(database, (COMPLAINTS,), "complaints", 21.0)
    assert figure(await process.report(), "complaints") == (21.0, Verdict.ROLLBACK)
    await put_figure(database, (COMPLAINTS,), "complaints", 6.0)
    report = await process.report()
    assert (figure(report, "complaints"), report.verdict) == ((6.0, Verdict.WARN), Verdict.WARN)
    await clock.advance(3_601.0)
    assert (await process.report()).verdict is Verdict.OK
    await clock.advance(31 * 86_400.0)
    async with database.transaction() as conn:
        assert (await slo_figures.delete_old(conn, 30, None)).gone == 21


@pytest.mark.parametrize(("name", "value"), [("tickets", 1.0), ("complaints", float("nan")), ("", 1.0)])
async def test_figures_that_nobody_named_are_refused(database: Database, name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match="slo put"):
        await put_figure(database, (COMPLAINTS,), name, value)


async def test_counter_writes_each_tick(database: Database, clock: FakeClock) -> None:
    process = Process(database, clock)
    process.serve(7)
    task = asyncio.create_task(process.counter.run())
    try:
        await clock.advance(TIMES.tick_s)
        assert (await Process(database, clock).report()).workload.calls == 7
    finally:
        task.cancel()


async def test_standing_tells_burn_rates_by_window(database: Database, clock: FakeClock) -> None:
    process = Process(database, clock)
    process.serve(1_000, failed=5)
    stands = await process.reporter.standing()
    assert stands is not None
    assert stands.burn_rates["availability", "5m"] == pytest.approx(5.0)
    assert {window for _, window in stands.burn_rates} == {"5m", "30m", "1h", "6h", "3d"}
    assert {one.name for one in stands.objectives} == {objective for objective, _ in stands.burn_rates}
    assert stands.budgets["availability"] == stands.objectives[0].budget_left == pytest.approx(-4.0)


async def test_standing_of_few_events_alarms_nobody(database: Database, clock: FakeClock) -> None:
    process = Process(database, clock)
    process.serve(99, failed=99)
    stands = await process.reporter.standing()
    assert stands is not None
    assert (set(stands.budgets.values()), set(stands.burn_rates.values())) == ({1.0}, {0.0})
    assert stands.objectives[0].budget_left < 0, "it is told all the same"
