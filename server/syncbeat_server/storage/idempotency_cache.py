"""Caches the answers of committed requests in Redis for an hour, so that most repeats need no PostgreSQL.

An answer is written after the commit only, so every cached answer is true; a missing one is looked up in PostgreSQL.
Keys are made with a secret of the database, so that two databases which share a Redis do not answer for each other.
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
# While Redis is away, calls must not each wait for it.
_RULE = BreakerRule(failures=1, open_s=5.0, trials=1, successes=1)


class IdempotencyCache:
    """Reads and writes cached answers. Redis may lose any of them at any time."""

    def __init__(self, bus: RedisBus, clock: Clock) -> None:
        self._bus = bus
        self._breaker = Breaker(_RULE, clock)
        self._writes: set[asyncio.Task[None]] = set()

    async def find(self, request: RequestKey, secret: bytes) -> bytes | None:
        """Return the answer (JSON) to an earlier call with the same content; None if it is not cached."""
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
            permit.release()  # the caller may have been cancelled
        digest = request.content_hash
        return kept[len(digest) :] if kept is not None and kept.startswith(digest) else None

    def keep(self, request: RequestKey, secret: bytes, answer: bytes) -> None:
        """Cache the answer of a committed request, without waiting for Redis."""
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
    """Delete all answers, whose calls a restored database may not know; return how many. Raises DependencyDown."""
    return await bus.forget(_PREFIX)


def _key(request: RequestKey, secret: bytes) -> str:
    return f"{_PREFIX}{hmac.digest(secret, orjson.dumps(request.identity), 'sha256').hex()}"
