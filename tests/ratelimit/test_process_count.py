"""Tests the count of processes that share limits: one that ends is counted no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.ratelimit.process_count import ProcessCount
from syncbeat_server.storage.redis.bus import RedisBus
from tests.support.valkeys import open_redis

pytestmark = pytest.mark.store


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[RedisBus]:
    async with open_redis(redis_url, SystemClock(), "limits") as opened:
        yield opened


def count_of(bus: RedisBus, process: str) -> ProcessCount:
    return ProcessCount(bus, SystemClock(), process, every_s=5.0)


async def test_process_that_ends_while_it_counts_leaves_no_mark(bus: RedisBus) -> None:
    ending, other = count_of(bus, "ending"), count_of(bus, "other")
    counting = asyncio.ensure_future(ending.refresh())
    await asyncio.sleep(0)  # its question is on its way
    await ending.end()
    await counting
    await other.refresh()
    assert other.count == 1


async def test_process_that_has_ended_counts_no_more(bus: RedisBus) -> None:
    ending, other = count_of(bus, "ending"), count_of(bus, "other")
    await ending.refresh()
    await ending.end()
    await ending.refresh(returned=True)
    await other.refresh()
    assert other.count == 1
