"""Counts the processes that share limits, so that each knows its share of them while Redis is away."""

from __future__ import annotations

import asyncio

from syncbeat_server.clock import Clock
from syncbeat_server.defaults import PROCESSES_EXPECTED
from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.storage.redis.shared_rates import count_processes, uncount_process

_KEPT_S = 60.0
"""Seconds for which a higher count is believed: after a restart of Redis not all have come back yet."""
_FIRST_S = 0.5
_MARKS_LAST = 6.0  # so many times as long as from one count to the next


class ProcessCount:
    """The number of processes that were there of late."""

    def __init__(self, bus: RedisBus, clock: Clock, process: str, every_s: float) -> None:
        self._bus = bus
        self._clock = clock
        self._process = process
        self._every_s = every_s
        self._next_at = clock.monotonic()
        self._pause_s = min(every_s, _FIRST_S)
        self._counts: dict[int, float] = {}
        self._ended = asyncio.Event()

    @property
    def count(self) -> int:
        """Return the highest number of processes that was counted of late."""
        return max(self._counts, default=PROCESSES_EXPECTED)

    async def refresh(self, *, returned: bool = False) -> None:
        """Count if it is due by time; at once if Redis may have returned, and then what was counted before holds on.

        Raises:
            DependencyDown: Redis does not answer; the last count stays.
        """
        now = self._clock.monotonic()
        if self._ended.is_set() or (not returned and now < self._next_at):
            return
        count = max(1, await count_processes(self._bus, self._process, _MARKS_LAST * self._every_s))
        if self._ended.is_set():  # meanwhile: the mark that this has set would last
            await uncount_process(self._bus, self._process)
        # Sooner at first, when others are starting too.
        self._next_at = now + self._pause_s
        self._pause_s = min(self._every_s, 2.0 * self._pause_s)
        kept = {known: now if returned else at for known, at in self._counts.items()}
        self._counts = {known: at for known, at in kept.items() if now - at <= _KEPT_S} | {count: now}

    async def end(self) -> None:
        """Count this process no more: else the shares and credits of the others stay small until its mark ends.

        Raises:
            DependencyDown: Redis does not answer.
        """
        self._ended.set()
        if self._counts:
            await uncount_process(self._bus, self._process)
