"""Provides the clock of tests, and the only polling they do."""

from __future__ import annotations

import asyncio
import heapq
import inspect
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from math import inf
from typing import TypeVar, overload

Value = TypeVar("Value")

# Far from the real time, so that whoever asks the machine instead of the clock is seen to.
START = datetime(2030, 1, 1, 12, tzinfo=UTC)

_SETTLE_ROUNDS = 50
_POLL_S = 0.005


class FakeClock:
    """A clock that stands still until a test moves it.

    Whoever sleeps on it wakes when it is moved past the end of the sleep. `on_move` hears each new moment before the
    sleepers wake: the database takes its time from there. `rest` returns when nobody waits for anything but the clock,
    as for an answer of the database, and whether that took any waiting: no time passes meanwhile, however slow it is.
    """

    def __init__(
        self,
        start: datetime = START,
        on_move: Callable[[datetime], Awaitable[None]] | None = None,
        rest: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._start = start
        self._elapsed_s = 0.0
        self._on_move = on_move
        self._rest = rest
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        """The moment it stands at."""
        return self._start + timedelta(seconds=self._elapsed_s)

    def monotonic(self) -> float:
        """Seconds it was moved by so far."""
        return self._elapsed_s

    @property
    def sleepers(self) -> int:
        """Return how many sleep on it."""
        return sum(not future.done() for _, _, future in self._sleepers)

    def until_next_s(self) -> float:
        """Seconds until the first of their sleeps ends; infinite where nobody sleeps."""
        return min((due_s for due_s, _, future in self._sleepers if not future.done()), default=inf) - self._elapsed_s

    async def sleep(self, seconds: float) -> None:
        """Return when the clock was moved by `seconds`; at once, after a turn of the loop, for none."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed_s + seconds, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move it, stopping wherever somebody's sleep ends, so that loops run as often as they would."""
        await self._settle()  # who is on the way to its sleep is asleep, and sleeps from here on
        end_s = self._elapsed_s + seconds
        while self._sleepers and self._sleepers[0][0] <= end_s:
            due_s, _, future = heapq.heappop(self._sleepers)
            if future.done():  # the sleeper was cancelled
                continue
            await self._move(due_s)
            future.set_result(None)
            await self._settle()
        await self._move(end_s)
        await self._settle()

    async def _settle(self) -> None:
        await settle()
        while self._rest is not None and await self._rest():
            await settle()

    async def _move(self, elapsed_s: float) -> None:
        if elapsed_s != self._elapsed_s:
            self._elapsed_s = elapsed_s
            if self._on_move is not None:
                await self._on_move(self.now())


@contextmanager
def ahead(seconds: float) -> Iterator[None]:
    """For the block, the timers of the running loop take it to be so much later: a timeout comes when the test says."""
    loop = asyncio.get_running_loop()
    real = loop.time
    loop.time = lambda: real() + seconds  # type: ignore[method-assign]  # asyncio asks the loop for all times
    try:
        yield
    finally:
        loop.time = real  # type: ignore[method-assign]  # asyncio asks the loop for all times


async def settle() -> None:
    """Let everything that is ready run; what waits for a socket needs `wait_until`."""
    for _ in range(_SETTLE_ROUNDS):
        await asyncio.sleep(0)


@overload
async def wait_until(predicate: Callable[[], Awaitable[Value]], timeout_s: float = 20.0, what: str = "") -> Value: ...


@overload
async def wait_until(predicate: Callable[[], Value], timeout_s: float = 20.0, what: str = "") -> Value: ...


async def wait_until(
    predicate: Callable[[], Value | Awaitable[Value]], timeout_s: float = 20.0, what: str = ""
) -> Value:
    """Ask until the answer is truthy, and return it; the only polling tests do.

    Raises:
        AssertionError: not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = predicate()
        value: Value = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or predicate}"
        await _pause()


async def _pause() -> None:
    loop = asyncio.get_running_loop()
    turn = loop.create_future()
    loop.call_later(_POLL_S, turn.set_result, None)
    await turn
