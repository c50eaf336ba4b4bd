"""The script of shared rates on real Valkey: it decides as the Python that says what it does, on Redis's clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncbeat_server.clock import SystemClock
from syncbeat_server.ratelimit.model import Rate
from syncbeat_server.ratelimit.policy.gcra import most_used
from syncbeat_server.storage.redis import shared_rates
from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.storage.redis.shared_rates import Answer, Ask, count_processes
from tests.support.fake_clock import wait_until
from tests.support.shared_rates import settle
from tests.support.valkeys import open_redis

pytestmark = pytest.mark.store

SLOW = 1e-3
"""Units a second: so few that the time of a test does not matter."""

Step = tuple[float, float, float]
histories = st.tuples(
    st.integers(1, 300),
    st.lists(st.tuples(st.integers(-200, 200), st.integers(1, 40), st.integers(0, 200)), min_size=1, max_size=12),
)


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[RedisBus]:
    async with open_redis(redis_url, SystemClock(), "rates") as opened:
        yield opened


def ask(key: str, rate: Rate, charged: float, least: float, wanted: float) -> Ask:
    return Ask(key, rate.per_second, rate.burst, most_used(rate), charged, least, wanted)


def test_shared_rate_script_decides_as_the_policy(redis_url: str) -> None:
    numbers = iter(range(10**6))

    @settings(max_examples=60)
    @given(histories)
    def check(history: tuple[int, list[Step]]) -> None:
        burst, steps = history
        found = asyncio.run(play(Rate(SLOW, burst), steps, f"bucket-{next(numbers)}"))
        used = 0.0
        for step, answer in zip(steps, found, strict=True):
            granted, used = settle(Rate(SLOW, burst), used, *step)
            assert answer.granted == granted
            assert answer.used == pytest.approx(used, abs=0.05)

    async def play(rate: Rate, steps: list[Step], key: str) -> list[Answer]:
        async with open_redis(redis_url, SystemClock(), "rates") as bus:
            return [(await shared_rates.settle(bus, [ask(key, rate, *step)]))[0] for step in steps]

    check()


async def test_shared_rate_buckets_are_asked_together(bus: RedisBus) -> None:
    rate = Rate(SLOW, 5)
    asks = [ask(f"k{number}", rate, 0.0, 1.0, float(number)) for number in range(8)]
    assert [one.granted for one in await shared_rates.settle(bus, asks)] == [0, 1, 2, 3, 4, 5, 5, 5]


async def test_shared_rate_bucket_survives_a_clock_that_jumped_back(bus: RedisBus) -> None:
    """A bucket that was written while Redis's clock was a year ahead counts as empty, and no emptier than that."""
    rate = Rate(100.0, 10)
    far = f"return redis.call('SET', KEYS[1], redis.call('TIME')[1] + {365 * 86_400} .. ' 0', 'PX', 60000) and {{}}"
    await bus.run_script(far, [f"{bus.own}limit:jumped"])
    (answer,) = await shared_rates.settle(bus, [ask("jumped", rate, 0.0, 1.0, 1.0)])
    assert (answer.granted, answer.used) == (0.0, most_used(rate))

    async def granted() -> float:
        return (await shared_rates.settle(bus, [ask("jumped", rate, 0.0, 1.0, 1.0)]))[0].granted

    assert await wait_until(granted, timeout_s=5.0) == 1.0


async def test_shared_rate_bucket_holds_its_last_units_until_all_have_charged(bus: RedisBus) -> None:
    rate = Rate(SLOW, 20)
    greedy = ask("held", rate, 0.0, 1.0, 20.0)._replace(held=3.0)
    assert (await shared_rates.settle(bus, [greedy]))[0].granted == 17.0
    line = f"held\t{rate.per_second} {rate.burst} {most_used(rate)} 1"
    assert [used for _, used in (await shared_rates.charge(bus, [line, line])).items()] == pytest.approx(
        [18, 19], abs=0.01
    )

    async def granted() -> float:
        return (await shared_rates.settle(bus, [greedy]))[0].granted

    assert await wait_until(granted) == 1.0
    assert await granted() == 0.0


async def test_shared_rate_processes_are_counted_until_their_marks_end(bus: RedisBus) -> None:
    assert [await count_processes(bus, name, 60.0) for name in ("a", "b", "a", "c")] == [1, 2, 2, 3]
    assert await count_processes(bus, "c", 0.001) == 3
