"""Injects faults into requests: holds them, delays them, or resets their connections."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from syncbeat_devtools.fake_fcm.faults.plan import Fault, FaultKind
from syncbeat_devtools.fake_fcm.faults.responses import fault_response
from syncbeat_devtools.fake_fcm.responses import Exchange, Response, google_error

_MAX_HELD = 10_000
_TOO_MANY_HELD = google_error(503, "UNAVAILABLE", f"fake-fcm: {_MAX_HELD} requests are held back already")


@dataclass(frozen=True, eq=False)
class _HeldRequest:
    exchange: Exchange
    target: str
    succeed: Callable[[], Response]
    statuses: Counter[int]

    def complete(self) -> None:
        response = self.succeed()
        self.statuses[response.status] += 1
        self.exchange.respond(response)


class FaultInjector:
    """Injects faults, and holds the requests whose response they delay."""

    def __init__(self, project_id: str) -> None:
        self._project_id = project_id
        self._hanging: dict[Exchange, _HeldRequest] = {}
        self._slow: dict[_HeldRequest, asyncio.TimerHandle] = {}
        self.resets = 0

    @property
    def hanging(self) -> int:
        """Return the number of requests that hang."""
        return len(self._hanging)

    def inject(
        self,
        fault: Fault,
        exchange: Exchange,
        target: str,
        succeed: Callable[[], Response],
        statuses: Counter[int],
    ) -> Response | None:
        """Apply one fault to a request.

        `succeed` executes the request and returns its response; `statuses` counts the responses that come later.

        Returns the response, or None if it comes later through the exchange, or never.
        """
        kind = fault.kind
        if kind in (FaultKind.SLOW, FaultKind.HANG):
            if len(self._hanging) + len(self._slow) >= _MAX_HELD:
                return _TOO_MANY_HELD
            held = _HeldRequest(exchange, target, succeed, statuses)
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
        return fault_response(fault, self._project_id)

    def release(self, target: str | None = None) -> int:
        """Let the hanging requests of one target, or all, succeed. Returns how many there were."""
        found = [held for held in self._hanging.values() if target is None or held.target == target]
        for held in found:
            del self._hanging[held.exchange]
            held.complete()
        return len(found)

    def reset_all(self) -> None:
        """Reset the connections of all held requests, none of which is then accepted."""
        for timer in self._slow.values():
            timer.cancel()
        held_back = [*self._hanging.values(), *self._slow]
        self._hanging.clear()
        self._slow.clear()
        for held in held_back:
            self._reset(held.exchange)

    def disconnected(self, exchange: Exchange) -> None:
        """Drop a hanging request of a client that has disconnected, so that it never succeeds.

        A slow one still does: a server does not notice, and that is the case to test.
        """
        self._hanging.pop(exchange, None)

    def _end_of_delay(self, held: _HeldRequest) -> None:
        del self._slow[held]
        held.complete()

    def _reset(self, exchange: Exchange) -> None:
        self.resets += 1
        exchange.reset()
