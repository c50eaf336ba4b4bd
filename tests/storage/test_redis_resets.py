"""A connection of Redis that is reset a moment before something is sent: an outage like others, also on uvloop."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import pytest
import uvloop

from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.redis.bus import open_redis
from syncbeat_server.storage.redis.failure_causes import Cause
from tests.support.tcp_relays import Fault, relayed

pytestmark = pytest.mark.store

RESETS = 20


async def send_across_resets(redis_url: str) -> dict[Cause, int]:
    """Send a wake-up after each of some resets: the causes that were counted."""
    async with (
        relayed(urlsplit(redis_url).path) as relay,
        open_redis(f"redis://{relay.address}", SystemClock(), "ours") as bus,
    ):
        await bus.announce("topic", "message")
        for _ in range(RESETS):
            relay.begin(Fault.RESET)
            relay.end()
            await asyncio.sleep(0)  # the loop hears of the reset, or does not yet
            try:
                await bus.announce("topic", "message")
            except DependencyDown:
                continue
        assert await bus.announce("topic", "message") == 0
        return {cause: count for cause, count in bus.health.errors.items() if count}


def test_redis_reset_before_a_send_is_an_outage_on_uvloop(redis_url: str) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        counted = runner.run(send_across_resets(redis_url))
    assert counted.keys() == {Cause.CLOSED}
