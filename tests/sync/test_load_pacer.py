"""Processes that share the book of promised arrivals over real Valkey, and what they do under load."""

from __future__ import annotations

import heapq
import random
from collections.abc import AsyncIterator
from statistics import mean

import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.sync.hints.load_meter import LoadFigures, LoadLimits
from syncbeat_server.sync.hints.load_pacer import LoadPacer
from tests.support.fake_clock import FakeClock
from tests.support.valkeys import open_redis

pytestmark = pytest.mark.store

DEVICES = 20_000
EVERY_S = 111.0
UNLIMITED = LoadLimits(None, 1_000, 8)


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[RedisBus]:
    async with open_redis(redis_url, SystemClock()) as opened:
        yield opened


@pytest.fixture
async def nowhere(closed_port: int) -> AsyncIterator[RedisBus]:
    async with open_redis(f"redis://127.0.0.1:{closed_port}", SystemClock()) as opened:
        yield opened


class Seen:
    """Records what a process measures of itself, and what it tells its metrics."""

    def __init__(self) -> None:
        self.figures = LoadFigures()
        self.told = (0.0, 0, 0.0)

    def paced(self, stretch: float, booked_peak: int, booked_mean: float) -> None:
        self.told = stretch, booked_peak, booked_mean


def pacer(bus: RedisBus, clock: FakeClock, seen: Seen, limits: LoadLimits = UNLIMITED, seed: int = 1) -> LoadPacer:
    return LoadPacer(bus, clock, limits, lambda: seen.figures, seen, random.Random(seed).random)


async def after_an_outage(pacers: list[LoadPacer], clock: FakeClock, seconds: int) -> tuple[list[int], float]:
    """Arrivals by second at any of the processes, of devices that all came in the first; by how much waits grew."""
    chance = random.Random(7)
    devices = [clock.monotonic() + chance.random() for _ in range(DEVICES)]
    heapq.heapify(devices)
    arrivals, waits = [], []
    for second in range(1, seconds + 1):
        arrivals.append(0)
        while devices[0] < second:
            at = devices[0]
            wait = chance.choice(pacers).pace(EVERY_S, background=False, now=clock.now().timestamp())
            # The clock stands at the beginning of the second.
            heapq.heapreplace(devices, at + wait)
            waits.append(wait)
            arrivals[-1] += 1
        await clock.advance(1.0)
        for one in pacers:
            await one.tick()
    return arrivals, mean(waits) / EVERY_S - 1.0


async def test_load_leveling_of_two_processes_after_an_outage(bus: RedisBus) -> None:
    clock, seen = FakeClock(), [Seen(), Seen()]
    pacers = [pacer(bus, clock, one, seed=seed) for seed, one in enumerate(seen)]
    arrivals, grown = await after_an_outage(pacers, clock, 720)
    levelled = arrivals[600:]
    assert max(levelled) / mean(levelled) <= 1.5
    assert abs(grown) <= 0.02
    assert seen[0].told[1:] == pytest.approx(seen[1].told[1:], rel=0.1), "both know what both have promised"
    assert seen[0].told[2] >= 0.8 * DEVICES / EVERY_S


async def test_load_leveling_without_redis_is_per_process(nowhere: RedisBus) -> None:
    clock = FakeClock()
    pacers = [pacer(nowhere, clock, Seen(), seed=seed) for seed in range(2)]
    arrivals, grown = await after_an_outage(pacers, clock, 720)
    assert max(arrivals[600:]) / mean(arrivals[600:]) <= 1.5
    assert abs(grown) <= 0.02


async def test_load_leveling_bookings_are_sent_when_redis_is_back(bus: RedisBus, nowhere: RedisBus) -> None:
    clock, seen = FakeClock(), Seen()
    alone = pacer(nowhere, clock, Seen())
    for _ in range(50):
        alone.pace(4.0, background=False, now=clock.now().timestamp())
    await alone.tick()
    alone._bus = bus  # it is back
    await alone.tick()
    await pacer(bus, clock, seen).tick()
    assert seen.told[2] == 5.0


async def test_load_stretch_compares_the_fleet_to_its_capacity(bus: RedisBus) -> None:
    clock, seen = FakeClock(), [Seen(), Seen()]
    limits = UNLIMITED._replace(capacity_per_s=100.0)
    pacers = [pacer(bus, clock, one, limits) for one in seen]

    async def requests(per_s: int, seconds: int) -> None:
        for _ in range(seconds):
            for one in seen:
                one.figures = one.figures._replace(started=one.figures.started + per_s)
            await clock.advance(1.0)
            for shared in pacers:
                await shared.tick()

    await requests(30, 40)
    assert [one.told[0] for one in seen] == [1.0, 1.0], "60 of 100 are borne"
    await requests(200, 40)
    stretched = [one.told[0] for one in seen]
    assert min(stretched) > 3.0
    assert stretched[0] == stretched[1], "all processes agree"
    assert [shared.overload for shared in pacers] == pytest.approx([0.75, 0.75], abs=0.01)
    assert "400% of what can be borne (rate)" in pacers[0].describe()
    waits = [pacers[0].pace(100.0, background=True, now=clock.now().timestamp()) for _ in range(50)]
    assert mean(waits) >= 90.0 * stretched[0]
    await requests(10, 600)
    assert [one.told[0] for one in seen] == [1.0, 1.0], "and it eases off"
    assert pacers[0].overload == 0.0


async def test_load_stretch_anticipates_bookings(bus: RedisBus) -> None:
    clock, seen = FakeClock(), Seen()
    foresees = pacer(bus, clock, seen, UNLIMITED._replace(capacity_per_s=10.0))
    for _ in range(2_000):
        foresees.pace(60.0, background=False, now=clock.now().timestamp())
    for _ in range(20):
        await clock.advance(1.0)
        await foresees.tick()
    assert seen.told[0] > 1.5
    assert "(promised)" in foresees.describe()


@pytest.mark.parametrize(
    ("figures", "lag_s", "named"),
    [
        (LoadFigures(in_flight=2_000), 0.0, "in_flight"),
        (LoadFigures(waiting=16), 0.0, "pool"),
        (LoadFigures(), 0.5, "lag"),
    ],
)
async def test_load_stretch_of_an_overloaded_process(
    bus: RedisBus, figures: LoadFigures, lag_s: float, named: str
) -> None:
    clock, seen = FakeClock(), Seen()
    busy = pacer(bus, clock, seen)
    seen.figures = figures
    for _ in range(11):
        await clock.advance(1.0)
        await busy.tick(lag_s)
    assert seen.told[0] == pytest.approx((2.0 / 0.8) ** 0.5)
    assert f"200% of what can be borne ({named})" in busy.describe()


async def test_load_stretch_ignores_one_full_second_in_ten(bus: RedisBus) -> None:
    clock, seen = FakeClock(), Seen()
    calm = pacer(bus, clock, seen)
    for second in range(30):
        seen.figures = LoadFigures(in_flight=4_000 if second % 10 == 5 else 0)
        await clock.advance(1.0)
        await calm.tick()
    assert seen.told[0] == 1.0


async def test_load_shedding_retry_after_follows_the_remaining_rate(bus: RedisBus) -> None:
    clock, seen = FakeClock(), Seen()
    served = pacer(bus, clock, seen)
    for count in (1_000, *[400] * 600):
        seen.figures = seen.figures._replace(started=seen.figures.started + count)
        await clock.advance(1.0)
        await served.tick()
    # It has served 1,000 a second ten minutes ago, which is believed to a half by now, and serves 400.
    returns = [served.retry_delay_s() for _ in range(3_000)]
    per_s = len(returns) / max(returns)
    assert 100 <= per_s <= 300
    assert [served.retry_delay_s() > max(returns)] == [True]
    await clock.advance(60.0)
    assert served.retry_delay_s() < 0.1, "all are back"


async def test_load_shedding_retry_after_above_fleet_capacity(
    bus: RedisBus,
) -> None:
    clock, seen = FakeClock(), [Seen(), Seen()]
    pacers = [pacer(bus, clock, one, UNLIMITED._replace(capacity_per_s=40.0)) for one in seen]

    async def calls(served: int, shed: int, seconds: int) -> None:
        for _ in range(seconds):
            for one in seen:
                figures = one.figures
                one.figures = figures._replace(started=figures.started + served + shed, shed=figures.shed + shed)
            await clock.advance(1.0)
            for shared in pacers:
                await shared.tick()

    await calls(5, 0, 300)
    # Each has half of 40 a second, though it could serve more, and 5 come anyway.
    assert max(pacers[0].retry_delay_s() for _ in range(60)) == pytest.approx(60 / 15, rel=0.05)
    await calls(20, 80, 600)
    assert max(pacers[1].retry_delay_s() for _ in range(60)) == pytest.approx(60 / 2, rel=0.05), (
        "a tenth is always spared"
    )


async def test_load_shedding_retry_after_ignores_unproven_capacity(bus: RedisBus) -> None:
    able = pacer(bus, FakeClock(), Seen(), UNLIMITED._replace(capacity_per_s=10_000.0))
    assert max(able.retry_delay_s() for _ in range(100)) == pytest.approx(1.0)


async def test_load_shedding_retry_after_is_at_most_five_minutes(bus: RedisBus) -> None:
    clock = FakeClock()
    full = pacer(bus, clock, Seen(), UNLIMITED._replace(capacity_per_s=10.0))
    assert max(full.retry_delay_s() for _ in range(9_000)) == 300.0
    await clock.advance(299.0)
    assert full.retry_delay_s() < 2.0, "and all are back by then"


async def test_reconnect_rate_after_a_drain_is_bounded(
    bus: RedisBus,
) -> None:
    clock, seen = FakeClock(), Seen()
    drained = pacer(bus, clock, seen)
    assert max(drained.reconnect_delay_s() for _ in range(1_000)) == pytest.approx(2.0)
    seen.figures = LoadFigures(streams=2_000)
    await clock.advance(10.0)
    await drained.tick()
    assert drained.reconnect_delay_s() == pytest.approx(0.002), "200 a second is less than is known to work"
    seen.figures = LoadFigures(streams=4_000)
    await clock.advance(1.0)
    await drained.tick()
    assert max(drained.reconnect_delay_s() for _ in range(1_000)) == pytest.approx(0.5)
