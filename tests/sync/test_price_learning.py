"""Hints learn: the price meets the target, the prior follows the app, and many processes learn one thing."""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections.abc import Sequence

import pytest

from syncbeat_server.defaults import SchedulingPolicy
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import Cursor, DeviceKey, Hint, Priority, ScopeState, Signal, Windows
from syncbeat_server.sync.policy.belief import Outlook
from syncbeat_server.sync.policy.fit_samples import Fitted, History, Known
from syncbeat_server.sync.policy.interval import Bounds, poll_interval
from syncbeat_server.sync.policy.price_controller import Target, TargetKind, first_price
from syncbeat_server.sync.policy.price_state import Sums
from syncbeat_server.sync.policy.rhythm import HOUR_S, HOURS, WeekEvidence, rhythm_of
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR, Prior
from syncbeat_server.sync.store import app_tuning, change_samples
from syncbeat_server.sync.tuning.hint_recorder import sampled
from syncbeat_server.sync.tuning.nightly_fit import NightlyFit, fit_in_child
from syncbeat_server.sync.tuning.price_updates import HintTuner, TuningGoal
from syncbeat_server.sync.tuning.rhythm_fit import learn_rhythm
from tests.support.build import APP
from tests.support.databases import DatabaseUrls, open_database
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.store

DAY_S = 86_400.0
MEAN = TuningGoal(Target(TargetKind.MEAN, 15.0), Bounds(1.0, 120.0))


def process(database: Database, clock: FakeClock, goal: TuningGoal = MEAN) -> HintTuner:
    return HintTuner(database, lambda: {APP: goal}, lambda: (), clock)


class Fleet:
    """Devices that poll when told to, each with a scope of its own; each asks the same process always."""

    def __init__(self, processes: Sequence[HintTuner], rates_per_s: Sequence[float], now: float) -> None:
        self._dice = random.Random(11)
        self._processes = processes
        self._rates = rates_per_s
        self._due = [(now + self._dice.uniform(0.0, 30.0), place) for place in range(len(rates_per_s))]
        heapq.heapify(self._due)
        self._heads = [1] * len(rates_per_s)
        self._changes = [[now + self._dice.expovariate(rate)] for rate in rates_per_s]
        self._newest = [now] * len(rates_per_s)
        self.delays: list[float] = []
        self.polls = 0

    def live(self, until: float) -> None:
        """Poll as told until a moment."""
        while self._due[0][0] < until:
            at, place = heapq.heappop(self._due)
            heapq.heappush(self._due, (at + self._poll(at, place), place))

    def _poll(self, at: float, place: int) -> float:
        shows, rate = self._heads[place], self._rates[place]
        (change,) = self._changes[place]
        while change <= at:
            self.delays.append(at - change)
            self._heads[place] += 1
            self._newest[place] = change
            change += self._dice.expovariate(rate)
        self._changes[place] = [change]
        self.polls += 1
        learning = self._processes[place % len(self._processes)]
        tuning = learning.tuning(APP)
        wait = poll_interval(Outlook(rate, 0.0, 1e-3), tuning.price, 1.0, tuning.bounds, tuning.late_s)
        state = ScopeState("s", "e", self._heads[place], Signal(None, Windows(0.0, 0.0, self._newest[place], 0.0)))
        hint = Hint(
            wait,
            Priority.FAST,
            at,
            self._heads[place] > shows,
            (),
            prefer_stream=False,
            valid_s=300.0,
            unpaced_s=wait,
            rate_per_s=rate,
        )
        device = DeviceKey(APP, str(place), "phone")
        learning.recorder.record_poll(device, at, hint, {"s": state}, [Cursor("s", "e", shows)])
        return wait


async def live(clock: FakeClock, processes: Sequence[HintTuner], fleet: Fleet, minutes: int) -> None:
    """Let the devices poll and the processes learn."""
    for _ in range(minutes):
        await clock.advance(60.0)
        fleet.live(clock.now().timestamp())
        for one in processes:
            await one.write()
        for one in processes:
            await one.read()


RATES = [math.exp(z) / 3600 for z in (1.0, 2.0, 3.0, 4.0)] * 20


@pytest.mark.parametrize("processes", [1, 3])
async def test_price_meets_the_mean_within_an_hour_with_many_processes(
    database: Database, clock: FakeClock, processes: int
) -> None:
    learning = [process(database, clock) for _ in range(processes)]
    fleet = Fleet(learning, RATES, clock.now().timestamp())
    await live(clock, learning, fleet, 60)
    fleet.delays.clear()
    await live(clock, learning, fleet, 30)
    assert sum(fleet.delays) / len(fleet.delays) == pytest.approx(15.0, rel=0.07)
    assert len({one.tuning(APP) for one in learning}) == 1
    first = first_price(MEAN.target)
    assert learning[0].tuning(APP).price.staleness < first.staleness / 1.5  # this fleet is not the prior's
    async with database.connection() as conn:
        (row,) = (await app_tuning.read_app_tunings(conn)).values()
    assert row.state.mean_s == pytest.approx(15.0, rel=0.25)  # of one minute


async def test_price_meets_a_p95_target(database: Database, clock: FakeClock) -> None:
    goal = TuningGoal(Target(TargetKind.P95, 40.0), Bounds(1.0, 600.0))
    learning = [process(database, clock, goal)]
    fleet = Fleet(learning, RATES, clock.now().timestamp())
    await live(clock, learning, fleet, 90)
    fleet.delays.clear()
    await live(clock, learning, fleet, 60)
    late = sum(delay > 40.0 for delay in fleet.delays) / len(fleet.delays)
    assert late == pytest.approx(0.05, abs=0.02)


async def test_price_meets_a_budget(database: Database, clock: FakeClock) -> None:
    goal = TuningGoal(Target(TargetKind.BUDGET, 500_000.0), Bounds(1.0, 120.0))
    learning = [process(database, clock, goal), process(database, clock, goal)]
    fleet = Fleet(learning, RATES, clock.now().timestamp())
    await live(clock, learning, fleet, 30)
    fleet.polls = 0
    await live(clock, learning, fleet, 30)
    assert fleet.polls * 48 == pytest.approx(500_000, rel=0.05)


async def test_price_is_adjusted_by_one_process_each_minute(database: Database, clock: FakeClock) -> None:
    first, second = process(database, clock), process(database, clock)
    await first.write()
    initial_state = first.tuning(APP).price
    prices = set()
    for _ in range(3):
        await clock.advance(20.0)
        for one in (first, second):
            one.recorder.record_streamed_changes(APP, clock.now().timestamp(), [clock.now().timestamp() - 60.0] * 50)
        await asyncio.gather(first.write(), second.write())
        await asyncio.gather(first.read(), second.read())
        assert first.tuning(APP) == second.tuning(APP)
        prices.add(first.tuning(APP).price)
    assert len(prices) == 2  # as it was, and once adjusted
    async with database.connection() as conn:
        row = (await app_tuning.read_app_tunings(conn))[APP]
    assert row.state.tuned_at == clock.now().timestamp()
    assert row.state.mean_s == 60.0
    assert row.state.price.staleness == pytest.approx(initial_state.staleness * math.exp(0.5))  # the longest step
    # What came with the adjustment is part of it, or of the next: nothing is counted twice, nothing is lost.
    assert row.state.since.changes in (0.0, 50.0)


async def test_price_measurements_survive_a_database_outage(database_urls: DatabaseUrls, clock: FakeClock) -> None:
    async with open_database(database_urls.app_url, size=1, name="test") as closed:
        learning = process(closed, clock)
        await learning.write()
        await learning.read()
        before = learning.tuning(APP)
        learning.recorder.record_streamed_changes(APP, clock.now().timestamp(), [clock.now().timestamp() - 60.0] * 50)
        await closed._pool.driver.close()
        with pytest.raises(DependencyDown):
            await learning.write()
        assert learning.tuning(APP) == before
    async with open_database(database_urls.app_url, size=1, name="test") as opened:
        learning._database = opened
        await clock.advance(10.0)
        await learning.write()
        async with opened.connection() as conn:
            row = (await app_tuning.read_app_tunings(conn))[APP]
    assert row.state.since.changes == 50.0


async def test_price_restarts_for_another_target(database: Database, clock: FakeClock) -> None:
    goals = {APP: MEAN}
    learning = HintTuner(database, lambda: goals, lambda: (), clock)
    await learning.write()
    await learning.read()
    goals[APP] = TuningGoal(Target(TargetKind.MEAN, 60.0), Bounds(10.0, 240.0), SchedulingPolicy.SQRT_EWMA)
    await learning.read()
    tuning = learning.tuning(APP)
    assert (tuning.price, tuning.bounds) == (first_price(goals[APP].target), Bounds(10.0, 240.0))
    assert (tuning.policy, tuning.target) == (SchedulingPolicy.SQRT_EWMA, "a mean staleness of 60 s")
    await learning.write()
    async with database.connection() as conn:
        assert (await app_tuning.read_app_tunings(conn))[APP].state.target == goals[APP].target


async def test_price_learning_runs_in_the_background(database: Database, clock: FakeClock) -> None:
    learning = process(database, clock)
    running = asyncio.ensure_future(learning.run())
    try:
        for _ in range(8):
            learning.recorder.record_streamed_changes(APP, clock.now().timestamp(), [clock.now().timestamp() - 1.0])
            learning.recorder.record_change(APP, "s", clock.now().timestamp())
            await clock.advance(10.0)
        async with database.connection() as conn:
            row = (await app_tuning.read_app_tunings(conn))[APP]
            assert row.state.since != Sums()
            assert await conn.fetchval("SELECT count(*) FROM change_samples") == 6
    finally:
        running.cancel()


# ------------------------------------------------------------------------------------------------------- the prior


async def add_scopes(database: Database, count: int, clock: FakeClock) -> None:
    async with database.connection() as conn:
        await conn.execute(
            """INSERT INTO scopes (app_id, scope, created_at, changed_at)
               SELECT $1, 'scope-' || n, $3::timestamptz, $3::timestamptz FROM generate_series(1, $2) n""",
            APP,
            count,
            clock.now(),
        )


async def add_day(database: Database, clock: FakeClock, scopes: int, each: int) -> None:
    """Every scope changes so often, evenly, in the day that ends now."""
    now = clock.now().timestamp()
    samples = [
        (f"scope-{n + 1}", now - DAY_S + (k + 0.5) * DAY_S / each + n) for n in range(scopes) for k in range(each)
    ]
    async with database.connection() as conn:
        await change_samples.add_samples(conn, APP, samples)
        await conn.execute("UPDATE scopes SET changed_at = syncbeat_now()")


class Solver:
    """Says what it was asked, and answers a prior."""

    def __init__(self, answer: Fitted | None) -> None:
        self.asked: list[Sequence[History]] = []
        self.before: list[Known] = []
        self._answer = answer

    async def __call__(self, histories: Sequence[History], before: Known) -> Fitted | None:
        self.asked.append(histories)
        self.before.append(before)
        return self._answer


WEEK = WeekEvidence(tuple(map(float, range(HOURS))), (HOUR_S,) * HOURS, 0.25)
FOUND = Fitted(Prior(1e-4, 1e-3, 1e-2, 3.0, 1e-4, 1.0), 12, 345, WEEK)


async def test_prior_fit_runs_once_a_day_for_all_processes(database: Database, clock: FakeClock) -> None:
    learning = process(database, clock)
    await learning.write()
    await add_scopes(database, 30, clock)
    solve = Solver(FOUND)
    nightly = [NightlyFit(database, lambda: [APP], clock, solve) for _ in range(2)]
    await clock.advance(DAY_S)
    await add_day(database, clock, 25, 10)
    answers = await asyncio.gather(*(one.fit_if_due(APP) for one in nightly))
    assert sorted(answers, key=str) == [FOUND, None]  # whose turn it was not, did nothing
    (histories,) = solve.asked
    assert len(histories) == 30
    assert sorted(len(one.changes) for one in histories) == [0] * 5 + [10] * 25
    now = clock.now().timestamp()
    assert all(one.start_s >= now - DAY_S and one.end_s == now - 120.0 for one in histories)
    assert all(
        one.start_s <= min(one.changes, default=now) and list(one.changes) == sorted(one.changes) for one in histories
    )
    assert solve.before == [Known(DEFAULT_PRIOR)]
    await learning.read()
    assert learning.tuning(APP).prior == FOUND.prior
    assert learning.tuning(APP).rhythm == rhythm_of(WEEK)
    await clock.advance(12 * 3_600.0)
    assert await nightly[0].fit_if_due(APP) is None
    await clock.advance(12 * 3_600.0)
    assert await nightly[1].fit_if_due(APP) == FOUND
    assert solve.before == [Known(DEFAULT_PRIOR), Known(FOUND.prior, WEEK)]


async def test_prior_fit_from_little_evidence_is_repeated_soon(database: Database, clock: FakeClock) -> None:
    await process(database, clock).write()
    await add_scopes(database, 3, clock)
    nightly = NightlyFit(database, lambda: [APP], clock, Solver(FOUND))
    due = []
    for _ in range(60):
        await clock.advance(3_600.0)
        due.append(await nightly.fit_if_due(APP) is not None)
    assert [hour for hour, fitted in enumerate(due, 1) if fitted] == [1, 8, 15, 22, 29, 52]


async def test_prior_fit_failure_keeps_the_prior_and_is_retried(database: Database, clock: FakeClock) -> None:
    learning = process(database, clock)
    await learning.write()
    await add_scopes(database, 3, clock)
    await clock.advance(DAY_S)
    await add_day(database, clock, 3, 5)
    little = Solver(None)
    assert await NightlyFit(database, lambda: [APP], clock, little).fit_if_due(APP) is None
    assert len(little.asked) == 1

    async def crash(histories: Sequence[History], before: Known) -> Fitted | None:
        raise ValueError("no answer")

    await clock.advance(3_600.0)
    crashing = NightlyFit(database, lambda: [APP], clock, crash)
    with pytest.raises(ValueError, match="no answer"):
        await crashing.fit_if_due(APP)
    assert await NightlyFit(database, lambda: [APP], clock, little).fit_if_due(APP) is None
    assert len(little.asked) == 1  # the turn was taken: an hour's wait
    await clock.advance(3_600.0)
    await NightlyFit(database, lambda: [APP], clock, little).fit_if_due(APP)
    assert len(little.asked) == 2
    await learning.read()
    assert learning.tuning(APP).prior == DEFAULT_PRIOR


async def test_prior_fit_in_a_child_process() -> None:
    dice = random.Random(2)
    start = 1_900_000_000.0
    histories = [
        History(start, start + DAY_S, sorted(start + dice.uniform(0, DAY_S) for _ in range(12))) for _ in range(25)
    ]
    fitted = await fit_in_child(histories, Known(DEFAULT_PRIOR))
    assert fitted is not None
    assert (fitted.scopes, fitted.changes) == (25, 300)
    assert fitted.prior.cold_per_s * 3_600 == pytest.approx(0.5, rel=0.15)
    assert fitted.week == learn_rhythm(histories, fitted.prior)
    assert await fit_in_child(histories[:5], Known(DEFAULT_PRIOR)) is None


async def test_prior_fit_sample_size_is_bounded(database: Database, clock: FakeClock) -> None:
    learning = process(database, clock)
    await learning.write()
    await add_scopes(database, 3_000, clock)
    solve = Solver(None)
    nightly = NightlyFit(database, lambda: [APP], clock, solve)
    await nightly.fit_if_due(APP)
    await learning.read()
    assert learning.recorder.sample_shares == {APP: 0.1}
    for number in range(1, 3_001):
        learning.recorder.record_change(APP, f"scope-{number}", clock.now().timestamp())
    await learning.write()
    async with database.connection() as conn:
        names = [row["scope"] for row in await conn.fetch("SELECT scope FROM change_samples")]
        assert names
        assert all(sampled(name, 0.1) for name in names)
        in_sql = await conn.fetch("SELECT scope FROM scopes WHERE syncbeat_sampled(scope, 0.1)")
    assert sorted(names) == sorted(row["scope"] for row in in_sql)  # SQL and Python mean the same scopes
    await clock.advance(3_600.0)
    await nightly.fit_if_due(APP)
    assert len(solve.asked[-1]) == len(names)


async def test_prior_fit_samples_are_thinned_and_expire(database: Database, clock: FakeClock) -> None:
    learning = process(database, clock)
    await learning.write()
    for number in range(3_000):
        learning.recorder.record_change(APP, str(number), clock.now().timestamp())
    await learning.write()
    await learning.read()
    assert learning.recorder.sample_shares == {APP: 0.5}
    async with database.connection() as conn:
        assert await conn.fetchval("SELECT count(*) FROM change_samples") == 2_000
        await clock.advance(2.1 * DAY_S)
        gone, _, _ = await change_samples.forget_samples(conn, 5_000)
        assert gone == 2_000


async def test_prior_fit_larger_sample_counts_from_its_start(database: Database, clock: FakeClock) -> None:
    learning = process(database, clock)
    await learning.write()
    async with database.connection() as conn:
        await change_samples.set_sample_share(conn, APP, 0.1)
        await add_scopes(database, 30, clock)
        await clock.advance(DAY_S)
        await conn.execute("UPDATE scopes SET changed_at = syncbeat_now()")
        solve = Solver(None)
        nightly = NightlyFit(database, lambda: [APP], clock, solve)
        await nightly.fit_if_due(APP)
        await clock.advance(3_600.0)
        await nightly.fit_if_due(APP)
    (small, large) = solve.asked
    assert len(small) < 10
    assert len(large) == 30
    assert {round(one.end_s - one.start_s) for one in large} == {3_600 - 240}
