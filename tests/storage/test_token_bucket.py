"""The rate that all processes share, on real Valkey; and answers that are kept there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.storage.idempotency import RequestKey
from syncbeat_server.storage.idempotency_cache import IdempotencyCache
from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.storage.redis.token_bucket import Rate, TokenBucket
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.valkeys import open_redis

pytestmark = pytest.mark.store

SECRET = b"s" * 32
REQUEST = RequestKey("default", "service:a", "SendNotification", "r", b"h" * 32)


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[RedisBus]:
    async with open_redis(redis_url, SystemClock()) as opened:
        yield opened


@pytest.fixture
async def nowhere(closed_port: int) -> AsyncIterator[RedisBus]:
    async with open_redis(f"redis://127.0.0.1:{closed_port}", SystemClock()) as opened:
        yield opened


async def test_rate_limit_burst_is_shared_by_all_processes(bus: RedisBus) -> None:
    shared = [TokenBucket(bus, Rate(0.001, 100.0, 0.0), SystemClock()) for _ in range(3)]
    grants = await asyncio.gather(*(one.acquire("p", 7, 1.0) for one in shared for _ in range(10)))
    assert sum(grant.count for grant in grants) == 100
    last = await shared[0].acquire("p", 7, 1.0)
    assert (last.count, last.wait_s > 900) == (0, True)
    assert (await shared[0].acquire("another", 7, 1.0)).count == 7


async def test_rate_limit_refills_at_its_rate(bus: RedisBus) -> None:
    allowance = TokenBucket(bus, Rate(1000.0, 50.0, 0.0), SystemClock())
    loop = asyncio.get_running_loop()
    started = loop.time()
    taken = (await allowance.acquire("p", 50, 1.0)).count

    async def filled() -> bool:
        nonlocal taken
        taken += (await allowance.acquire("p", 10, 1.0)).count
        return taken >= 150

    await wait_until(filled)
    assert loop.time() - started >= 0.09, "100 beyond the burst take a tenth of a second"


async def test_rate_limit_cost_scales_for_slowed_apps(bus: RedisBus) -> None:
    allowance = TokenBucket(bus, Rate(0.001, 100.0, 0.0), SystemClock())
    assert (await allowance.acquire("p", 100, 4.0)).count == 25


async def test_rate_limit_cold_start_grants_a_sixtieth(bus: RedisBus) -> None:
    cold = TokenBucket(bus, Rate(1.0, 100.0, 3600.0), SystemClock())
    warm = TokenBucket(bus, Rate(1.0, 100.0, 0.0), SystemClock())
    for allowance, key in ((cold, "p"), (warm, "q")):
        assert (await allowance.acquire(key, 1000, 1.0)).count == 100
    # A token takes a minute from cold, a second when it is warm.
    slow, fast = await cold.acquire("p", 1000, 1.0), await warm.acquire("q", 1000, 1.0)
    assert slow.count == 0
    assert 30.0 < slow.wait_s <= 60.0
    assert 0.0 < fast.wait_s <= 1.0


async def test_rate_limit_without_redis_grants_an_eighth_per_process(nowhere: RedisBus) -> None:
    clock = FakeClock()
    allowance = TokenBucket(nowhere, Rate(800.0, 80.0, 60.0), clock)
    assert (await allowance.acquire("p", 100, 1.0)).count == 10
    empty = await allowance.acquire("p", 100, 1.0)
    assert (empty.count, empty.wait_s) == (0, 0.01)
    await clock.advance(0.05)
    assert (await allowance.acquire("p", 100, 1.0)).count == 5


async def kept(replays: IdempotencyCache, bus: RedisBus) -> None:
    replays.keep(REQUEST, SECRET, b'{"n":1}')

    async def there() -> bool:
        return await replays.find(REQUEST, SECRET) is not None

    await wait_until(there)


async def test_idempotency_cache_matches_the_same_call_only(bus: RedisBus) -> None:
    replays = IdempotencyCache(bus, SystemClock())
    assert await replays.find(REQUEST, SECRET) is None
    await kept(replays, bus)
    assert await replays.find(REQUEST, SECRET) == b'{"n":1}'
    others = [
        RequestKey("other", "service:a", "SendNotification", "r", b"h" * 32),
        RequestKey("default", "service:b", "SendNotification", "r", b"h" * 32),
        RequestKey("default", "service:a", "RedriveDeliveries", "r", b"h" * 32),
        RequestKey("default", "service:a", "SendNotification", "r2", b"h" * 32),
        RequestKey("default", "service:a", "SendNotification", "r", b"i" * 32),
    ]
    assert [await replays.find(other, SECRET) for other in others] == [None] * 5
    assert await replays.find(REQUEST, b"t" * 32) is None, "another database's"


async def test_idempotency_cache_outage_makes_nobody_wait(nowhere: RedisBus) -> None:
    clock = FakeClock()
    replays = IdempotencyCache(nowhere, clock)
    asked = 0
    read = nowhere.read

    async def counted(key: str) -> bytes | None:
        nonlocal asked
        asked += 1
        return await read(key)

    nowhere.read = counted  # type: ignore[method-assign]  # counted on its way
    assert [await replays.find(REQUEST, SECRET) for _ in range(10)] == [None] * 10
    assert asked == 1
    await clock.advance(5)
    assert await replays.find(REQUEST, SECRET) is None
    assert asked == 2
