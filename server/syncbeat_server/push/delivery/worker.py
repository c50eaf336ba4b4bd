"""The delivery worker: claims leased deliveries, has them sent through their app's channel, keeps the queue in order.

Many workers share the queue. A crash between any two steps loses nothing: the lease runs out, and the delivery is
claimed again under the same delivery id, which replaces the first copy on the device.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from syncbeat_server.clock import Clock
from syncbeat_server.defaults import DELIVERY_LEASE_S, DELIVERY_POLL_S
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.push.accept import close_windows, expand
from syncbeat_server.push.delivery import maintenance
from syncbeat_server.push.delivery.attempt import Sender
from syncbeat_server.push.delivery.channel import Channel
from syncbeat_server.push.delivery.maintenance import QueueFigures
from syncbeat_server.push.delivery.outcomes import Recorder
from syncbeat_server.push.delivery.preflight import Live, Screening
from syncbeat_server.push.delivery.resend_scan import Resending
from syncbeat_server.push.model import ClaimedDelivery, Lane, Reason
from syncbeat_server.push.policy import decisions
from syncbeat_server.push.policy.decisions import RetryRule
from syncbeat_server.push.store import queue, resends
from syncbeat_server.push.store.queue_frontier import Frontier
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.redis.token_bucket import TokenBucket

_log = logging.getLogger(__name__)

_CLAIM_BATCH = 200
_DOWN_PAUSE_S = 0.5
_CANCEL_AGAIN_S = 0.2
_GIVE_BACK_S = 0.8
_AUDIT_EVERY_S = 30.0
_HEALTH_EVERY_S = 5.0
_BROKEN_S = 30.0
_REFILL = 0.5  # of what may be in flight: below it the next ones are claimed, so that claims stay large


@dataclass(frozen=True)
class WorkerRule:
    """How a worker works: length of a lease, how often it looks unasked."""

    lease_s: float = DELIVERY_LEASE_S
    poll_s: float = DELIVERY_POLL_S
    retry: RetryRule = field(default_factory=RetryRule)


@dataclass(frozen=True)
class WorkerHooks:
    """Who is told (the metrics): of each attempt, of outcomes whose lease had run out, of apps whose
    tokens are not believed to be dead, of the queue's figures, of wake-ups (app, whether again) and of tries that
    nobody answered (app, which, how many)."""

    attempt_ended: Callable[[str], None] = lambda outcome: None
    voided: Callable[[int], None] = lambda count: None
    braked: Callable[[str], None] = lambda app_id: None
    audited: Callable[[QueueFigures], None] = lambda figures: None
    woken: Callable[[str, bool], None] = lambda app_id, again: None
    missed: Callable[[str, str, int], None] = lambda app_id, tries, count: None


class DeliveryWorker:
    """Delivers what is due until it is drained."""

    def __init__(
        self,
        database: Database,
        channels: Mapping[str, Channel],
        live: Live,
        allowance: TokenBucket,
        rule: WorkerRule,
        clock: Clock,
        hooks: WorkerHooks = WorkerHooks(),
    ) -> None:
        """`channels` by app, read anew each time: its owner may change it."""
        self._database = database
        self._channels = channels
        self._allowance = allowance
        self._rule = rule
        self._clock = clock
        self._hooks = hooks
        self._recorder = Recorder(
            database, clock, self.wake, hooks.voided, hooks.braked, rule.retry.resend, hooks.woken
        )
        self._resending = Resending(database, rule.retry.resend, rule.lease_s, hooks.missed, clock)
        self._frontier, self._lost = Frontier[queue.AppLane](clock), Frontier[None](clock)
        self._screening = Screening(database, channels, live, rule.retry)
        self._sender = Sender(database, channels, self._recorder, rule.retry, hooks.attempt_ended)
        self._dice = random.SystemRandom()
        self._woken, self._to_expand = asyncio.Event(), asyncio.Event()
        self._draining, self._stopped = asyncio.Event(), asyncio.Event()
        self._alarm: asyncio.Task[None] | None = None
        self._short: set[str] = set()
        self._credit: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._attempts: set[asyncio.Task[None]] = set()
        self._claiming = asyncio.Lock()

    def wake(self) -> None:
        """There may be something due."""
        self._woken.set()

    async def run(self) -> None:
        """Work until `drain`; whatever is held when cancelled is given back."""
        chores = [
            asyncio.ensure_future(self._every(self._rule.poll_s, self._look)),
            asyncio.ensure_future(self._every(self._rule.poll_s, self._ask_again)),
            asyncio.ensure_future(self._every(_HEALTH_EVERY_S, self._tell_broken)),
            asyncio.ensure_future(self._every(self._rule.lease_s / 4, self._extend)),
            asyncio.ensure_future(self._every(self._rule.lease_s / 2, self._rescue)),
            asyncio.ensure_future(self._every(_AUDIT_EVERY_S, self._audit)),
            asyncio.ensure_future(self._expand()),
        ]
        try:
            await self._work()
        finally:
            chores += [self._alarm] if self._alarm is not None else []
            for task in (*chores, *self._attempts):
                task.cancel()
            await asyncio.gather(*chores, *self._attempts, return_exceptions=True)
            await self._recorder.drain()  # what was sent counts before the rest is given back
            await self._give_back()
            self._stopped.set()

    def claim_no_more(self) -> None:
        """Begin to drain: what is under way goes on."""
        self._draining.set()
        self.wake()

    async def drain(self, seconds: float) -> None:
        """Claim no more, and end `run` when the attempts under way are recorded, or after `seconds`.

        What was to be recorded and given back then has a moment more; without the database's answer, leases run out.
        """
        self.claim_no_more()
        loop = asyncio.get_running_loop()
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait([stopped], timeout=seconds)
            ends = loop.time() + _GIVE_BACK_S
            while not stopped.done() and loop.time() < ends:
                # More than once: a claim that was under way may only now start its attempts.
                for task in set(self._attempts):
                    task.cancel()
                await asyncio.wait([stopped], timeout=_CANCEL_AGAIN_S)
        finally:
            stopped.cancel()

    async def _work(self) -> None:
        while not self._draining.is_set():
            self._woken.clear()
            try:
                async with self._claiming:
                    more = await self._take()
            except SyncbeatError as error:
                _log.warning("cannot claim deliveries now", extra={"reason": error.reason}, exc_info=error.__cause__)
                await self._pause(_DOWN_PAUSE_S)
                continue
            if not more:
                await self._woken.wait()
        while self._attempts:
            await asyncio.wait(set(self._attempts))

    async def _pause(self, seconds: float) -> None:
        # Whoever wakes it meanwhile; but draining does not wait for this.
        ends = [asyncio.ensure_future(one) for one in (self._clock.sleep(seconds), self._draining.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()

    async def _take(self) -> bool:
        """Claim what there is room for, and start its attempts; whether there is more to claim at once."""
        room = await self._room()
        if not room:
            return False
        lease_token = str(uuid.uuid4())
        reach = self._frontier.begin()
        async with self._database.transaction() as conn:
            found = await queue.claim(conn, lease_token, self._rule.lease_s, room, partial(self._frontier.place, reach))
            if found.trailing:
                await close_windows(conn, lease_token, found.trailing)
            deliveries = await queue.claimed(conn, lease_token, found.keys) if found.keys else []
        self._walked(room, found)
        self._frontier.end(reach)
        if not found.keys:
            return False
        self._held[lease_token] += len(deliveries)
        await self._start_all(lease_token, deliveries)
        took = Counter(delivery.app_id for delivery in deliveries)
        full = {app_id for app_id, most in room.items() if took[app_id] >= most}
        self._short |= full
        return bool(full)

    def _walked(self, room: Mapping[str, int], found: queue.Claim) -> None:
        took = Counter(app_id for app_id, _ in found.keys)
        for app_id, priority in ((app_id, priority) for app_id in room for priority in Lane):
            last = found.last.get((app_id, priority))
            if took[app_id] < room[app_id]:
                self._frontier.stopped_at((app_id, priority), None, found.now)
            elif last is not None:
                self._frontier.stopped_at((app_id, priority), last, found.now)
            # Else the other lane took all the room, and this one was not walked to anywhere.

    async def _ask_again(self) -> None:
        """Send again what nobody answered, as far as the attempts of `_take` leave room."""
        while not self._draining.is_set():
            lease_token = str(uuid.uuid4())
            async with self._claiming:
                again = await self._resending.take(lease_token, self._spare())
                if again.deliveries:
                    self._held[lease_token] += len(again.deliveries)
                    await self._start_all(lease_token, again.deliveries)
            if again.told:
                await self._resending.count(again.told)
            if not again.more:
                return

    def _spare(self) -> dict[str, int]:
        """How many more of each app may go out now, of what was granted already."""
        return {
            app_id: min(channel.gate.room(bypassed=channel.fallback is not None), self._credit[app_id])
            for app_id, channel in self._channels.items()
        }

    async def _tell_broken(self) -> None:
        """Tell the processes that answer devices whose provider is not asked now."""
        broken = {
            app_id: channel.gate.closed_for_s() + _BROKEN_S
            for app_id, channel in self._channels.items()
            if channel.fallback is None and channel.gate.broken
        }
        if broken:
            async with self._database.connection() as conn:
                await resends.mark_broken(conn, broken)

    async def _room(self) -> dict[str, int]:
        """How many of each app may be claimed now: what its gate and its rate let through."""
        room = {}
        for app_id, channel in list(self._channels.items()):
            free = min(channel.gate.room(bypassed=channel.fallback is not None), _CLAIM_BATCH)
            if free <= 0:
                self._wake_in(channel.gate.closed_for_s())
                continue
            if self._credit[app_id] < free:
                wanted = free - self._credit[app_id]
                grant = await self._allowance.acquire(channel.rate_key, wanted, 1 / channel.gate.share)
                self._credit[app_id] += grant.count
                self._wake_in(grant.wait_s)
            if self._credit[app_id] > 0:
                room[app_id] = min(free, self._credit[app_id])
        return room

    async def _start_all(self, lease_token: str, deliveries: Sequence[ClaimedDelivery]) -> None:
        try:
            judged = await self._screening.judge(deliveries)
        except SyncbeatError as error:
            _log.warning("cannot look at deliveries now", extra={"reason": error.reason})
            judged = [decisions.put_off(delivery, Reason.NONE, _DOWN_PAUSE_S) for delivery in deliveries]
        for delivery, needless in zip(deliveries, judged, strict=True):
            if needless is not None:
                self._start(lease_token, None, self._recorder.record(needless))
            else:
                self._credit[delivery.app_id] -= 1
                self._start(lease_token, self._channels.get(delivery.app_id), self._sender.attempt(delivery))

    def _start(self, lease_token: str, channel: Channel | None, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._attempts.add(task)
        if channel is not None:
            channel.gate.under_way += 1
        task.add_done_callback(partial(self._ended, lease_token, channel))

    def _ended(self, lease_token: str, channel: Channel | None, task: asyncio.Task[None]) -> None:
        self._attempts.discard(task)
        if channel is not None:
            channel.gate.under_way -= 1
            if self._short and channel.gate.under_way <= channel.gate.in_flight * _REFILL:
                self._short.clear()
                self._woken.set()
        if task.cancelled():
            return  # still held, so that it is given back
        self._held[lease_token] -= 1
        if self._held[lease_token] <= 0:
            del self._held[lease_token]
        error = task.exception()
        if error is not None:
            _log.error("a delivery attempt failed; its lease will run out", exc_info=error)

    def _wake_in(self, seconds: float) -> None:
        """Look again when an app may go on; the regular look is the upper bound."""
        if 0 < seconds < self._rule.poll_s and (self._alarm is None or self._alarm.done()):
            self._alarm = asyncio.get_running_loop().create_task(self._wake_after(seconds))

    async def _wake_after(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._woken.set()

    async def _expand(self) -> None:
        while True:
            await self._to_expand.wait()
            self._to_expand.clear()
            try:
                while await self._expand_one() is not None:
                    self._woken.set()
            except SyncbeatError as error:
                _log.warning("cannot expand a notification now", extra={"reason": error.reason})
            except Exception:  # noqa: BLE001  # one that cannot be written must not keep the others from it
                _log.exception("a notification could not be expanded")

    async def _expand_one(self) -> int | None:
        async with self._database.transaction() as conn:
            return await expand(conn, list(self._channels))

    async def _every(self, seconds: float, chore: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._clock.sleep(seconds * self._dice.uniform(0.7, 1.0))
            try:
                await chore()
            except SyncbeatError as error:
                _log.warning("a chore of the delivery worker failed", extra={"reason": error.reason})
            except Exception:  # noqa: BLE001  # without its heartbeat a worker loses its leases: a bug must not end it
                _log.exception("a chore of the delivery worker broke")

    async def _look(self) -> None:
        self._woken.set()
        self._to_expand.set()

    async def _extend(self) -> None:
        if self._held:
            async with self._database.connection() as conn:
                await queue.extend(conn, list(self._held), self._rule.lease_s)

    async def _rescue(self) -> None:
        if await maintenance.rescue(self._database, self._lost):
            self.wake()

    async def _audit(self) -> None:
        self._hooks.audited(await maintenance.audit(self._database))

    async def _give_back(self) -> None:
        if not self._held:
            return
        try:
            async with self._database.connection() as conn:
                await queue.release(conn, list(self._held))
        except SyncbeatError as error:
            _log.warning("leases not given back; they will run out", extra={"reason": error.reason})
