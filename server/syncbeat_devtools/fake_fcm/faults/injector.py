"""Plays the faults: holds requests, breaks connections, answers late."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from syncbeat_devtools.fake_fcm.faults.plan import Fault, FaultKind
from syncbeat_devtools.fake_fcm.faults.responses import fault_answer
from syncbeat_devtools.fake_fcm.responses import Answer, Exchange, google_error

_MAX_HELD = 10_000
_FULL = google_error(503, "UNAVAILABLE", f"fake-fcm: {_MAX_HELD} requests are held back already")


@dataclass(frozen=True, eq=False)
class _Held:
    exchange: Exchange
    target: str
    succeed: Callable[[], Answer]
    statuses: Counter[int]

    def go_on(self) -> None:
        answer = self.succeed()
        self.statuses[answer.status] += 1
        self.exchange.answer(answer)


class Stage:
    """The requests that are not answered at once because of a fault."""

    def __init__(self, project_id: str) -> None:
        self._project_id = project_id
        self._hanging: dict[Exchange, _Held] = {}
        self._slow: dict[_Held, asyncio.TimerHandle] = {}
        self.resets = 0

    @property
    def hanging(self) -> int:
        """How many requests hang."""
        return len(self._hanging)

    def perform(
        self,
        fault: Fault,
        exchange: Exchange,
        target: str,
        succeed: Callable[[], Answer],
        statuses: Counter[int],
    ) -> Answer | None:
        """Play one fault on a request.

        `succeed` does what the request asks for and makes its answer; `statuses` counts the answers that come later.

        Returns the answer, or None when it comes later, through the exchange, or never.
        """
        kind = fault.kind
        if kind in (FaultKind.SLOW, FaultKind.HANG):
            if len(self._hanging) + len(self._slow) >= _MAX_HELD:
                return _FULL
            held = _Held(exchange, target, succeed, statuses)
            if kind is FaultKind.HANG:
                self._hanging[exchange] = held
            else:
                loop = asyncio.get_running_loop()
                self._slow[held] = loop.call_later(fault.delay_ms / 1000, self._end_of_delay, held)
            return None
        if kind in (FaultKind.ACCEPTED_THEN_RESET, FaultKind.ACCEPTED_THEN_503, FaultKind.NOT_JSON):
            succeed()
        if kind in (FaultKind.RESET, FaultKind.ACCEPTED_THEN_RESET):
            self._reset(exchange)
            return None
        return fault_answer(fault, self._project_id)

    def release(self, target: str | None = None) -> int:
        """Let the hanging requests of one receiver, or all, succeed. Returns how many there were."""
        found = [held for held in self._hanging.values() if target is None or held.target == target]
        for held in found:
            del self._hanging[held.exchange]
            held.go_on()
        return len(found)

    def abandon(self) -> None:
        """Break the connections of all requests that are held back: none of them is ever accepted."""
        for timer in self._slow.values():
            timer.cancel()
        held_back = [*self._hanging.values(), *self._slow]
        self._hanging.clear()
        self._slow.clear()
        for held in held_back:
            self._reset(held.exchange)

    def gone(self, exchange: Exchange) -> None:
        """The client has left: a request that hangs never succeeds.

        A slow one still does: a server does not notice, and that is the case to test.
        """
        self._hanging.pop(exchange, None)

    def _end_of_delay(self, held: _Held) -> None:
        del self._slow[held]
        held.go_on()

    def _reset(self, exchange: Exchange) -> None:
        self.resets += 1
        exchange.reset()
