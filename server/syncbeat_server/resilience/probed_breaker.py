"""A circuit breaker before a store: while the store is away, calls fail at once, and one probe a second looks for it.

A failed call only raises the suspicion, and a probe beside the calls settles it: one lost connection, or a loop that
was held up, opens nothing. The state is that of this process alone: whether it reaches a store says nothing of others,
and what it would hear from them its own probe finds out within seconds (ADR 145).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from syncbeat_server.clock import Clock, SystemClock
from syncbeat_server.errors import CircuitOpen
from syncbeat_server.ops.work_origin import fresh_context, task_origin
from syncbeat_server.resilience.breaker import BreakerState
from syncbeat_server.resilience.fleet_breaker import BreakerObserver, NoObserver

_log = logging.getLogger(__name__)

_EVERY_S = 1.0
_RETRY_AFTER_S = 1.0
_SPREAD_S = 1.0  # over which callers come back, so that the store is not met by all of them at once


class ProbedBreaker:
    """Refuses calls of a store between a probe that failed and the next one that succeeds."""

    def __init__(
        self,
        dependency: str,
        probe: Callable[[], Awaitable[bool]],
        probe_s: float = 1.0,
        clock: Clock | None = None,
        on_found: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`probe` returns False, or raises anything, if the store does not answer; it gets `probe_s` seconds.

        `on_found` is awaited before calls are let through again.
        """
        self.observer: BreakerObserver = NoObserver()
        self.on_away: Callable[[], None] = lambda: None
        """Called each time that a probe fails while calls are refused already."""
        self.name = dependency
        self._probe = probe
        self._probe_s = probe_s
        self._clock = clock or SystemClock()
        self._on_found = on_found
        self._is_open = False
        self.failures = 0
        """Probes that failed in a row."""
        self.last_opened_at: float | None = None
        """The moment of the clock at which it last opened; None: never."""
        self._fault = ""
        self._probing: asyncio.Task[None] | None = None

    @property
    def state(self) -> BreakerState:
        """Return OPEN while calls are refused, else CLOSED."""
        return BreakerState.OPEN if self._is_open else BreakerState.CLOSED

    def require_closed(self, message: str) -> None:
        """Let a call through, or refuse it with `message`. Raises CircuitOpen."""
        if self._is_open:
            raise CircuitOpen(message, retry_after_s=_RETRY_AFTER_S + _SPREAD_S * random.random())  # noqa: S311  # no secret

    def suspect(self) -> None:
        """Note that a call failed as it would if the store were away: have it probed, unless it is already."""
        if self._probing is None:
            # In a context of its own, not that of the call which met the failure.
            context = fresh_context(task_origin(f"probe of {self.name}"))
            self._probing = asyncio.get_running_loop().create_task(self._probe_until_found(), context=context)

    async def close(self) -> None:
        """Stop probing."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _probe_until_found(self) -> None:
        try:
            while not await self._answers():
                self.failures += 1
                if self._is_open:
                    self.on_away()
                self._move(is_open=True)
                await self._clock.sleep(_EVERY_S)
            if self._is_open and self._on_found is not None:
                await self._on_found()
            self.failures = 0
            self._move(is_open=False)
        finally:
            self._probing = None

    async def _answers(self) -> bool:
        self._fault = ""
        try:
            async with asyncio.timeout(self._probe_s):
                return await self._probe()
        except Exception as error:  # noqa: BLE001  # whatever it is, there is no answer
            self._fault = type(error).__name__
            return False

    def _move(self, *, is_open: bool) -> None:
        if is_open is self._is_open:
            return
        self._is_open = is_open
        if is_open:
            self.last_opened_at = self._clock.monotonic()
        self.observer.breaker_moved(self.name, self.state)
        level = logging.WARNING if is_open else logging.INFO
        fault = {"fault": self._fault} if is_open and self._fault else {}
        _log.log(level, "a breaker is %s", self.state, extra={"breaker": self.name, "by": "probe", **fault})
