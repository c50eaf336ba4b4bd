"""The bus between processes: fast when Redis is there, out of the way when it is not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
import redis.asyncio

from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.clock import SystemClock
from syncbeat_server.directory.devices.presence import Presence, PresenceKeeper
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.redis.bus import MAX_QUEUED, RedisBus
from syncbeat_server.storage.redis.time_limits import RedisTimings
from tests.support.fake_clock import FakeClock, settle, wait_until
from tests.support.process_rules import DEADLINE_S
from tests.support.valkeys import open_redis

pytestmark = pytest.mark.store

DEVICE = ("default", "ann", "phone")
OWN = "syncbeat:ours:"


@asynccontextmanager
async def running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run loops for the block; each must end at its first cancellation."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        _, pending = await asyncio.wait(tasks, timeout=20)
        assert not pending, "a cancellation was lost"


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[RedisBus]:
    async with open_redis(redis_url, SystemClock(), "ours") as opened:
        yield opened


class Ear:
    """Records what a listener heard, and how often it was (re)connected."""

    def __init__(self, topics: list[str]) -> None:
        self.topics = topics
        self.heard: list[tuple[str, str]] = []
        self.resumed = 0

    def listen(self, bus: RedisBus) -> Coroutine[Any, Any, None]:
        return bus.run_listener(self.topics, lambda topic, text: self.heard.append((topic, text)), self._resume)

    def _resume(self) -> None:
        self.resumed += 1


@pytest.fixture
def ear(request: pytest.FixtureRequest) -> Ear:
    """Topics of this test alone: channels are everybody's."""
    return Ear([f"{request.node.name}:a", f"{request.node.name}:b"])


async def test_redis_bus_delivers_in_order(bus: RedisBus, redis_url: str, ear: Ear) -> None:
    async with (
        open_redis(redis_url, SystemClock(), "ours") as other,
        running(bus.run_publisher(), ear.listen(other), ear.listen(bus)),
    ):
        await wait_until(lambda: ear.resumed == 2)
        assert other.listening
        for number in range(1_200):
            bus.publish(ear.topics[number % 2], f"message {number} \N{SNOWMAN}")
        bus.publish("another topic", "not for us")
        await wait_until(lambda: len(ear.heard) == 2_400)
    once = list(dict.fromkeys(ear.heard))
    assert once == [(ear.topics[number % 2], f"message {number} \N{SNOWMAN}") for number in range(1_200)]


async def test_redis_bus_survives_non_text_messages(bus: RedisBus, redis_url: str, ear: Ear) -> None:
    async with running(ear.listen(bus)):
        await wait_until(lambda: ear.resumed)
        with redis.Redis.from_url(redis_url) as client:
            client.publish(OWN + ear.topics[0], b"\xff\xfe")
            client.publish(OWN + ear.topics[0], "next")
        await wait_until(lambda: len(ear.heard) == 2)
    assert ear.heard[1] == (ear.topics[0], "next")


async def test_redis_bus_reconnects_after_a_crash_and_reports_it(
    stores: EmbeddedStores, redis_url: str, ear: Ear
) -> None:
    clock = FakeClock()
    async with open_redis(redis_url, clock) as bus, running(ear.listen(bus), bus.run_publisher()):
        await wait_until(lambda: ear.resumed == 1)
        stores.kill_redis()
        try:
            await wait_until(lambda: not bus.listening)
            bus.publish(ear.topics[0], "lost")
            await wait_until(lambda: clock.sleepers == 3)  # the publisher noticed too, and the breaker probes
            await clock.advance(0.5)
            await wait_until(lambda: clock.sleepers >= 1)
            assert ear.resumed == 1
        finally:
            stores.start_redis()

        async def resumed() -> int:
            await clock.advance(0.5)
            return ear.resumed == 2

        while not await resumed():
            await settle()
        assert bus.listening
        bus.publish(ear.topics[0], "heard")
        await wait_until(lambda: ear.heard)
    assert ear.heard == [(ear.topics[0], "heard")]


async def test_redis_bus_timeout_counts_as_gone(stores: EmbeddedStores, redis_url: str, ear: Ear) -> None:
    hasty = RedisTimings(call_s=0.1, ping_s=0.05, reconnect_s=0.01)
    pid = stores.pids[1]
    assert pid is not None
    async with open_redis(redis_url, SystemClock(), "ours", hasty) as bus, running(ear.listen(bus)):
        await wait_until(lambda: ear.resumed)
        await wait_until(lambda: bus.listening)
        os.kill(pid, signal.SIGSTOP)
        try:
            await wait_until(lambda: not bus.listening)
            with pytest.raises(DependencyDown):
                await asyncio.wait_for(bus.present(["k"]), 20)
            with pytest.raises(DependencyDown):
                await asyncio.wait_for(bus.mark_present(["k"], "one", 1.0), 20)
        finally:
            os.kill(pid, signal.SIGCONT)
        await wait_until(lambda: bus.listening)
        assert ear.resumed > 1

        async def answered() -> bool:
            with contextlib.suppress(DependencyDown):  # a busy machine takes more than the tenth of a second
                return len(await bus.present(["k"])) == 1
            return False

        await wait_until(answered)


async def test_redis_bus_quiet_channel_stays_subscribed(
    redis_url: str, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    pings = hasty_pings(monkeypatch)
    quiet = RedisTimings(call_s=DEADLINE_S, ping_s=0.01)
    async with (
        open_redis(redis_url, SystemClock(), "ours", quiet) as bus,
        running(ear.listen(bus), bus.run_publisher()),
    ):
        await wait_until(lambda: len(pings) > 10)
        bus.publish(ear.topics[1], "still here")
        await wait_until(lambda: ear.heard)
    assert ear.resumed == 1


def hasty_pings(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A channel counts as quiet after a moment, and has time to answer the ping that follows; the pings are counted."""
    pings: list[None] = []
    asked = False
    ping, get_message = redis.asyncio.client.PubSub.ping, redis.asyncio.client.PubSub.get_message

    async def counted(*arguments: Any) -> Any:
        nonlocal asked
        asked = True
        pings.append(None)
        return await ping(*arguments)

    async def hasty(subscription: Any, *, timeout: float) -> Any:
        nonlocal asked
        message = await get_message(subscription, timeout=20.0 if asked else timeout)
        asked = False
        return message

    monkeypatch.setattr(redis.asyncio.client.PubSub, "ping", counted)
    monkeypatch.setattr(redis.asyncio.client.PubSub, "get_message", hasty)
    return pings


async def test_redis_bus_publish_never_blocks_and_keeps_the_newest(
    tmp_path: object, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    async with open_redis(f"unix://{tmp_path}/nothing.sock", clock) as bus:
        for number in range(MAX_QUEUED + 5):
            bus.publish("t", str(number))
        assert len(bus._queued) == MAX_QUEUED
        assert caplog.text.count("too many wake-ups wait") == 1
        assert bus._queued[0] == ("t", "5")
        async with running(bus.run_publisher()):
            await wait_until(lambda: clock.sleepers)
            assert not bus._queued  # a wake-up is worth something now or never
            bus.publish("t", "later")
            await clock.advance(0.5)
            await wait_until(lambda: not bus._queued)


async def test_redis_counters_of_wrong_type_are_an_outage(bus: RedisBus, redis_url: str) -> None:
    key = "tally"
    assert await bus.tally({key: {7: 2}}, [key], 60.0) == [{7: 2}]
    assert await bus.tally({key: {7: 1, 8: 4}}, [key], 60.0) == [{7: 3, 8: 4}]
    async with redis.asyncio.Redis.from_url(redis_url) as other:
        await other.hset(OWN + key, "no number", "1")
    with pytest.raises(DependencyDown):
        await bus.tally({}, [key], 60.0)


@pytest.mark.parametrize("what", ["presence", "publisher", "question"])
async def test_redis_bus_cancellation_is_never_lost(bus: RedisBus, what: str) -> None:
    presence = Presence(bus)
    await presence.mark([DEVICE])  # connected, as in the middle of things
    for turns in range(60):
        keeper = PresenceKeeper(presence, lambda: [DEVICE], lambda device: device == DEVICE, SystemClock())
        if what == "presence":
            keeper.streams_changed(DEVICE)
            loop = asyncio.ensure_future(keeper.run())
        elif what == "publisher":
            bus.publish("nobody listens", "message")
            loop = asyncio.ensure_future(bus.run_publisher())
        else:
            loop = asyncio.ensure_future(ask_for_ever(presence))
        for _ in range(turns):
            await asyncio.sleep(0)
        loop.cancel()
        await asyncio.wait([loop], timeout=20)
        assert loop.done(), f"a cancellation after {turns} turns of the loop was lost"


async def ask_for_ever(presence: Presence) -> None:
    """Ask once, and wait for ever."""
    await presence.live([DEVICE])
    await asyncio.Event().wait()
