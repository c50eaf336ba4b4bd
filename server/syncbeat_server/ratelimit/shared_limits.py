"""Takes units of rates that all processes share: by a look into memory where that will do, else from Redis in batches.

Without Redis each process goes by its share of twice the rate, and tells afterwards what it used (ADR 134, ADR 135).
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Hashable, Sequence
from contextlib import suppress
from contextvars import Context

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown, Overloaded
from syncbeat_server.ratelimit.lease import (
    BELIEVED_S,
    LEASE_S,
    Charge,
    Lease,
    LeaseKey,
    LeaseRule,
    PendingTake,
    PreparedAsk,
    Refused,
    Waiter,
    Want,
    strictest,
)
from syncbeat_server.ratelimit.policy.decision import Decision, decide
from syncbeat_server.ratelimit.policy.gcra import CLOSED
from syncbeat_server.ratelimit.policy.local_share import share_of
from syncbeat_server.ratelimit.process_count import ProcessCount
from syncbeat_server.ratelimit.without_redis import take_shares
from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.storage.redis.shared_rates import MOST_ASKS, Answer, charge, settle


class SharedLimits:
    """Holds the buckets of one process. All methods run on its event loop."""

    def __init__(self, bus: RedisBus, clock: Clock, rule: LeaseRule | None = None) -> None:
        self._bus = bus
        self._clock = clock
        self._rule = rule or LeaseRule()
        self.known: dict[Hashable, tuple[Charge, ...]] = {}
        """The buckets of calls like those that came before, by what tells them apart (`remember`)."""
        self._leases: dict[LeaseKey, Lease] = {}
        self._older: dict[LeaseKey, Lease] = {}
        self._dirty: list[Lease] = []
        self._owing: dict[Lease, None] = {}
        self._reserved: dict[Lease, None] = {}
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_urgent = self._is_held = False
        self._flushing: asyncio.Task[None] | None = None
        self._in_use = asyncio.Event()
        self._era = 0
        self._is_reachable = self.is_shared = True
        self._settled_at = -math.inf
        self._processes = ProcessCount(bus, clock, secrets.token_hex(8), self._rule.count_s)
        self._count = self._processes.count
        self.asked = self.charged = self.decided_locally = 0
        """Counts since the start, for metrics: buckets asked for, and charged afterwards; decisions without Redis."""

    def take(self, wants: Sequence[Want], now: float) -> Refused | PendingTake | None:
        """Take all that a call wants, or nothing.

        Returns None if it has all, the strictest refusal, or what has to be waited for with `finish`.

        Raises:
            Overloaded: too many calls wait already.
        """
        return self.take_found([(self._find(key, now), cost) for key, cost in wants], 0.0, now)

    def take_found(self, found: Sequence[Charge], octets: float, now: float) -> Refused | PendingTake | None:
        """Take as `take` does, of buckets that were found before; `octets` of those whose cost is 0."""
        for one in found:
            lease, units = one
            balance = lease.balance - (units or octets)
            if balance < 0.0 or now >= lease.until:
                costs = [(its, units or octets) for its, units in found]
                self._return(costs[: found.index(one)], now)
                return self._take_slowly(costs, now)
            lease.balance = balance
            if balance < lease.low and not lease.is_queued:
                self._queue(lease)
        return None

    def remember(self, call: Hashable, wants: Sequence[Want], now: float) -> tuple[Charge, ...]:
        """Return the buckets of a call for `take_found`, and keep them in `known` as long as there is room."""
        found = tuple((self._find(key, now), cost) for key, cost in wants)
        if len(self.known) >= self._rule.max_keys:
            self.known = {}
        self.known[call] = found
        return found

    async def finish(self, pending: PendingTake) -> Refused | None:
        """Wait for what a call could not take at once. Returns None if it has all, else the strictest refusal."""
        refusals: list[Refused] = []
        has_all = False
        try:
            for _, _, future in pending.waits:
                refused = await future
                refusals += [] if refused is None else [refused]
            has_all = not refusals
        finally:
            if not has_all:
                for _, _, future in pending.waits:
                    future.cancel()  # without effect on those that are done
                got = [(lease, cost) for lease, cost, future in pending.waits if _is_granted(future)]
                self._return(pending.held + got, self._clock.monotonic())
        return strictest(refusals) if refusals else None

    @property
    def size(self) -> int:
        """Return the number of buckets in memory."""
        return len(self._leases) + len(self._older)

    @property
    def share(self) -> float:
        """Return the part of each rate that this process goes by while Redis is away."""
        return share_of(self._processes.count)

    def activate(self) -> None:
        """Count this process from now on as one that shares limits."""
        self._in_use.set()

    async def run(self) -> None:
        """Count the processes, give back what is not used, and find Redis again, for ever, once this is active."""
        await self._in_use.wait()
        while True:
            await self._look()
            await self._clock.sleep(LEASE_S if self._is_reachable else self._rule.probe_s)
            self._sweep(self._clock.monotonic())

    async def close(self) -> None:
        """Charge what was used on credit and give back what was not used, as far as Redis answers."""
        self._sweep(math.inf)
        self._dirty += [lease for lease in self._owing if not lease.is_queued]
        while self._dirty and self._is_reachable:
            if self._flushing is None:
                self._start()
            if self._flushing is not None:
                await asyncio.wait([self._flushing])
        if self._timer is not None:
            self._timer.cancel()
        if not self._is_reachable:
            return
        with suppress(DependencyDown, TimeoutError):
            async with asyncio.timeout(self._rule.answer_s):
                await self._processes.end()

    def _find(self, key: LeaseKey, now: float) -> Lease:
        lease = self._leases.get(key)
        if lease is None:
            if len(self._leases) >= self._rule.max_keys // 2:
                self._leases, self._older, self.known = {}, self._leases, {}
            lease = self._older.pop(key, None) or Lease(key, now, self._count)
            self._leases[key] = lease
        if lease.processes < self._count:
            lease.renew_credit(lease.used_by_others(now), self._count)
        return lease

    def _take_slowly(self, costs: Sequence[Charge], now: float) -> Refused | PendingTake | None:
        found = [(lease, min(cost, float(lease.rate.burst))) for lease, cost in costs]
        if not self.is_shared:
            return self._take_locally(found, now)
        if self._waiting >= self._rule.max_waiting:
            raise Overloaded("too many calls wait for their limits")
        pending, asking, refusals = PendingTake(), [], []
        for lease, cost in found:
            answer = self._try(lease, cost, now)
            if isinstance(answer, Decision):
                refusals.append(Refused(lease.rule, answer))
            elif answer:
                pending.held.append((lease, cost))
            else:
                asking.append((lease, cost))
        if refusals:
            self._return(pending.held, now)
            return strictest(refusals)
        for lease, cost in asking:
            pending.waits.append((lease, cost, self._wait(lease, cost)))
        return pending if asking else None

    def _try(self, lease: Lease, cost: float, now: float) -> Decision | bool:
        """Take from one lease: True, or False if Redis has to be asked, or the refusal that is known already."""
        if now >= lease.until:
            self._queue(lease)  # what was not used goes back, and none of it is used from here on
            if lease.reserve > 0.0:
                return False
        if lease.balance < cost:
            used = lease.used_by_others(now)
            decision = decide(lease.bound, used + lease.awaited(cost), cost)
            if not decision.allowed:
                # What others give back is not told: after a while Redis is asked, though by now nothing has drained.
                known = lease.bound is CLOSED or lease.waiters or now - lease.used_at_s < BELIEVED_S
                return decision if known else False
            if not lease.waiters:
                lease.renew_credit(used, self._processes.count)
            if lease.balance < cost:
                return False
        lease.balance -= cost
        if lease.balance < lease.low:
            self._queue(lease)
        return True

    def _wait(self, lease: Lease, cost: float) -> asyncio.Future[Refused | None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Refused | None] = loop.create_future()
        future.add_done_callback(self._waited)
        self._waiting += 1
        lease.waiters.append(Waiter(cost, future))
        self._queue(lease)
        if self._flushing is None and not self._is_urgent:
            self._arm(0.0)
        return future

    def _waited(self, _: asyncio.Future[Refused | None]) -> None:
        self._waiting -= 1

    def _return(self, taken: Sequence[Charge], now: float) -> None:
        for lease, cost in taken:
            lease.balance += cost
            if lease.reserve > 0.0:
                lease.until = min(lease.until, now + LEASE_S)
                self._reserved[lease] = None

    def _take_locally(self, found: Sequence[Charge], now: float) -> Refused | None:
        """Decide by this process's share of twice the rates; what is used is told to Redis when it is back."""
        self.decided_locally += 1
        refused = take_shares(found, share_of(self._processes.count), self._era, now)
        if refused is not None:
            return refused
        for lease, _ in found:
            self._owing[lease] = None
            if self._is_reachable:
                self._queue(lease)
        while len(self._owing) > self._rule.max_keys:
            del self._owing[next(iter(self._owing))]
        return None

    def _queue(self, lease: Lease) -> None:
        if not lease.is_queued:
            lease.is_queued = True
            self._dirty.append(lease)
            if self._timer is None and self._flushing is None:
                self._arm(self._rule.report_s)

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._is_urgent = not seconds
        # In an empty context: what is asked is for no single caller.
        self._timer = asyncio.get_running_loop().call_later(seconds, self._start, context=Context())

    def _start(self) -> None:
        self._timer, self._is_urgent = None, False
        if self._flushing is not None or not self._dirty:
            return
        batch, self._dirty = self._dirty[:MOST_ASKS], self._dirty[MOST_ASKS:]
        for lease in batch:
            lease.is_queued = False
        if not self._is_reachable:
            self._owing.update(dict.fromkeys(batch))
            self._settle_locally(batch)
            return
        self._flushing = asyncio.get_running_loop().create_task(self._flush(batch), context=Context())

    async def _flush(self, batch: Sequence[Lease]) -> None:
        now = self._clock.monotonic()
        prepared: list[PreparedAsk] = []
        paid: list[Charge] = []
        lines: list[str] = []
        for lease in batch:
            debt = lease.credit - lease.balance
            if debt > 0.0 and not lease.waiters and not lease.owed:
                lease.balance = lease.credit
                lease.peak += debt
                paid.append((lease, debt))
                lines.append(lease.line_of_one if debt == 1.0 else f"{lease.line} {debt:.9g}")
            elif debt or lease.waiters or lease.owed:
                prepared.append(self._prepare(lease, now))
        try:
            async with asyncio.timeout(self._rule.answer_s):
                answers = await settle(self._bus, [one.ask for one in prepared]) if prepared else []
                full = await charge(self._bus, lines) if lines else {}
        except (DependencyDown, TimeoutError):
            for one in prepared:
                one.lease.owed += one.owed
            for lease, units in paid:
                lease.unpay(units)
            self._lose(batch)
        else:
            self.asked += len(prepared)
            self.charged += len(paid)
            now = self._clock.monotonic()
            for one, answer in zip(prepared, answers, strict=True):
                self._credit(one.lease, one.debt, answer, now)
            for number, used in full.items():
                lease, _ = paid[number]
                lease.used, lease.used_at_s = used, now
                lease.renew_credit(used, self._processes.count)
        finally:
            self._flushing = None
            if self._dirty:
                self._arm(0.0 if self._waiting and not self._is_held else self._rule.report_s)
            self._is_held = False

    def _prepare(self, lease: Lease, now: float) -> PreparedAsk:
        self._owing.pop(lease, None)
        return lease.prepare(now, self._processes.count, may_want=self.is_shared)

    def _credit(self, lease: Lease, debt: float, answer: Answer, now: float) -> None:
        """Book an answer of Redis, and serve those who waited for it."""
        lease.book(debt, answer, now, self._processes.count)
        waiters, lease.waiters = lease.waiters, []
        for waiter in waiters:
            cost, future, _ = waiter
            if future.done():
                continue
            if lease.balance >= cost:
                lease.balance -= cost
                future.set_result(None)
                continue
            decision = lease.decide_waiter(waiter, now)
            if not decision.allowed:
                future.set_result(Refused(lease.rule, decision))
            elif self.is_shared:  # it came while others were asked for, or the last units are held
                self._is_held = True
                lease.wait_again(waiter, now)
            else:
                future.set_result(self._take_locally([(lease, cost)], now))
        if lease.reserve > 0.0:
            lease.until = now + LEASE_S
            self._reserved[lease] = None
        else:
            lease.until = math.inf
        if lease.waiters or lease.balance < lease.credit - lease.untold:
            self._queue(lease)

    def _lose(self, batch: Sequence[Lease]) -> None:
        """Go on without Redis: those who wait for it are decided here."""
        if self.is_shared or self._is_reachable:
            self._era += 1
        self.is_shared = self._is_reachable = False
        lost, self._dirty = [*batch, *self._dirty], []
        self._owing.update(dict.fromkeys(lost))
        for lease in lost:
            lease.is_queued = False
        self._settle_locally(lost)

    def _settle_locally(self, leases: Sequence[Lease]) -> None:
        now = self._clock.monotonic()
        for lease in leases:
            waiters, lease.waiters = lease.waiters, []
            for cost, future, _ in waiters:
                if not future.done():
                    future.set_result(self._take_locally([(lease, cost)], now))

    async def _look(self) -> None:
        """Count the processes when that is due, which tells too if Redis is there."""
        try:
            async with asyncio.timeout(self._rule.answer_s):
                await self._processes.refresh(returned=not self._is_reachable)
        except (DependencyDown, TimeoutError):
            self._lose([])
            return
        before, self._count = self._count, self._processes.count
        if self._count > before:
            self.known = {}  # so that each bucket is found anew, and its credit becomes smaller
        now = self._clock.monotonic()
        if not self._is_reachable:
            self._is_reachable, self._settled_at = True, now + self._rule.settle_s
            for lease in list(self._owing):
                self._queue(lease)
        elif not self.is_shared and now >= self._settled_at:
            self.is_shared = True

    def _sweep(self, now: float) -> None:
        """Give back what was granted and not used in time."""
        for lease in list(self._reserved):
            if lease.reserve <= 0.0:
                del self._reserved[lease]
            elif now >= lease.until:
                del self._reserved[lease]
                if now == math.inf:
                    lease.until = 0.0
                self._queue(lease)


def _is_granted(future: asyncio.Future[Refused | None]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None and future.result() is None
