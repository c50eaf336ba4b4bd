"""Counts what apps and principals use of their monthly quotas, in memory, and keeps the counts in PostgreSQL.

Each process decides by what it last read of all processes and what it has counted since, and adds its counts to the
table every two seconds, which also tells it what others have added. So a quota can be exceeded by what the other
processes admit within that time, and a process that is killed loses its counts of that time and no others (ADR 141).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from datetime import date

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.ops.fault_log import FaultLog
from syncbeat_server.ratelimit.model import NO_QUOTA, LimitSubject, QuotaCharge, QuotaDecision, QuotaKey
from syncbeat_server.ratelimit.policy.decision import Bound, decide
from syncbeat_server.ratelimit.policy.months import Month, month_at
from syncbeat_server.ratelimit.store import quota_usage
from syncbeat_server.storage.batcher import Batcher
from syncbeat_server.storage.postgres.database import Database

_log = logging.getLogger(__name__)

FLUSH_S = 2.0
MAX_COUNTS = 50_000
"""Counts that a process keeps, and as many again that wait to be written: 30 MiB at most."""
_BATCH = 1_000
_MONTH_FRESH_S = 1.0
_REFUSED_FRESH_S = 60.0  # a row that an operator deletes, and clocks that were wrong, have an effect after so long


class _Count:
    """A count of one month: `total` of all processes when it was last read, and what is `pending` to be added to it."""

    __slots__ = ("month", "pending", "read_at", "total")

    def __init__(self, month: date, total: int, read_at: float) -> None:
        self.month = month
        self.total = total
        self.pending = 0
        self.read_at = read_at


_Subject = tuple[str, str, str, str]
"""A `QuotaKey` without its month: a plain tuple, since one is made for each charge of a call."""


class QuotaCounters:
    """Counts by app and principal. At most `size` counts are kept; others are read again when they are needed."""

    def __init__(self, database: Database, clock: Clock, size: int = MAX_COUNTS) -> None:
        self._database = database
        self._clock = clock
        self._size = size
        self._counts: OrderedDict[_Subject, _Count] = OrderedDict()
        self._dirty: dict[QuotaKey, _Count] = {}
        self._months: dict[str, tuple[Month, float]] = {}
        self._reads: Batcher[QuotaKey, int] = Batcher(self._read_batch)
        self._flushing = asyncio.Lock()
        self._trouble = FaultLog(_log, "quota counts cannot be written now, and wait", "quota counts are written again")
        self._is_full = False

    def take_quota(
        self, app_id: str, principal: str, time_zone: str, charges: Sequence[QuotaCharge]
    ) -> QuotaDecision | None:
        """Charge a call to the quotas of its limits: all of them, or none if one has too little left.

        `principal` is the caller's name in records, such as `user:ann`; limits without a quota are passed over.

        Returns:
            The decision of the strictest quota, `NO_QUOTA` if no limit has one; None if a count has to be read first,
            by `load`.
        """
        month = self._month(time_zone)
        taken: list[tuple[_Subject, _Count, QuotaCharge]] = []
        refused: QuotaDecision | None = None
        strictest: QuotaDecision | None = None
        for charge in charges:
            limit, cost = charge.limit, charge.cost
            if limit.monthly_quota is None:
                continue
            key = _subject(app_id, principal, charge)
            count = self._counts.get(key)
            if count is None or count.month != month.first:
                return None
            found = decide(Bound(limit.monthly_quota), count.total + count.pending, cost)
            told = QuotaDecision(found.allowed, found.limit, found.remaining, month.ends_at, limit)
            if found.allowed:
                strictest = _stricter(strictest, told)
                taken.append((key, count, charge))
            elif self._clock.monotonic() - count.read_at > _REFUSED_FRESH_S:
                return None
            else:
                refused = _stricter(refused, told)
        if refused is not None:
            return refused
        for key, count, charge in taken:
            self._add(key, count, charge.cost)
        return strictest or NO_QUOTA

    async def load(self, app_id: str, principal: str, time_zone: str, charges: Sequence[QuotaCharge]) -> None:
        """Read the counts of a call's quotas that are not known, or no longer fresh enough to refuse it.

        While the database does not answer, what is not known counts as unused: it is corrected with the next writing
        that succeeds. Calls are not refused for want of a count.
        """
        month = self._month(time_zone)
        subjects = [_subject(app_id, principal, charge) for charge in charges if charge.limit.monthly_quota is not None]
        await asyncio.gather(*(self._load(subject, month) for subject in subjects))

    async def run(self) -> None:
        """Write the counts every two seconds, for ever."""
        while True:
            await self._clock.sleep(FLUSH_S)
            try:
                await self.flush()
            except SyncbeatError as error:
                self._trouble.report(error.reason)
            else:
                self._trouble.resolve()

    async def flush(self) -> None:
        """Write all counts that wait. Raises DependencyDown: they go on waiting."""
        async with self._flushing:
            self._is_full = False
            keys = list(self._dirty)
            for start in range(0, len(keys), _BATCH):
                await self._write({key: self._dirty[key].pending for key in keys[start : start + _BATCH]})

    async def _write(self, used: dict[QuotaKey, int]) -> None:
        async with self._database.transaction() as conn:
            totals = await quota_usage.add_usage(conn, used)
        now = self._clock.monotonic()
        for key, written in used.items():
            count = self._dirty[key]
            count.pending -= written
            # Of a user who was deleted nothing is kept.
            count.total, count.read_at = totals.get(key, 0), now
            if not count.pending:
                del self._dirty[key]

    async def _load(self, subject: _Subject, month: Month) -> None:
        key, now = QuotaKey(*subject, month.first), self._clock.monotonic()
        count = self._dirty.get(key)
        if count is None:
            try:
                total = await self._reads.submit(key)
            except SyncbeatError as error:
                _log.debug("a quota's count cannot be read now", extra={"reason": error.reason})
                total = None
            # Another call may have begun to count meanwhile.
            held = self._counts.get(subject)
            count = self._dirty.get(key) or (held if held is not None and held.month == month.first else None)
            if count is None:
                count = _Count(month.first, total or 0, now)
            elif total is not None and not count.pending and count.read_at <= now:  # else a write told a newer one
                count.total = total
        count.read_at = max(count.read_at, now)
        self._counts[subject] = count
        self._counts.move_to_end(subject)
        while len(self._counts) > self._size:
            self._counts.popitem(last=False)

    async def _read_batch(self, keys: Sequence[QuotaKey]) -> Sequence[int]:
        async with self._database.connection() as conn:
            return await quota_usage.read_usage(conn, keys)

    def _add(self, subject: _Subject, count: _Count, cost: int) -> None:
        self._counts.move_to_end(subject)
        if count.pending:
            count.pending += cost
            return
        if not cost:
            return
        if len(self._dirty) >= self._size:
            self._warn_of_full()
            count.total += cost  # it limits this process, and is not written
            return
        count.pending = cost
        self._dirty[QuotaKey(*subject, count.month)] = count

    def _month(self, time_zone: str) -> Month:
        now = self._clock.monotonic()
        known = self._months.get(time_zone)
        if known is None or now >= known[1]:
            known = self._months[time_zone] = month_at(self._clock.now(), time_zone), now + _MONTH_FRESH_S
        return known[0]

    def _warn_of_full(self) -> None:
        if not self._is_full:
            self._is_full = True
            _log.warning("too many quota counts wait to be written: further ones are counted by this process alone")


def _subject(app_id: str, principal: str, charge: QuotaCharge) -> _Subject:
    limit = charge.limit
    return app_id, limit.subject, charge.tier if limit.subject is LimitSubject.APP else principal, limit.method_class


def _stricter(one: QuotaDecision | None, other: QuotaDecision) -> QuotaDecision:
    return other if one is None or other.remaining < one.remaining else one
