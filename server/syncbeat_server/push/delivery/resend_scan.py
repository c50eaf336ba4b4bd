"""Scans for silent wake-ups that were not answered in time: leases those to send again, and counts answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from syncbeat_server.clock import Clock
from syncbeat_server.directory.store.devices import count_wake_ups
from syncbeat_server.push.delivery.scan_frontier import Frontier
from syncbeat_server.push.delivery.worker_metrics import WorkerMetrics
from syncbeat_server.push.model import ClaimedDelivery
from syncbeat_server.push.policy import reachability
from syncbeat_server.push.policy.resend import ResendDecision, ResendRule, UnansweredWakeUp, decide_resend
from syncbeat_server.push.store import queue, resends
from syncbeat_server.push.store.queue import QueuePosition
from syncbeat_server.push.store.resends import ReachCounts, ResendStep
from syncbeat_server.storage.postgres.database import Connection, Database

_PAGE = 500
_NO_ROOM_S = 5.0
_DROPPED_S = 60.0


class Decided(NamedTuple):
    """A wake-up and the decision about it."""

    wake: UnansweredWakeUp
    decision: ResendDecision


class ResendLeases(NamedTuple):
    """Deliveries leased to be sent again, and all decisions of the scan; `more`: there may be more to look at."""

    deliveries: list[ClaimedDelivery]
    decisions: list[Decided]
    more: bool


class ResendScan:
    """Finds unanswered wake-ups, page by page in the order of their deadlines."""

    def __init__(
        self, database: Database, rule: ResendRule, lease_s: float, metrics: WorkerMetrics, clock: Clock
    ) -> None:
        """Start at the oldest deadline; leases are for `lease_s` seconds."""
        self._database = database
        self._rule = rule
        self._lease_s = lease_s
        self._metrics = metrics
        self._frontier = Frontier[None](clock)

    async def lease_unanswered(self, lease_token: str, room: Mapping[str, int]) -> ResendLeases:
        """Decide about a page of unanswered wake-ups, and lease those to send again, of each app up to its `room`.

        The others wait a moment.

        Raises:
            DependencyDown: the database does not answer.
        """
        depth = self._frontier.begin_scan()
        async with self._database.transaction() as conn:
            since = self._frontier.position(depth, None).due_at
            wakes, last, now = await resends.lock_unanswered(conn, _PAGE, since)
            page = await self._settle(conn, lease_token, wakes, room) if wakes else ResendLeases([], [], more=False)
        full = len(wakes) == _PAGE
        self._frontier.advance(None, QueuePosition(last) if full and last is not None else None, now)
        self._frontier.end_scan(depth)
        return page._replace(more=full)

    async def record_answers(self, decisions: Sequence[Decided]) -> None:
        """Add what the decisions say about devices and apps to their counts. Raises DependencyDown."""
        # In a transaction of its own: this locks devices, and others who lock devices then wait for their deliveries,
        # which the scan has locked. A crash in between loses only some counts.
        for (app_id, tries), count in _misses(decisions).items():
            self._metrics.wake_ups_missed(app_id, tries, count)
        async with self._database.transaction() as conn:
            await _count(conn, decisions)

    async def _settle(
        self, conn: Connection, lease_token: str, wakes: Sequence[UnansweredWakeUp], room: Mapping[str, int]
    ) -> ResendLeases:
        decided = [Decided(wake, decide_resend(wake, self._rule)) for wake in wakes]
        steps = self._steps(decided, room)
        # One that waits for room is looked at again, and only then counted.
        final = [one for one, step in zip(decided, steps, strict=True) if step.resend or not one.decision.resend]
        await resends.settle(conn, lease_token, self._lease_s, steps)
        keys = [(step.wake.app_id, step.wake.delivery_id) for step in steps if step.resend]
        leased = await queue.read_claimed(conn, lease_token, keys) if keys else []
        return ResendLeases(leased, final, more=False)

    def _steps(self, decided: Sequence[Decided], room: Mapping[str, int]) -> list[ResendStep]:
        left = Counter(room)
        steps = []
        for wake, decision in decided:
            if not decision.resend:
                steps.append(ResendStep(wake, resend=False, wait_s=None))
            elif left[wake.app_id] > 0:
                left[wake.app_id] -= 1
                # Recording the attempt sets the deadline anew; this one is for a crash before that.
                steps.append(ResendStep(wake, resend=True, wait_s=self._rule.wait_s(wake.resends + 1)))
            else:
                steps.append(ResendStep(wake, resend=False, wait_s=_NO_ROOM_S))
        return steps


async def _count(conn: Connection, decisions: Sequence[Decided]) -> None:
    devices: dict[tuple[str, str, str], tuple[float, float]] = {}
    apps: dict[str, ReachCounts] = {}
    for wake, decision in decisions:
        if decision.answered is not None:
            answered, missed = devices.get(wake.device, (0.0, 0.0))
            devices[wake.device] = answered + decision.answered, missed + 1.0 - decision.answered
        if wake.known_reachable:
            apps[wake.app_id] = apps.get(wake.app_id, ReachCounts()).plus(_counts(wake, decision))
    if devices:
        await count_wake_ups(conn, devices)
    if apps:
        reach = await resends.count_apps(conn, apps)
        dropped = {app_id: _DROPPED_S for app_id, counts in reach.items() if reachability.has_dropped(counts)}
        if dropped:
            await resends.mark_broken(conn, dropped)


def _counts(wake: UnansweredWakeUp, decision: ResendDecision) -> ReachCounts:
    last = decision.last_answered
    tried = (0.0, 0.0) if last is None else (last, 1.0 - last)
    # A change that a poll fetched was neither answered nor lost for good.
    answered, lost = decision.answered or 0.0, 1.0 if decision.lost else 0.0
    match wake.resends:
        case 0:
            return ReachCounts(*tried, 0.0, 0.0, answered, lost)
        case 1:
            return ReachCounts(0.0, 0.0, *tried, answered, lost)
        case _:
            return ReachCounts(0.0, 0.0, 0.0, 0.0, answered, lost)


def _misses(decisions: Sequence[Decided]) -> Counter[tuple[str, str]]:
    missed = Counter[tuple[str, str]]()
    for wake, decision in decisions:
        if decision.last_answered is not None and decision.last_answered < reachability.REACHABLE_RATE:
            missed[wake.app_id, "first" if wake.resends == 0 else "resend"] += 1
        if decision.lost:
            missed[wake.app_id, "all"] += 1
    return missed
