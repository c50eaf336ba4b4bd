"""Plays the faults: holds requests, breaks connections, answers late."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from syncbeat_server.devtools.fake_fcm.answers import Answer, Exchange
from syncbeat_server.devtools.fake_fcm.fault_answers import fault_answer
from syncbeat_server.devtools.fake_fcm.faults import Fault, FaultKind


class _Held(NamedTuple):
    target: str
    succeed: Callable[[], Answer]
    statuses: Counter[int]


class Stage:
    """The requests that are not answered at once because of a fault."""

    def __init__(self, project_id: str) -> None:
        self._project_id = project_id
        self._held: dict[Exchange, _Held] = {}
        self.resets = 0

    @property
    def held(self) -> int:
        """How many requests hang."""
        return len(self._held)

    def perform(
        self,
        fault: Fault,
        exchange: Exchange,
        target: str,
        succeed: Callable[[], Answer],
        statuses: Counter[int],
    ) -> Answer | None:
        """Play one fault on a request. `succeed` does what the request asks for and makes its answer; `statuses`
        counts the answers that come later.

        Returns the answer, or None when it comes later, through the exchange, or never.
        """
        match fault.kind:
            case FaultKind.SLOW:
                # Done even if the client has left by then: a server does not notice, and that is the case to test.
                held = _Held(target, succeed, statuses)
                asyncio.get_running_loop().call_later(fault.delay_ms / 1000, _succeed, exchange, held)
                return None
            case FaultKind.HANG:
                self._held[exchange] = _Held(target, succeed, statuses)
                return None
            case FaultKind.RESET:
                self._reset(exchange)
                return None
            case FaultKind.ACCEPTED_THEN_RESET:
                succeed()
                self._reset(exchange)
                return None
            case FaultKind.ACCEPTED_THEN_503 | FaultKind.NOT_JSON:
                succeed()
        return fault_answer(fault, self._project_id)

    def release(self, target: str | None = None) -> int:
        """Let the hanging requests of one receiver, or all, succeed. Returns how many there were."""
        found = [
            exchange for exchange, held in self._held.items() if target is None or held.target == target
        ]
        for exchange in found:
            _succeed(exchange, self._held.pop(exchange))
        return len(found)

    def abandon(self) -> None:
        """Break the connections of all hanging requests."""
        for exchange in tuple(self._held):
            self._reset(exchange)
        self._held.clear()

    def gone(self, exchange: Exchange) -> None:
        """The client has left: a request that hangs never succeeds."""
        self._held.pop(exchange, None)

    def _reset(self, exchange: Exchange) -> None:
        self.resets += 1
        exchange.reset()


def _succeed(exchange: Exchange, held: _Held) -> None:
    answer = held.succeed()
    held.statuses[answer.status] += 1
    exchange.answer(answer)
