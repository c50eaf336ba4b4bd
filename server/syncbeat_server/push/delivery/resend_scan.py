"""Looks at wake-ups whose time to be answered is over: counts what that tells, leases what is sent again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from syncbeat_server.clock import Clock
from syncbeat_server.push.model import ClaimedDelivery
from syncbeat_server.push.policy import reachability as odds
from syncbeat_server.push.policy.resend import Look, ResendRule, Unanswered, look
from syncbeat_server.push.store import queue, resends
from syncbeat_server.push.store.queue_frontier import Frontier, Place
from syncbeat_server.push.store.resends import Counts, Step
from syncbeat_server.storage.postgres.database import Connection, Database

_PAGE = 500
_NO_ROOM_S = 5.0
_FALLEN_S = 60.0


class Again(NamedTuple):
    """What was leased to be sent again, and what the looks told; `more`: there may be more to look at."""

    deliveries: list[ClaimedDelivery]
    told: list[tuple[Unanswered, Look]]
    more: bool


class Resending:
    """Finds the wake-ups to send again."""

    def __init__(
        self,
        database: Database,
        rule: ResendRule,
        lease_s: float,
        missed: Callable[[str, str, int], None],
        clock: Clock,
    ) -> None:
        """`missed(app, tries, count)` is told of tries that were not answered: the first, one again, or all."""
        self._database = database
        self._rule = rule
        self._lease_s = lease_s
        self._missed = missed
        self._frontier = Frontier[None](clock)

    async def take(self, lease_token: str, room: Mapping[str, int]) -> Again:
        """Look at what is due, and lease of each app what has room; the others wait a moment. Raises DependencyDown."""
        reach = self._frontier.begin()
        async with self._database.transaction() as conn:
            wakes, last, now = await resends.due(conn, _PAGE, self._frontier.place(reach, None).at)
            again, told = await self._settle(conn, lease_token, wakes, room) if wakes else ([], [])
        full = len(wakes) == _PAGE
        self._frontier.stopped_at(None, Place(last) if full and last is not None else None, now)
        self._frontier.end(reach)
        return Again(again, told, more=full)

    async def _settle(
        self, conn: Connection, lease_token: str, wakes: Sequence[Unanswered], room: Mapping[str, int]
    ) -> tuple[list[ClaimedDelivery], list[tuple[Unanswered, Look]]]:
        looks = [look(wake, self._rule) for wake in wakes]
        steps = list(self._steps(wakes, looks, room))
        # Who waits for room is looked at again: it tells only then.
        told = [
            (wake, found)
            for wake, found, step in zip(wakes, looks, steps, strict=True)
            if step.again or not found.again
        ]
        await resends.settle(conn, lease_token, self._lease_s, steps)
        keys = [(step.wake.app_id, step.wake.delivery_id) for step in steps if step.again]
        return (await queue.claimed(conn, lease_token, keys) if keys else []), told

    async def count(self, told: Sequence[tuple[Unanswered, Look]]) -> None:
        """Keep what looks told of devices and apps. Raises DependencyDown."""
        # Not in the transaction of `take`: this locks devices, as do those who then wait for their deliveries. What a
        # crash loses of it is a few counts.
        for (app_id, tries), count in _misses(told).items():
            self._missed(app_id, tries, count)
        async with self._database.transaction() as conn:
            await _count(conn, told)

    def _steps(self, wakes: Sequence[Unanswered], looks: Sequence[Look], room: Mapping[str, int]) -> list[Step]:
        left = Counter(room)
        steps = []
        for wake, found in zip(wakes, looks, strict=True):
            if not found.again:
                steps.append(Step(wake, again=False, wait_s=None))
            elif left[wake.app_id] > 0:
                left[wake.app_id] -= 1
                # Until the attempt is recorded: then it is told anew.
                steps.append(Step(wake, again=True, wait_s=self._rule.wait_s(wake.resends + 1)))
            else:
                steps.append(Step(wake, again=False, wait_s=_NO_ROOM_S))
        return steps


async def _count(conn: Connection, told: Sequence[tuple[Unanswered, Look]]) -> None:
    devices: dict[tuple[str, str, str], tuple[float, float]] = {}
    apps: dict[str, Counts] = {}
    for wake, found in told:
        if found.woken is not None:
            answered, missed = devices.get(wake.device, (0.0, 0.0))
            devices[wake.device] = answered + found.woken, missed + 1.0 - found.woken
        if wake.known_reachable:
            apps[wake.app_id] = apps.get(wake.app_id, Counts()).plus(_counts(wake, found))
    if devices:
        await resends.count_devices(conn, devices)
    if apps:
        stand = await resends.count_apps(conn, apps)
        fallen = {app_id: _FALLEN_S for app_id, counts in stand.items() if odds.fallen(counts)}
        if fallen:
            await resends.mark_broken(conn, fallen)


def _counts(wake: Unanswered, found: Look) -> Counts:
    tried = (0.0, 0.0) if found.tried is None else (found.tried, 1.0 - found.tried)
    # What a poll found was neither answered nor lost for good.
    answered, lost = 0.0 if found.woken is None else found.woken, 1.0 if found.lost else 0.0
    match wake.resends:
        case 0:
            return Counts(*tried, 0.0, 0.0, answered, lost)
        case 1:
            return Counts(0.0, 0.0, *tried, answered, lost)
        case _:
            return Counts(0.0, 0.0, 0.0, 0.0, answered, lost)


def _misses(told: Sequence[tuple[Unanswered, Look]]) -> Counter[tuple[str, str]]:
    missed = Counter[tuple[str, str]]()
    for wake, found in told:
        if found.tried is not None and found.tried < odds.KNOWN_SHARE:
            missed[wake.app_id, "first" if wake.resends == 0 else "resend"] += 1
        if found.lost:
            missed[wake.app_id, "all"] += 1
    return missed
