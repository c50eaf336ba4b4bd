"""Checks Redis regularly, and makes the connections follow a failover (ADR 81).

Each check opens a new connection, which leads to whichever server has the address now, and sends two messages to this
process's own subscription: one by the new connection, one by those that the service has open. If either does not
arrive, they lead to different servers, which no call would notice: a replica accepts PUBLISH and SUBSCRIBE.
A process receives the messages of its own checks only, so that the cost grows with the number of processes and not with
its square.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

import redis.asyncio

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.storage.redis.bus import FAILURES, RedisBus
from syncbeat_server.storage.redis.capability_check import check_capabilities, fresh_client, refusal_of
from syncbeat_server.storage.redis.failure_causes import Cause
from syncbeat_server.storage.redis.outage_log import Refusal

# 20 commands and a connection in ten seconds: 100 processes make 200 commands and 10 connections a second.
_EVERY_S = 10.0
# During an outage: a failover is followed in seconds.
_AGAIN_S = 2.0
_AFTER_FAILURE_S = 0.5
_ROUND_TRIP_S = 3.0


class RedisMonitor:
    """Runs the checks of one process."""

    def __init__(self, bus: RedisBus, every_s: float = _EVERY_S, again_s: float = _AGAIN_S) -> None:
        self._bus = bus
        self._every_s = every_s
        self._again_s = again_s

    async def start(self) -> None:
        """Check once. A failure is logged, and does not keep the process from serving, unless it can never work.

        Raises:
            ConfigurationError: it is a Redis Cluster.
        """
        refusals = await self.check()
        if refusals and refusals[0].cause is Cause.CLUSTER:
            raise ConfigurationError(f"SYNCBEAT_REDIS_URL: {refusals[0].fix}")

    async def run(self) -> None:
        """Check for ever: regularly, soon after a call has failed, and often during an outage."""
        while True:
            if self._bus.health.is_up:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_spread(self._every_s)):
                        await self._bus.health.check_requested.wait()
                        # Not in all processes at the same time, and not once a failed call.
                        await asyncio.sleep(_spread(min(_AFTER_FAILURE_S, self._again_s)))
            else:
                await asyncio.sleep(_spread(self._again_s))
            await self.check()

    async def check(self) -> list[Refusal]:
        """Check once, reconnect if that is due, and return the refusals."""
        bus = self._bus
        async with fresh_client(bus.address) as client:
            refusals = await check_capabilities(client, bus.address, bus.own)
            if not refusals:
                refusals = await self._check_round_trip(client)
        if bus.health.record_check(refusals):
            await bus.reconnect()
        return refusals

    async def _check_round_trip(self, client: redis.asyncio.Redis) -> list[Refusal]:
        if not self._bus.listening:
            return []
        try:
            async with asyncio.timeout(_ROUND_TRIP_S):
                if await self._bus.check_round_trip(client):
                    return []
        except TimeoutError:
            return [Refusal(Cause.UNHEARD, "a wake-up to ourselves")]
        except FAILURES as error:
            return [refusal_of("open connections", error)]
        return []


def _spread(seconds: float) -> float:
    return random.uniform(0.8, 1.2) * seconds  # noqa: S311  # no secret
