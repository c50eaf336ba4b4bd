"""The caches of checked tokens of all processes: told to forget, and asked for their figures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from syncbeat_server.auth.accounts.token_cache import CacheStats
from syncbeat_server.auth.service import Authenticator
from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.storage.redis.cluster_query import Asker

_MAX_FLUSHES = 16


@dataclass(frozen=True)
class ProcessStats:
    """The figures of one process's cache."""

    process: str
    stats: CacheStats


class TokenCaches:
    """This process's part among all that serve RPCs."""

    def __init__(
        self, door: Authenticator, bus: RedisBus, process: str, callers_changed: Callable[[str, str | None], None]
    ) -> None:
        """`callers_changed(app, user)` is told whose streams look again, everybody's of the app for None."""
        self._door = door
        self._process = process
        self._callers_changed = callers_changed
        self._asker = Asker(bus, self._answer)
        self._to_flush: asyncio.Queue[str] = asyncio.Queue(_MAX_FLUSHES)
        self.topics = self._asker.topics
        self.heard = self._asker.heard

    async def forget(self, app_id: str, user_id: str, session_id: str) -> int:
        """Check the tokens of a user or a session anew, everywhere: how many were known.

        Raises:
            DependencyDown: only this process could be told.
        """
        return await self._told_everywhere({"app": app_id, "user": user_id, "session": session_id})

    async def forget_app(self, app_id: str) -> int:
        """As `forget`, for all tokens of an app, whose issuers' keys are fetched anew too."""
        return await self._told_everywhere({"app": app_id})

    async def stats(self) -> list[ProcessStats]:
        """The figures of each process that answers. Raises DependencyDown as `forget`."""
        answers = [orjson.loads(answer) for answer in await self._asker.ask("{}")]
        return sorted(
            (ProcessStats(answer.pop("process"), CacheStats(**answer)) for answer in answers),
            key=lambda one: one.process,
        )

    async def run(self) -> None:
        """Fetch the keys of issuers anew when told so, for ever."""
        while True:
            app_id = await self._to_flush.get()
            await asyncio.gather(*(store.flush() for store in self._door.stores_of(app_id)))

    async def _told_everywhere(self, order: dict[str, str]) -> int:
        question = orjson.dumps(order).decode()
        here = int(self._answer(question))
        # This process has done it by now, so that its own answer over Redis counts nothing twice.
        return here + sum(int(answer) for answer in await self._asker.ask(question))

    def _answer(self, question: str) -> str:
        order: dict[str, Any] = orjson.loads(question)
        if not order:
            stats = self._door.stats()
            return orjson.dumps({"process": self._process, **_fields(stats)}).decode()
        return str(self._forget(order["app"], order.get("user", ""), order.get("session", "")))

    def _forget(self, app_id: str, user_id: str, session_id: str) -> int:
        self._callers_changed(app_id, user_id or None)
        if user_id or session_id:
            return self._door.forget(app_id, user_id, session_id)
        if not self._to_flush.full():
            self._to_flush.put_nowait(app_id)
        return self._door.forget_all(app_id)


def _fields(stats: CacheStats) -> dict[str, int]:
    return {"size": stats.size, "hits": stats.hits, "misses": stats.misses, "evictions": stats.evictions}
