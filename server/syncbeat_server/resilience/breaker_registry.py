"""Holds the breakers of a process by name, and exchanges their news with the fleet."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.resilience.breaker import BreakerRule, BreakerState
from syncbeat_server.resilience.fleet_breaker import BreakerObserver, BreakerStates, FleetBreaker

# In this time others hear of a discovery. While nothing changes, it costs one read of one key a process.
EVERY_S = 1.0
_MOST = 4_096  # apps with providers and hosts of webhooks, of a process


class BreakerRegistry:
    """Makes a breaker when its name is first asked for; beyond `most` the least recently asked for that is closed goes.

    One that is not closed knows something: it goes only where all others are not closed either.
    """

    def __init__(
        self,
        rule: BreakerRule,
        clock: Clock,
        states: BreakerStates | None = None,
        observer: BreakerObserver | None = None,
        most: int = _MOST,
        every_s: float = EVERY_S,
    ) -> None:
        self._rule = rule
        self._clock = clock
        self._states = states
        self._observer = observer
        self._most = most
        self._every_s = every_s
        self._process = secrets.token_hex(8)
        self._by_name: OrderedDict[str, FleetBreaker] = OrderedDict()
        self._version = -1
        self._has_news = asyncio.Event()
        self._syncing = asyncio.Lock()

    def of(self, name: str) -> FleetBreaker:
        """Return the breaker of a dependency, named `kind:subject`."""
        found = self._by_name.get(name)
        if found is None:
            while len(self._by_name) >= self._most:
                self._forget_one()
            found = self._by_name[name] = FleetBreaker(
                name, self._rule, self._clock, self._states, self._observer, self._process
            )
            found.on_news = self._has_news.set
            self._version = -1  # the fleet may know of it
        self._by_name.move_to_end(name)
        return found

    def all(self) -> list[FleetBreaker]:
        """Return the breakers that there are."""
        return list(self._by_name.values())

    @property
    def count(self) -> int:
        """Return how many breakers there are."""
        return len(self._by_name)

    def _forget_one(self) -> None:
        closed = (name for name, one in self._by_name.items() if one.state is BreakerState.CLOSED)
        del self._by_name[next(closed, next(iter(self._by_name)))]

    async def sync(self) -> None:
        """Tell the fleet the news of this process, and hear its own. Without the shared state nothing happens."""
        if self._states is None:
            return
        self._has_news.clear()
        async with self._syncing:
            try:
                await self._exchange(self._states)
            except DependencyDown:
                self._version = -1

    async def run(self) -> None:
        """Exchange news for ever: of this process at once, of others each second."""
        await asyncio.gather(self._listen(), self._tell())

    async def _listen(self) -> None:
        while True:
            await self._clock.sleep(self._every_s)
            await self.sync()

    async def _tell(self) -> None:
        while True:
            await self._has_news.wait()
            await self.sync()

    async def _exchange(self, states: BreakerStates) -> None:
        for breaker in list(self._by_name.values()):
            await breaker.send_news()
        version = await states.version()
        if version == self._version:
            return
        self._version = version  # before they are read: one that is made meanwhile asks to be read too
        known = list(self._by_name.values())
        for breaker, found in zip(known, await states.read([one.name for one in known]), strict=True):
            breaker.adopt(found)
