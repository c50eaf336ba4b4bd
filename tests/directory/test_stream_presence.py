"""Presence of streams: each process marks its own, takes back its own, and what a killed one left ends by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from syncbeat_server.clock import SystemClock
from syncbeat_server.directory.devices import presence as directory_presence
from syncbeat_server.directory.devices.presence import Presence, PresenceKeeper
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.redis.bus import RedisBus
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.valkeys import open_redis

pytestmark = pytest.mark.store

DEVICE = ("default", "ann", "phone")
OTHER = ("default", "bob", "phone")
OWN = "syncbeat:ours:"


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[RedisBus]:
    async with open_redis(redis_url, SystemClock(), "ours") as opened:
        yield opened


@asynccontextmanager
async def running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=20)


async def test_presence_is_marked_read_and_removed(bus: RedisBus, redis_url: str) -> None:
    keys = [f"key-{number}" for number in range(1_100)]
    await bus.mark_present(keys, "one", 300.0)
    assert await bus.present([*keys, "absent"]) == [True] * 1_100 + [False]
    with redis.Redis.from_url(redis_url) as client:
        life = client.pttl(f"{OWN}key-0")
    assert isinstance(life, int)
    assert 250_000 < life <= 300_000
    await bus.mark_absent(keys[:-1], "one")
    assert sum(await bus.present(keys)) == 1
    assert await bus.present([]) == []


async def test_presence_is_removed_by_its_own_process_only(bus: RedisBus) -> None:
    first, second, asker = Presence(bus), Presence(bus), Presence(bus)
    await first.mark([DEVICE, OTHER])
    await second.mark([DEVICE])
    await first.unmark([DEVICE, OTHER])
    assert await asker.live([DEVICE, OTHER]) == [True, False]
    await first.unmark([DEVICE])
    assert await asker.live([DEVICE]) == [True], "what it takes back twice was never the other's"
    await second.unmark([DEVICE])
    assert await asker.live([DEVICE]) == [False]


async def test_presence_of_two_streams_on_one_process_ends_with_the_last(bus: RedisBus) -> None:
    streams = [DEVICE, DEVICE]
    keeper = PresenceKeeper(Presence(bus), lambda: streams, lambda device: device in streams, SystemClock())
    asker = Presence(bus)

    async def live() -> bool:
        return (await asker.live([DEVICE]))[0]

    async def gone() -> bool:
        return not await live()

    async with running(keeper.run()):
        keeper.streams_changed(DEVICE)
        await wait_until(live)
        streams.pop()
        keeper.streams_changed(DEVICE)
        keeper.streams_changed(OTHER)  # written with it: when this is done, that is too
        streams.append(OTHER)

        async def written() -> bool:
            return (await asker.live([OTHER]))[0]

        await wait_until(written)
        assert await live()
        streams.clear()
        keeper.streams_changed(DEVICE)
        await wait_until(gone)


async def test_presence_of_a_killed_process_ends_though_another_process_went_on_for_longer(
    bus: RedisBus, redis_url: str
) -> None:
    await bus.mark_present(["device"], "killed", 0.05)
    await bus.mark_present(["device"], "other", 300.0)
    await bus.mark_absent(["device"], "other")

    async def ended() -> bool:
        return await bus.present(["device"]) == [False]

    await wait_until(ended)  # with the mark of the killed one, not with the later end of the other's
    with redis.Redis.from_url(redis_url) as client:
        await bus.mark_present(["device"], "killed", 0.05)
        await bus.mark_present(["device"], "other", 300.0)
        # What has ended is not kept for as long as somebody else renews the key.
        killed = client.zscore(f"{OWN}device", "killed")
        await wait_until(lambda: client.time()[0] * 1000 + client.time()[1] // 1000 > float(str(killed)))
        await bus.mark_present(["device"], "other", 300.0)
        assert client.zrange(f"{OWN}device", 0, -1) == [b"other"]


async def test_presence_that_a_later_shorter_mark_follows_lasts_as_long_as_the_first(
    bus: RedisBus, redis_url: str
) -> None:
    await bus.mark_present(["device"], "one", 300.0)
    await bus.mark_present(["device"], "two", 1.0)
    with redis.Redis.from_url(redis_url) as client:
        life = client.pttl(f"{OWN}device")
    assert isinstance(life, int)
    assert life > 200_000


async def test_presence_marks_of_earlier_versions_count_and_are_left_alone(bus: RedisBus, redis_url: str) -> None:
    earlier = f"{OWN}live:" + "\x1f".join(DEVICE)
    presence = Presence(bus)
    with redis.Redis.from_url(redis_url) as client:
        client.set(earlier, b"1", px=300_000)
        assert await presence.live([OTHER, DEVICE]) == [False, True]
        await presence.mark([DEVICE])
        await presence.unmark([DEVICE])
        assert client.get(earlier) == b"1"
        await presence.mark([DEVICE])
        client.delete(earlier)  # as the earlier server does when its stream ends
    assert await presence.live([OTHER, DEVICE]) == [False, True]


async def test_presence_lasts_thirty_seconds_and_is_renewed_in_time(bus: RedisBus, redis_url: str) -> None:
    await Presence(bus).mark([DEVICE])
    with redis.Redis.from_url(redis_url) as client:
        (key,) = client.keys(f"{OWN}*")
        assert 10_000 < int(str(client.pttl(key))) <= 30_000
    assert directory_presence._REFRESH_EVERY_S * 2 < directory_presence._EXPIRES_S


async def test_presence_without_redis_is_empty(tmp_path: object) -> None:
    async with open_redis(f"unix://{tmp_path}/nothing.sock", FakeClock()) as bus:
        with pytest.raises(DependencyDown):
            await bus.present(["k"])
        assert await Presence(bus).live([DEVICE, DEVICE]) == [False, False]


async def test_presence_is_marked_refreshed_and_removed_with_the_stream(redis_url: str) -> None:
    clock, here = FakeClock(), {DEVICE}
    async with open_redis(redis_url, clock) as bus:
        presence = Presence(bus)
        keeper = PresenceKeeper(presence, lambda: list(here), lambda device: device in here, clock)

        async def live() -> bool:
            return (await presence.live([DEVICE]))[0]

        async with running(keeper.run(), keeper.run_refresh()):
            keeper.streams_changed(DEVICE)
            await wait_until(live)
            with redis.Redis.from_url(redis_url) as client:
                client.flushdb()
            await clock.advance(10)
            await wait_until(live)
            here.clear()
            keeper.streams_changed(DEVICE)

            async def gone() -> bool:
                return not await live()

            await wait_until(gone)
