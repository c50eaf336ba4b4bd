"""Answers of committed requests, kept in Redis for an hour, so that repeats need not ask PostgreSQL.

Written after the commit only: what stands here is true. What does not is looked up where the truth is. The keys are
made with a secret that the database holds, so that two databases which use one Redis do not answer for each other.
"""

from __future__ import annotations

import asyncio
import hmac
from contextvars import Context

import orjson

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.resilience.breaker import Breaker, BreakerRule
from syncbeat_server.storage.idempotency import RequestKey
from syncbeat_server.storage.redis.bus import RedisBus

_PREFIX = "answer:"
_KEPT_S = 3600.0
_MAX_WRITES = 1_000
# While Redis is away calls must not wait for it one by one.
_RULE = BreakerRule(failures=1, open_s=5.0, trials=1, successes=1)


class Replays:
    """Finds and keeps answers. It may forget any of them at any time."""

    def __init__(self, bus: RedisBus, clock: Clock) -> None:
        self._bus = bus
        self._breaker = Breaker(_RULE, clock)
        self._writes: set[asyncio.Task[None]] = set()

    async def find(self, request: RequestKey, secret: bytes) -> bytes | None:
        """The answer (JSON) to an earlier call that is the same in its content too; None when it is not known here."""
        permit = self._breaker.acquire()
        if permit is None:
            return None
        try:
            kept = await self._bus.read(_key(request, secret))
            permit.succeed()
        except DependencyDown:
            permit.fail()
            return None
        finally:
            permit.release()  # for a caller that was cancelled
        digest = request.content_hash
        return kept[len(digest) :] if kept is not None and kept.startswith(digest) else None

    def keep(self, request: RequestKey, secret: bytes, answer: bytes) -> None:
        """Keep the answer of a request that is committed, without waiting for it."""
        if len(self._writes) < _MAX_WRITES and self._breaker.free_permits != 0:
            task = asyncio.get_running_loop().create_task(
                self._write(_key(request, secret), request.content_hash + answer), context=Context()
            )
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)

    async def _write(self, key: str, value: bytes) -> None:
        try:
            await self._bus.write({key: value}, _KEPT_S)
        except DependencyDown:
            return


async def forget_answers(bus: RedisBus) -> int:
    """Forget all answers, as those of calls that a restored database does not know; how many. Raises DependencyDown."""
    return await bus.forget(_PREFIX)


def _key(request: RequestKey, secret: bytes) -> str:
    return f"{_PREFIX}{hmac.digest(secret, orjson.dumps(request.identity), 'sha256').hex()}"
