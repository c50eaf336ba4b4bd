"""Calls that cost much of a burst, or more than it, on real Valkey: each ends, admitted or refused with a true wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from syncbeat_server.ratelimit.lease import LeaseKey, PendingTake, Refused, Want
from syncbeat_server.ratelimit.model import Rate
from syncbeat_server.ratelimit.shared_limits import SharedLimits
from syncbeat_server.storage.redis.shared_rates import HELD_S
from tests.ratelimit.test_shared_limits import CLOCK, SLOW, processes, rule
from tests.support.fake_clock import wait_until
from tests.support.valkeys import open_redis

pytestmark = pytest.mark.store

BURST = 1_000
ENDS_S = 20.0
"""Seconds in which a call has to end on a busy machine; of those that hung none would."""


def bucket(prefix: str) -> LeaseKey:
    return (rule(Rate(SLOW, BURST), f"{prefix}:"), "ann")


@asynccontextmanager
async def three(url: str) -> AsyncIterator[list[SharedLimits]]:
    """Three processes that know of each other, so that each has units held back for the others."""
    async with processes(url, 3) as all_limits:
        await wait_until(lambda: all(one.share == 2.0 / 3.0 for one in all_limits))
        yield all_limits


async def ended(limits: SharedLimits, *wants: Want) -> Refused | None:
    """Make a call that has to end: None if it is admitted."""
    taken = limits.take(wants, CLOCK.monotonic())
    async with asyncio.timeout(ENDS_S):
        return await limits.finish(taken) if isinstance(taken, PendingTake) else taken


@pytest.mark.parametrize("cost", [500.0, 930.0, 990.0, 1_000.0, 1_100.0, 5_000.0])
async def test_rate_limit_call_of_any_cost_takes_an_empty_bucket(redis_url: str, cost: float) -> None:
    key = bucket("empty")
    async with three(redis_url) as (mine, other, _):
        assert await ended(mine, (key, cost)) is None
        refused = await ended(other, (key, cost))
        assert refused is not None or cost == 500.0
        last = refused or await ended(other, (key, cost))
        assert last is not None
        assert last.decision.wait_s == pytest.approx((2 * min(cost, BURST) - BURST or cost) / SLOW, rel=0.01)


@pytest.mark.parametrize(("before", "cost"), [(5.0, 990.0), (80.0, 920.0), (450.0, 550.0), (550.0, 450.0)])
async def test_rate_limit_call_that_just_fits_is_admitted(redis_url: str, before: float, cost: float) -> None:
    key = bucket("fits")
    async with three(redis_url) as (mine, other, _):
        assert await ended(other, (key, before)) is None
        assert await ended(mine, (key, cost)) is None


@pytest.mark.parametrize(("before", "cost"), [(80.0, 921.0), (450.0, 551.0), (550.0, 451.0)])
async def test_rate_limit_call_that_just_does_not_fit_is_told_its_wait(
    redis_url: str, before: float, cost: float
) -> None:
    key = bucket("full")
    async with three(redis_url) as (mine, other, _):
        assert await ended(other, (key, before)) is None
        refused = await ended(mine, (key, cost))
        assert refused is not None
        assert refused.decision.wait_s == pytest.approx(1.0 / SLOW, rel=0.1)


async def test_rate_limit_call_is_admitted_by_what_another_gave_back(redis_url: str) -> None:
    """A process that holds units another limit refused asks for the rest alone, and does not wait for its own units."""
    key, last = bucket("returned"), (rule(Rate(SLOW, 1), "last:"), "ann")
    async with three(redis_url) as (mine, other, _):
        assert await ended(other, (last, 1.0)) is None
        refused = await ended(mine, (key, 600.0), (last, 1.0))
        assert refused is not None
        assert refused.rule is last[0]
        assert await ended(mine, (key, 950.0)) is None


async def test_rate_limit_calls_of_large_costs_at_once_all_end(redis_url: str) -> None:
    costs = [1_100.0, 990.0, 700.0, 480.0, 300.0, 20.0, 1.0]
    async with three(redis_url) as all_limits:
        for number in range(len(costs)):
            key = bucket(f"many-{number}")
            calls = [(one, cost) for cost in costs[number:] + costs[:number] for one in all_limits]
            answers = await asyncio.gather(*(ended(one, (key, cost)) for one, cost in calls))
            admitted = sum(min(cost, BURST) for (_, cost), answer in zip(calls, answers, strict=True) if not answer)
            assert 700.0 <= admitted <= 1.03 * BURST
            assert all(answer.decision.wait_s > 0.0 for answer in answers if answer)


async def test_rate_limit_call_waits_for_held_units_within_bounds(redis_url: str) -> None:
    """A bucket that is half full anew again and again holds its last units for ever; a call does not wait for ever."""
    key = bucket("held")
    fill = """
    local now = redis.call('TIME'); now = now[1] + now[2] / 1e6
    redis.call('SET', KEYS[1], string.format('%.7f %.7f', now + ARGV[1] / ARGV[2], now), 'PX', 60000)
    return {}
    """
    async with open_redis(redis_url, CLOCK, "limits") as bus, three(redis_url) as (limits, *_):

        async def refill() -> None:
            await bus.run_script(fill, [f"{bus.own}limit:{key[0].prefix}ann"], 980.0, SLOW)

        async def go_on() -> None:
            while True:
                await refill()

        await refill()
        filling = asyncio.ensure_future(go_on())
        try:
            refused = await ended(limits, (key, 18.0))
        finally:
            filling.cancel()
        assert refused is not None
        assert refused.decision.wait_s == HELD_S
        assert refused.decision.remaining == 20
        assert await ended(limits, (bucket("free"), 18.0)) is None
