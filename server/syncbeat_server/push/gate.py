"""How many deliveries of one app may be under way: its own limit, its breaker, its provider's wishes.

Each app has a gate of its own, so that one whose provider hangs takes nothing from the others.
"""

from __future__ import annotations

from syncbeat_server.clock import Clock
from syncbeat_server.push.model import Outcome, Reason, Verdict
from syncbeat_server.push.pace import Pace
from syncbeat_server.resilience.breaker import Breaker, BreakerRule, BreakerState, Permit

_FAILURES = (Reason.UNAVAILABLE, Reason.AMBIGUOUS)


class Gate:
    """Lets deliveries of one app through."""

    def __init__(self, in_flight: int, rule: BreakerRule, clock: Clock) -> None:
        self.in_flight = in_flight
        self._clock = clock
        self._breaker = Breaker(rule, clock)
        self._pace = Pace()
        self.under_way = 0

    @property
    def breaker(self) -> BreakerState:
        """Where the breaker is."""
        return self._breaker.state

    @property
    def broken(self) -> bool:
        """Whether the provider cannot be relied on: its breaker is not closed, or nothing is let through."""
        return self._breaker.state is not BreakerState.CLOSED or self.closed_for_s() > 0

    @property
    def share(self) -> float:
        """The share of its rate that the app may use now: 1 unless its provider throttles."""
        return self._pace.share(self._clock.monotonic())

    def room(self, *, bypassed: bool) -> int:
        """How many more may be claimed now; `bypassed`: there is another provider for when this one is closed."""
        free = max(0, self.in_flight - self.under_way)
        if bypassed:
            return free
        if self.closed_for_s() > 0:
            return 0
        tries = self._breaker.room
        return free if tries is None else min(free, tries)

    def closed_for_s(self) -> float:
        """Seconds until it may open again; 0 when it is open."""
        return max(self._breaker.opens_in_s, self._pace.paused_for(self._clock.monotonic()))

    def enter(self) -> Permit | None:
        """Leave to send one now; None when what was claimed has to wait after all."""
        return None if self._pace.paused_for(self._clock.monotonic()) > 0 else self._breaker.enter()

    def learned(self, permit: Permit, outcome: Outcome) -> None:
        """Learn from what came of what was let through. A dead token or a bad message is no failure of the provider.

        A configuration that looks wrong is one, like an outage: five in a row close the gate for a minute. A single one
        may be a proxy's doing, and others may get through.
        """
        now = self._clock.monotonic()
        throttled = outcome.verdict is Verdict.RETRY and outcome.reason is Reason.THROTTLED
        self._pace.answered(now, throttled=throttled, retry_after_s=outcome.retry_after_s)
        if outcome.verdict is Verdict.RETRY and (outcome.app_wide or outcome.reason in _FAILURES):
            permit.fail()
        elif outcome.verdict is Verdict.RETRY:
            permit.release()
        else:
            permit.succeed()
