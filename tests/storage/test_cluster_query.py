"""Asking every process: all that listen answer, one that is silent is not waited for, and without Redis it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.redis.bus import RedisBus, open_redis
from syncbeat_server.storage.redis.cluster_query import ClusterQuery
from syncbeat_server.storage.redis.time_limits import RedisTimings
from tests.support.fake_clock import ahead, wait_until

pytestmark = pytest.mark.store

PATIENCE_S = 20.0
SLOW = RedisTimings(call_s=PATIENCE_S, query_s=PATIENCE_S)  # a pause of this machine is no silence


@asynccontextmanager
async def process(redis_url: str, answer: Callable[[str], str]) -> AsyncIterator[ClusterQuery]:
    """One process that listens and answers."""
    async with open_redis(redis_url, SystemClock(), timings=SLOW) as bus:
        asker = ClusterQuery(bus, answer)

        def heard(topic: str, message: str) -> None:
            asker.handle(topic, message)

        listener = bus.run_listener(asker.topics, heard, _ignore)
        work = [asyncio.ensure_future(bus.run_publisher()), asyncio.ensure_future(listener)]
        await wait_until(lambda: bus.listening)
        try:
            yield asker
        finally:
            for task in work:
                task.cancel()
            await asyncio.wait(work)


def _ignore() -> None:
    return


async def test_cluster_query_is_answered_by_every_process(redis_url: str) -> None:
    async with (
        process(redis_url, lambda asked: f"one: {asked}") as one,
        process(redis_url, lambda asked: f"two: {asked}") as two,
        process(redis_url, lambda asked: f"three: {asked}"),
    ):
        for asker in (one, two):
            assert sorted(await asker.ask("who?")) == ["one: who?", "three: who?", "two: who?"]
        many = await asyncio.gather(*(one.ask(str(number)) for number in range(50)))
        assert [sorted(answers) for answers in many] == [
            [f"{name}: {number}" for name in ("one", "three", "two")] for number in range(50)
        ]


async def test_cluster_query_omits_silent_processes(redis_url: str) -> None:
    async with process(redis_url, lambda _: "here") as one, open_redis(redis_url, SystemClock(), timings=SLOW) as deaf:
        ear = asyncio.ensure_future(deaf.run_listener([one.topics[0]], lambda *_: None, _ignore))
        await wait_until(lambda: deaf.listening)
        answers = asyncio.ensure_future(one.ask("who?"))
        await wait_until(lambda: [pending.answers for pending in one._pending.values()] == [["here"]])
        with ahead(PATIENCE_S):
            assert await answers == ["here"]
        ear.cancel()
        await asyncio.wait([ear])


async def test_cluster_query_without_redis_answers_alone(redis_url: str) -> None:
    async with open_redis(redis_url, SystemClock(), timings=RedisTimings(query_s=0.05)) as bus:
        asker = ClusterQuery(bus, lambda _: "here")
        with pytest.raises(DependencyDown):
            await asker.ask("who?")


async def test_cluster_query_ignores_foreign_answers(redis_url: str) -> None:
    async with process(redis_url, lambda _: "here") as one:
        bus: RedisBus = one._bus
        for text in ("", "nobody\x1flate", "\x1f\x1f"):
            assert one.handle(one.topics[1], text)
        assert not one.handle("another topic", "x")
        assert bus.listening
        assert await one.ask("who?") == ["here"]
