"""Invalidates verified tokens and collects cache statistics across all processes that serve RPCs, over Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from syncbeat_server.auth.accounts.caller_caches import CallerCaches
from syncbeat_server.auth.accounts.token_cache import CacheStats
from syncbeat_server.auth.tokens.jwks import JwksStore
from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.storage.redis.cluster_query import ClusterQuery

# Apps whose keys wait to be fetched. Further orders are dropped: they come from operators, a handful at a time.
_MAX_FLUSHES = 16


@dataclass(frozen=True)
class ProcessStats:
    """The token-cache statistics of one process."""

    process: str
    stats: CacheStats


class ClusterTokenCache:
    """The caller caches of all processes, as seen from this one."""

    def __init__(
        self,
        caches: CallerCaches,
        jwks: Callable[[], Iterable[JwksStore]],
        bus: RedisBus,
        process: str,
        callers_changed: Callable[[str, str | None], None],
    ) -> None:
        """Take this process's caches, its issuers' key stores as they are now, and its name.

        `callers_changed(app, user)` makes the user's streams recheck their caller; None: all streams of the app.
        """
        self._caches = caches
        self._jwks = jwks
        self._process = process
        self._callers_changed = callers_changed
        self._query = ClusterQuery(bus, self._answer)
        self._to_flush: asyncio.Queue[str] = asyncio.Queue(_MAX_FLUSHES)
        self.topics = self._query.topics
        self.handle = self._query.handle

    async def invalidate(self, app_id: str, user_id: str, session_id: str) -> int:
        """Drop the cached tokens of a user or a session in all processes. Returns how many there were.

        Raises:
            DependencyDown: Redis is away, so only this process has dropped them.
        """
        return await self._order_all({"app": app_id, "user": user_id, "session": session_id})

    async def invalidate_app(self, app_id: str) -> int:
        """Drop all cached tokens of an app in all processes and fetch its issuers' keys anew. See `invalidate`."""
        return await self._order_all({"app": app_id})

    async def stats(self) -> list[ProcessStats]:
        """Return the statistics of each process that answers, by name.

        Raises:
            DependencyDown: Redis is away.
        """
        answers = [orjson.loads(answer) for answer in await self._query.ask("{}")]
        return sorted(
            (ProcessStats(answer.pop("process"), CacheStats(**answer)) for answer in answers),
            key=lambda one: one.process,
        )

    async def run(self) -> None:
        """Fetch issuers' keys anew whenever an app was invalidated, for ever."""
        while True:
            app_id = await self._to_flush.get()
            await asyncio.gather(*(store.flush() for store in self._jwks() if store.issuer.app_id == app_id))

    async def _order_all(self, order: dict[str, str]) -> int:
        question = orjson.dumps(order).decode()
        here = int(self._answer(question))
        # This process has dropped its own by now, so its answer over Redis adds 0.
        return here + sum(int(answer) for answer in await self._query.ask(question))

    def _answer(self, question: str) -> str:
        order: dict[str, Any] = orjson.loads(question)
        if not order:
            return orjson.dumps({"process": self._process, **asdict(self._caches.tokens.stats())}).decode()
        return str(self._invalidate_here(order["app"], order.get("user", ""), order.get("session", "")))

    def _invalidate_here(self, app_id: str, user_id: str, session_id: str) -> int:
        self._callers_changed(app_id, user_id or None)
        if user_id or session_id:
            return self._caches.invalidate(app_id, user_id, session_id)
        if not self._to_flush.full():
            self._to_flush.put_nowait(app_id)
        return self._caches.invalidate_app(app_id)
