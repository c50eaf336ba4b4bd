"""Looks after Redis: tries it again and again, says what is wrong, and has the connections follow a failover (ADR 81).

Each trial connects anew, so that it meets whoever has the address now, and sends two messages to this process's own
subscription: one by its new connection, one by those that the service has open. When either does not arrive, they lead
to different servers, which no call would notice: a replica takes PUBLISH and SUBSCRIBE.
A process hears no messages but its own, so that the cost grows with the processes and not with their square.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

import redis.asyncio

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.storage.redis.bus import FAILURES, RedisBus
from syncbeat_server.storage.redis.capability_check import connected_anew, refusal_of, tried
from syncbeat_server.storage.redis.faults import Cause
from syncbeat_server.storage.redis.health import Refusal

# 20 commands and a connection in ten seconds: 100 processes make 200 commands and 10 connections a second.
_EVERY_S = 10.0
# While something is wrong. A failover is followed in seconds.
_AGAIN_S = 2.0
_AT_ONCE_S = 0.5
_BEAT_S = 3.0


class RedisWatch:
    """Runs the trials of one process."""

    def __init__(self, bus: RedisBus, every_s: float = _EVERY_S, again_s: float = _AGAIN_S) -> None:
        self._bus = bus
        self._every_s = every_s
        self._again_s = again_s

    async def start(self) -> None:
        """Try once. What is wrong is logged, and is no reason not to serve, unless it can never work.

        Raises:
            ConfigurationError: it is a Redis Cluster.
        """
        refusals = await self.look()
        if refusals and refusals[0].cause is Cause.CLUSTER:
            raise ConfigurationError(f"SYNCBEAT_REDIS_URL: {refusals[0].fix}")

    async def run(self) -> None:
        """Try for ever: regularly, soon after a call has failed, and often while something is wrong."""
        while True:
            if self._bus.health.is_up:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_spread(self._every_s)):
                        await self._bus.health.asked.wait()
                        # Not all processes at the same time, and not once a call.
                        await asyncio.sleep(_spread(min(_AT_ONCE_S, self._again_s)))
            else:
                await asyncio.sleep(_spread(self._again_s))
            await self.look()

    async def look(self) -> list[Refusal]:
        """Try once, act on it, and return what is refused."""
        bus = self._bus
        async with connected_anew(bus.address) as client:
            refusals = await tried(client, bus.address, bus.own)
            if not refusals:
                refusals = await self._heard(client)
        if bus.health.judge(refusals):
            await bus.connect_anew()
        return refusals

    async def _heard(self, client: redis.asyncio.Redis) -> list[Refusal]:
        if not self._bus.listening:
            return []
        try:
            async with asyncio.timeout(_BEAT_S):
                if await self._bus.hears_itself(client):
                    return []
        except TimeoutError:
            return [Refusal(Cause.UNHEARD, "a wake-up to ourselves")]
        except FAILURES as error:
            return [refusal_of("open connections", error)]
        return []


def _spread(seconds: float) -> float:
    return random.uniform(0.8, 1.2) * seconds  # noqa: S311  # no secret
