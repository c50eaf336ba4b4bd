"""Counts what the objectives are held against in this process, and adds it to the counts of all every few seconds.

Nothing of it is on the way of a call: the counters of the metrics are read, and their growth since the last reading is
kept by the moment until PostgreSQL has it. A process that is killed loses what it counted since the last write. What
PostgreSQL may have taken when a connection broke is written once more, as a share hardly shows a count too many.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.ops.fault_log import FaultLog
from syncbeat_server.status.model import Amounts, Series, Sums
from syncbeat_server.status.policy.slo_windows import SloTimes, difference, total
from syncbeat_server.status.store import slo_counts
from syncbeat_server.storage.postgres.database import Database

_log = logging.getLogger(__name__)

_MOST_UNWRITTEN = 60  # short buckets that one process keeps while PostgreSQL is away: an hour


class SloCounter:
    """Counts of one process that are not in PostgreSQL yet. Its parts add where theirs are read."""

    def __init__(self, database: Database, clock: Clock, times: SloTimes) -> None:
        self.lock = asyncio.Lock()
        """Held while counts move to PostgreSQL, and by whoever adds those of both places up."""
        self._database = database
        self._clock = clock
        self._times = times
        self._counters: list[Callable[[], Sums]] = []
        self._samples: list[Callable[[], Sums]] = []
        self._read: list[Sums] = []
        self._unwritten: dict[int, tuple[float, dict[str, Amounts]]] = {}
        self._trouble = FaultLog(
            _log, "what objectives are held against is not recorded now", "what objectives are held against is recorded"
        )

    def add_counters(self, counters: Callable[[], Sums]) -> None:
        """Count by how much these grow, from nothing on."""
        self._counters.append(counters)
        self._read.append({})

    def add_samples(self, sample: Callable[[], Sums]) -> None:
        """Count what this returns at each reading, as it is."""
        self._samples.append(sample)

    def collect(self) -> None:
        """Read the counters, and keep their growth."""
        for index, counters in enumerate(self._counters):
            now = counters()
            self._keep(difference(self._read[index], now))
            self._read[index] = now
        for sample in self._samples:
            self._keep(sample())

    def unwritten(self) -> list[tuple[float, Mapping[str, Amounts]]]:
        """Return what is not in PostgreSQL yet, with how many seconds ago it was counted."""
        now_s = self._clock.monotonic()
        return [(now_s - at_s, counts) for at_s, counts in self._unwritten.values()]

    async def run(self) -> None:
        """Write what was counted every few seconds, for ever."""
        while True:
            await self._clock.sleep(self._times.tick_s)
            try:
                await self.write()
                self._trouble.resolve()
            except SyncbeatError as error:
                self._trouble.report(error.message)

    async def write(self) -> None:
        """Collect, and write all that is not in PostgreSQL yet.

        Raises:
            SyncbeatError: PostgreSQL does not take it; it is kept for the next time.
        """
        async with self.lock:
            self.collect()
            await self._take_deadlocks()
            for slot in sorted(self._unwritten):
                await self._write_slot(slot)

    async def _write_slot(self, slot: int) -> None:
        """Write the counts of one moment, in a transaction of their own.

        Two processes that write several in one would lock the same buckets in different orders. Counts are taken out
        meanwhile: a report may collect while PostgreSQL does not answer, and what it adds is not what is written.
        """
        at_s, counts = self._unwritten.pop(slot)
        written = False
        try:
            async with self._database.connection() as conn:
                await slo_counts.add(conn, counts, max(0.0, self._clock.monotonic() - at_s), self._times)
            written = True
        finally:
            if not written:
                self._add(slot, at_s, counts)

    async def _take_deadlocks(self) -> None:
        async with self._database.connection() as conn:
            if not await slo_counts.has_new_deadlocks(conn):
                return
        async with self._database.transaction() as conn:
            deadlocks = await slo_counts.take_deadlocks(conn)
        if deadlocks:
            self._keep({Series.DEADLOCKS: (deadlocks,)})

    def _keep(self, counts: Sums) -> None:
        now_s = self._clock.monotonic()
        self._add(int(now_s // self._times.short_s), now_s, counts)
        while len(self._unwritten) > _MOST_UNWRITTEN:
            oldest, second = sorted(self._unwritten)[:2]
            at_s, counted = self._unwritten.pop(oldest)
            self._add(second, at_s, counted)

    def _add(self, slot: int, at_s: float, counts: Sums) -> None:
        if counts:
            known_at_s, known = self._unwritten.get(slot, (at_s, {}))
            self._unwritten[slot] = max(at_s, known_at_s), total(known, counts)
