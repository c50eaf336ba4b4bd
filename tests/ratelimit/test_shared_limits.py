"""Limits that several processes share, on real Valkey: leases, waiting calls, several limits of one call, bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import Overloaded
from syncbeat_server.ratelimit.lease import LeaseKey, LeaseRule, LimitRule, PendingTake, Refused
from syncbeat_server.ratelimit.model import LimitSubject, MethodClass, Rate
from syncbeat_server.ratelimit.shared_limits import SharedLimits
from tests.support.fake_clock import wait_until
from tests.support.limit_load import admit
from tests.support.valkeys import open_redis

pytestmark = pytest.mark.store

CLOCK = SystemClock()
PATIENT = LeaseRule(answer_s=20.0)
COUNTING = LeaseRule(answer_s=20.0, count_s=0.25)
SLOW = 1e-3


def rule(rate: Rate, prefix: str = "app:") -> LimitRule:
    return LimitRule(prefix, rate, LimitSubject.PRINCIPAL, MethodClass.HINT)


@asynccontextmanager
async def sharing(url: str, settings: LeaseRule = PATIENT) -> AsyncIterator[SharedLimits]:
    """The limits of one process, with the tasks that it runs."""
    async with open_redis(url, CLOCK, "limits") as bus:
        limits = SharedLimits(bus, CLOCK, settings)
        limits.activate()
        running = asyncio.ensure_future(limits.run())
        try:
            yield limits
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await limits.close()


@asynccontextmanager
async def processes(url: str, count: int, settings: LeaseRule = PATIENT) -> AsyncIterator[list[SharedLimits]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(sharing(url, settings)) for _ in range(count)]


async def ask(limits: SharedLimits, key: LeaseKey, cost: float = 1.0) -> bool:
    return await admit(limits, key, CLOCK.monotonic(), cost)


@pytest.mark.parametrize("burst", [1, 5, 20, 1_000])
async def test_rate_limit_burst_is_shared_by_processes(redis_url: str, burst: int) -> None:
    key = (rule(Rate(SLOW, burst)), "ann")
    async with processes(redis_url, 4) as all_limits:
        answers = await asyncio.gather(*(ask(one, key) for _ in range(burst // 2 + 2) for one in all_limits))
        # What is kept for calls to come, in one process, may be wanted in another.
        assert 0.99 * burst <= sum(answers) <= burst
        assert burst > 100 or not any([await ask(one, key) for one in all_limits])
        assert await ask(all_limits[0], (key[0], "bob")) is True


async def test_rate_limit_lease_answers_without_redis(redis_url: str) -> None:
    key = (rule(Rate(1e6, 1_000_000)), "ann")
    async with sharing(redis_url) as limits:
        assert limits.take([(key, 1.0)], CLOCK.monotonic()) is None, "a first call goes on credit"
        for _ in range(200):
            assert all([await ask(limits, key) for _ in range(50)])
        assert limits.asked < 500


async def test_rate_limit_lease_not_used_is_given_back(redis_url: str) -> None:
    key = (rule(Rate(SLOW, 400)), "ann")
    async with processes(redis_url, 2) as (mine, other):
        for _ in range(200):
            assert await ask(mine, key)
        got = 0

        async def all_left() -> bool:
            nonlocal got
            while await ask(other, key):
                got += 1
            return got >= 196

        # What is decided on credit may differ by a few: 2 % of the other half.
        await wait_until(all_left)
        assert got <= 204


async def test_rate_limit_use_on_credit_is_charged(redis_url: str) -> None:
    key = (rule(Rate(SLOW, 200)), "ann")
    async with processes(redis_url, 3) as (first, second, third):
        assert first.take([(key, 1.0)], CLOCK.monotonic()) is None
        assert second.take([(key, 1.0)], CLOCK.monotonic()) is None
        await wait_until(lambda: first.charged and second.charged)
        answers = [await ask(third, key) for _ in range(220)]
        assert 190 <= sum(answers) <= 198


async def test_rate_limit_little_use_on_credit_is_told_once_there_is_more(redis_url: str) -> None:
    key = (rule(Rate(SLOW, 200)), "ann")
    async with sharing(redis_url) as limits:
        await wait_until(lambda: limits.share == 1.0)
        assert [limits.take([(key, 1.0)], CLOCK.monotonic()) for _ in range(4)] == [None] * 4, "2 % of the burst"
        assert limits.take([((key[0], "bob"), 1.0)], CLOCK.monotonic()) is None
        assert limits.take([(key, 1.0)], CLOCK.monotonic()) is None
        await wait_until(lambda: limits.charged == 1)
        assert limits.asked == 0


async def test_rate_limit_process_that_ends_is_counted_no_more(redis_url: str) -> None:
    async with processes(redis_url, 2) as ended:
        await wait_until(lambda: all(one.share == 1.0 for one in ended))
    async with processes(redis_url, 4) as four:
        await wait_until(lambda: all(one.share == 0.5 for one in four))


async def test_rate_limit_credit_follows_a_risen_count_of_processes(redis_url: str) -> None:
    key = (rule(Rate(SLOW, 400)), "ann")
    async with sharing(redis_url, COUNTING) as limits:
        await wait_until(lambda: limits.share == 1.0)
        call, wants = ("a call",), [(key, 1.0)]
        assert limits.take_found(limits.remember(call, wants, CLOCK.monotonic()), 0.0, CLOCK.monotonic()) is None
        async with processes(redis_url, 3, COUNTING):
            await wait_until(lambda: limits.share == 0.5)
            on_credit = 1
            while True:
                found = limits.known.get(call) or limits.remember(call, wants, CLOCK.monotonic())
                taken = limits.take_found(found, 0.0, CLOCK.monotonic())
                if taken is not None:
                    break
                on_credit += 1
            assert on_credit <= 5, "5 % of the burst, among four"
            assert isinstance(taken, PendingTake)
            assert await limits.finish(taken) is None


async def test_rate_limits_of_one_call_tell_the_strictest_and_spend_none(redis_url: str) -> None:
    small, large = (rule(Rate(SLOW, 1), "small:"), "ann"), (rule(Rate(SLOW, 3), "large:"), "ann")
    smallest = (rule(Rate(SLOW / 10, 1), "smallest:"), "ann")
    async with sharing(redis_url) as limits:
        assert await ask(limits, small)
        assert await ask(limits, smallest)
        for _ in range(5):
            told = limits.take([(small, 1.0), (large, 1.0), (smallest, 1.0)], CLOCK.monotonic())
            if isinstance(told, PendingTake):
                told = await limits.finish(told)
            assert isinstance(told, Refused)
            assert told.rule is smallest[0]
            assert told.decision.wait_s > 5_000
        assert [await ask(limits, large) for _ in range(4)] == [True, True, True, False]


async def test_rate_limit_of_zero_refuses_at_once(redis_url: str) -> None:
    async with sharing(redis_url) as limits:
        key = (rule(Rate(0.0, 10)), "ann")
        told = limits.take([(key, 1.0)], CLOCK.monotonic())
        assert isinstance(told, Refused)
        assert told.decision.wait_s == 3_600.0
        assert isinstance(limits.take([(key, 1.0)], CLOCK.monotonic() + 10.0), Refused)
        assert limits.asked == 0
        assert limits.is_shared


async def test_rate_limit_refusals_of_a_known_bucket_ask_nobody(redis_url: str) -> None:
    key = (rule(Rate(SLOW, 2)), "ann")
    async with sharing(redis_url) as limits:
        assert [await ask(limits, key) for _ in range(3)] == [True, True, False]
        asked, now = limits.asked, CLOCK.monotonic()
        for _ in range(100):
            assert isinstance(limits.take([(key, 1.0)], now), Refused)
        assert limits.asked == asked


async def test_rate_limit_memory_is_bounded_and_buckets_survive_it(redis_url: str) -> None:
    shared = rule(Rate(SLOW, 2))
    async with sharing(redis_url, LeaseRule(answer_s=20.0, max_keys=100)) as limits:
        assert [await ask(limits, (shared, "ann")) for _ in range(2)] == [True, True]
        for number in range(300):
            await ask(limits, (shared, f"user-{number}"))
        assert limits.size <= 101
        assert not await ask(limits, (shared, "ann"))


async def test_rate_limit_calls_that_wait_are_bounded(redis_url: str) -> None:
    async with sharing(redis_url, LeaseRule(answer_s=20.0, max_waiting=3)) as limits:
        takes = [limits.take([((rule(Rate(SLOW, 1), f"{n}:"), "ann"), 1.0)], CLOCK.monotonic()) for n in range(3)]
        with pytest.raises(Overloaded):
            limits.take([((rule(Rate(SLOW, 1), "more:"), "ann"), 1.0)], CLOCK.monotonic())
        assert [await limits.finish(one) for one in takes if isinstance(one, PendingTake)] == [None] * 3


async def test_rate_limit_call_that_was_cancelled_gives_back_what_it_held(redis_url: str) -> None:
    held, awaited = (rule(Rate(SLOW, 20), "held:"), "ann"), (rule(Rate(SLOW, 1), "awaited:"), "ann")
    async with processes(redis_url, 2) as (mine, other):
        taken = mine.take([(held, 1.0), (awaited, 1.0)], CLOCK.monotonic())
        assert isinstance(taken, PendingTake)
        finishing = asyncio.ensure_future(mine.finish(taken))
        await asyncio.sleep(0)
        finishing.cancel()
        with suppress(asyncio.CancelledError):
            await finishing
        await wait_until(lambda: ask(other, awaited), timeout_s=5.0)
        assert sum([await ask(other, held) for _ in range(21)]) == 20
