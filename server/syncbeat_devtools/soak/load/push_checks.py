"""Looks what became of pushes, some time after each was accepted."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from syncbeat_devtools.soak.measure.recorder import OpenPush
from syncbeat_server.clock import Clock
from syncbeat_server.rpc.deployment import CallError

_WAITING = frozenset({"SCHEDULED", "HELD", "PENDING", "IN_FLIGHT"})
_MOST_OPEN = 2_000
_FIRST_LOOK_S, _NEXT_LOOK_S, _GIVE_UP_S = 5.0, 10.0, 120.0
_LAST_LOOKS_S = 4.0
"""The time between looks once the run is over, in seconds: a delivery that ends just before the limit is seen to."""
_SPACING_S = 0.05


@dataclass(order=True)
class _Open:
    """A push whose outcome is not known: when to look next, and what the last look found."""

    due_at: float
    give_up_at: float
    notification_id: str
    found: dict[str, int] = field(default_factory=dict, compare=False)


class PushChecks:
    """Keeps up to 2,000 pushes whose outcome is not known yet. What comes beside them is sampled out.

    `look` returns the states of a notification's deliveries; `states` counts them as they end. One that waits for two
    minutes, or was seen to wait when the run ends, is counted in the state that it waits in.
    """

    def __init__(
        self,
        look: Callable[[str], Awaitable[dict[str, int]]],
        states: Counter[str],
        clock: Clock,
        open_pushes: Sequence[OpenPush] = (),
    ) -> None:
        """`open_pushes` are those of an earlier life of the run, which are looked at next."""
        self._look = look
        self._states = states
        self._clock = clock
        now = clock.monotonic()
        self._open = [  # a heap
            _Open(now, now + one.left_s, one.notification_id, dict(one.found)) for one in open_pushes[:_MOST_OPEN]
        ]
        heapq.heapify(self._open)

    def add(self, notification_id: str) -> None:
        """Remember a push that was accepted now."""
        if len(self._open) < _MOST_OPEN:
            now = self._clock.monotonic()
            heapq.heappush(self._open, _Open(now + _FIRST_LOOK_S, now + _GIVE_UP_S, notification_id))

    def open_pushes(self) -> list[OpenPush]:
        """Return those whose outcome is not known yet, for another life of the run."""
        now = self._clock.monotonic()
        return [OpenPush(one.notification_id, max(0.0, one.give_up_at - now), dict(one.found)) for one in self._open]

    async def run(self) -> None:
        """Look after one push after the other, until it is cancelled."""
        while True:
            if not self._open or self._open[0].due_at > self._clock.monotonic():
                await self._clock.sleep(_SPACING_S * 4)
                continue
            await self._check(_NEXT_LOOK_S)
            await self._clock.sleep(_SPACING_S)

    async def finish(self, limit_s: float) -> None:
        """Look after all that are open, for `limit_s` at most.

        Those that are left are counted in the state that the last look found, or as UNKNOWN if it failed: where nobody
        delivers, the pushes of a short run would not count at all. Those without a look are sampled out.
        """
        deadline = self._clock.monotonic() + limit_s
        while self._open and self._clock.monotonic() < deadline:
            if self._open[0].due_at > self._clock.monotonic():
                await self._clock.sleep(_SPACING_S * 4)
                continue
            await self._check(_LAST_LOOKS_S)
        for one in self._open:
            self._count(one.found)
        self._open.clear()

    async def _check(self, next_look_s: float) -> None:
        one = self._open[0]  # where it stays if this is cancelled
        now = self._clock.monotonic()
        try:
            one.found = await self._look(one.notification_id)
        except CallError:
            one.found = {"": 1}
        heapq.heappop(self._open)
        if now < one.give_up_at and any(state in _WAITING or not state for state in one.found):
            one.due_at = now + next_look_s
            heapq.heappush(self._open, one)
            return
        self._count(one.found)

    def _count(self, found: dict[str, int]) -> None:
        self._states.update({state or "UNKNOWN": count for state, count in found.items()})
