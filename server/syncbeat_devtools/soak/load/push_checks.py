"""Looks what became of pushes, some time after each was accepted."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable

from syncbeat_server.clock import Clock
from syncbeat_server.rpc.deployment import CallError

_WAITING = frozenset({"SCHEDULED", "HELD", "PENDING", "IN_FLIGHT"})
_MOST_OPEN = 2_000
_FIRST_LOOK_S, _NEXT_LOOK_S, _GIVE_UP_S = 5.0, 10.0, 120.0
_SPACING_S = 0.05


class PushChecks:
    """Keeps up to 2,000 pushes whose outcome is not known yet. What comes beside them is sampled out.

    `look` returns the states of a notification's deliveries; `states` counts them as they end. One that waits for two
    minutes is counted in the state that it waits in.
    """

    def __init__(self, look: Callable[[str], Awaitable[dict[str, int]]], states: Counter[str], clock: Clock) -> None:
        self._look = look
        self._states = states
        self._clock = clock
        self._open: deque[tuple[float, float, str]] = deque()

    def add(self, notification_id: str) -> None:
        """Remember a push that was accepted now."""
        if len(self._open) < _MOST_OPEN:
            now = self._clock.monotonic()
            self._open.append((now + _FIRST_LOOK_S, now + _GIVE_UP_S, notification_id))

    async def run(self) -> None:
        """Look after one push after the other, until it is cancelled."""
        while True:
            if not self._open or self._open[0][0] > self._clock.monotonic():
                await self._clock.sleep(_SPACING_S * 4)
                continue
            await self._check()
            await self._clock.sleep(_SPACING_S)

    async def finish(self, limit_s: float) -> None:
        """Look after all that are open, for `limit_s` at most; those that are left are not counted."""
        deadline = self._clock.monotonic() + limit_s
        while self._open and self._clock.monotonic() < deadline:
            if self._open[0][0] > self._clock.monotonic():
                await self._clock.sleep(_SPACING_S * 4)
                continue
            await self._check()

    async def _check(self) -> None:
        _, give_up_at, notification_id = self._open.popleft()
        now = self._clock.monotonic()
        try:
            found = await self._look(notification_id)
        except CallError:
            found = {"": 1}
        if now < give_up_at and any(state in _WAITING or not state for state in found):
            self._open.append((now + _NEXT_LOOK_S, give_up_at, notification_id))
            return
        self._states.update({state or "UNKNOWN": count for state, count in found.items()})
