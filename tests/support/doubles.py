"""Stand-ins for what a delivery worker works with: a provider with a script, streams, a database that fails."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from syncbeat_server.push.model import ClaimedDelivery, Outcome, Verdict
from syncbeat_server.push.providers import Message
from syncbeat_server.storage.postgres.database import Connection, Database
from syncbeat_server.storage.redis.token_bucket import Grant


class ScriptedProvider:
    """Answers what the script says, then that everything was sent. With a gate, nobody is answered before it opens."""

    def __init__(self, *script: Outcome | Exception, gated: bool = False) -> None:
        self.script = deque(script)
        self.asked: list[ClaimedDelivery] = []
        self.messages: list[Message] = []
        self.gate = asyncio.Event()
        self.under_way = self.most_under_way = 0
        self.on_send: Callable[[], None] = lambda: None
        if not gated:
            self.gate.set()

    async def send(self, message: Message) -> Outcome:
        self.messages.append(message)
        self.asked.append(message.delivery)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.gate.wait()
        finally:
            self.under_way -= 1
        self.on_send()
        answer = self.script.popleft() if self.script else Outcome(Verdict.SENT, provider_message_id="m")
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        """Nothing to give back."""

    @property
    def times(self) -> Counter[str]:
        """Return how often each delivery was sent."""
        return Counter(delivery.delivery_id for delivery in self.asked)


class Unlimited:
    """A token bucket that grants every request."""

    async def acquire(self, key: str, wanted: int, cost: float) -> Grant:
        return Grant(wanted, 0.0)


class Streams:
    """Records which users have a live stream."""

    def __init__(self) -> None:
        self.users: set[str] = set()
        self.questions: list[tuple[str, str, str]] = []

    async def live(self, devices: Sequence[tuple[str, str, str]]) -> list[bool]:
        self.questions += devices
        return [user in self.users for _, user, _ in devices]


class SlowDatabase:
    """A Database whose transactions begin when the gate opens."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.gate = asyncio.Event()
        self.waiting = 0

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        self.waiting += 1
        await self.gate.wait()
        async with self._database.transaction() as conn:
            yield conn

    def connection(self) -> Any:
        return self._database.connection()


class FailingDatabase:
    """Wraps a Database: fails with `error` as long as there is one, and counts how often it did."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.error: Exception | None = None
        self.refused = 0

    def connection(self) -> Any:
        self._maybe_refuse()
        return self._database.connection()

    def transaction(self, *arguments: Any) -> Any:
        self._maybe_refuse()
        return self._database.transaction(*arguments)

    @property
    def as_database(self) -> Database:
        return cast(Database, self)

    def _maybe_refuse(self) -> None:
        if self.error is not None:
            self.refused += 1
            raise self.error


class HeldDatabase:
    """Wraps a Database: counts how often it is asked, and can hold back what it has answered."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked = 0
        self.holding = 0
        self.free = asyncio.Event()
        self.free.set()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        self.asked += 1
        async with self._database.connection() as conn:
            yield conn
        self.holding += 1
        await self.free.wait()
        self.holding -= 1

    @property
    def as_database(self) -> Database:
        return cast(Database, self)
