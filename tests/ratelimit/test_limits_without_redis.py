"""Limits while Redis is away and when it is back: open, never above twice the limit, and nobody is locked out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from syncbeat_server.ratelimit.lease import LeaseKey, LeaseRule
from syncbeat_server.ratelimit.model import Rate
from syncbeat_server.ratelimit.shared_limits import SharedLimits
from tests.ratelimit.test_shared_limits import CLOCK, ask, processes, rule, sharing
from tests.support.fake_clock import wait_until
from tests.support.tcp_relays import relayed
from tests.support.valkeys import moving_address, running_valkey

pytestmark = pytest.mark.store

RATE = Rate(20.0, 40)
SETTINGS = LeaseRule(answer_s=1.0, probe_s=0.3, settle_s=1.2, count_s=0.5)
PROCESSES = 4


class Demand:
    """Asks for more than the limit in each process, and notes what is admitted, and when."""

    def __init__(self, all_limits: Sequence[SharedLimits], key: LeaseKey) -> None:
        self.limits = all_limits
        self.key = key
        self.admitted: list[float] = []
        self._asking = set[asyncio.Task[None]]()

    async def go_on(self, seconds: float) -> None:
        """Ask for so many seconds."""
        end = CLOCK.monotonic() + seconds

        def is_over() -> bool:
            for limits in self.limits:
                task = asyncio.ensure_future(self._ask(limits))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
            return CLOCK.monotonic() >= end

        await wait_until(is_over, timeout_s=60.0)
        await wait_until(lambda: not self._asking)

    async def _ask(self, limits: SharedLimits) -> None:
        if await ask(limits, self.key):
            self.admitted.append(CLOCK.monotonic())

    def worst(self) -> float:
        """Return the largest ratio of what was admitted in any window to what burst and rate allow in it."""
        times = sorted(self.admitted)
        return max(
            (last - first + 1) / (RATE.burst + (times[last] - start) * RATE.per_second)
            for first, start in enumerate(times)
            for last in range(first, len(times))
        )

    def since(self, start: float) -> int:
        """Return how many were admitted after a time."""
        return sum(one > start for one in self.admitted)


async def test_rate_limit_is_never_above_twice_when_redis_is_lost_and_comes_back_empty(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as lost, running_valkey(tmp_path) as empty:
        async with moving_address(lost) as address, processes(address.url, PROCESSES, SETTINGS) as all_limits:
            demand = Demand(all_limits, (rule(RATE), "ann"))
            await demand.go_on(1.5)
            assert demand.worst() <= 1.1
            lost.server.kill()
            await demand.go_on(3.0)
            assert not any(one.is_shared for one in all_limits)
            without = CLOCK.monotonic()
            address.target = empty.port
            await wait_until(lambda: all(one.is_shared for one in all_limits))
            back = CLOCK.monotonic()
            assert demand.since(without) == 0
            await demand.go_on(2.0)
            assert demand.worst() <= 2.0
            # Nobody is locked out: what the rate gives meanwhile is admitted, and no more than that and a burst.
            assert 0.7 * 2.0 * RATE.per_second <= demand.since(back) <= 1.1 * (RATE.burst + 2.2 * RATE.per_second)


async def test_rate_limit_settles_what_was_used_without_redis(tmp_path: Path) -> None:
    """The bucket of a Redis that comes back empty holds what the processes admitted meanwhile."""
    slow = (rule(Rate(0.01, 40)), "ann")
    with running_valkey(tmp_path) as lost, running_valkey(tmp_path) as empty:
        async with moving_address(lost) as address, processes(address.url, PROCESSES, SETTINGS) as all_limits:
            await wait_until(lambda: all(one.share == 0.5 for one in all_limits))
            lost.server.kill()
            await wait_until(lambda: not any(one.is_shared for one in all_limits))
            without = [await ask(one, slow) for one in all_limits for _ in range(50)]
            assert sum(without) == 40, "half of each share, which is half of the burst"
            address.target = empty.port
            await wait_until(lambda: all(one.is_shared for one in all_limits))
            assert [await ask(one, slow) for one in all_limits] == [False] * PROCESSES


async def test_rate_limit_share_of_a_lone_process_is_all(redis_url: str) -> None:
    async with sharing(redis_url, SETTINGS) as alone:
        await wait_until(lambda: alone.share == 1.0)


async def test_rate_limit_share_of_one_of_four_processes_is_half(redis_url: str) -> None:
    async with processes(redis_url, PROCESSES, SETTINGS) as all_limits:
        await wait_until(lambda: all(one.share == 0.5 for one in all_limits))


async def test_rate_limit_waits_no_longer_for_a_silent_redis_than_its_bound(tmp_path: Path) -> None:
    key = (rule(Rate(0.01, 4)), "ann")
    with running_valkey(tmp_path) as valkey:
        async with (
            relayed(f"127.0.0.1:{valkey.port}") as relay,
            sharing(f"redis://{relay.address}/0", LeaseRule(answer_s=1.0)) as limits,
        ):
            assert await ask(limits, key)
            relay.swallow()
            started = CLOCK.monotonic()
            assert await ask(limits, key)
            assert CLOCK.monotonic() - started < 10.0
            assert not limits.is_shared
            assert limits.decided_locally == 1


async def test_rate_limit_debts_of_calls_with_many_buckets_are_bounded(tmp_path: Path) -> None:
    many = rule(Rate(20.0, 40))
    with running_valkey(tmp_path) as lost:
        async with sharing(lost.url, LeaseRule(answer_s=1.0, probe_s=60.0, max_keys=100)) as limits:
            lost.server.kill()
            await wait_until(lambda: ask(limits, (many, "first")))
            await wait_until(lambda: not limits.is_shared)
            for call in range(50):
                wants = [((many, f"scope-{call}-{number}"), 1.0) for number in range(20)]
                assert limits.take(wants, CLOCK.monotonic()) is None
            assert len(limits._owing) <= 100
