"""How many deliveries of one app may be under way: its own limit, its breaker, its provider's wishes.

Each app has a gate of its own, so that one whose provider hangs takes nothing from the others.
"""

from __future__ import annotations

from syncbeat_server.clock import Clock
from syncbeat_server.push.model import Blame, Outcome, Reason, Verdict
from syncbeat_server.push.policy.throttle import Pace
from syncbeat_server.resilience.breaker import Breaker, BreakerRule, BreakerState, Permit

_FAILURES = (Reason.UNAVAILABLE, Reason.AMBIGUOUS)
_PLATFORM_PAUSE_S = 60.0  # a key of APNs or of web push is replaced by somebody's hand


class _PlatformPauses:
    """Pauses a platform whose own credentials the provider refuses some times in a row; then one more is enough."""

    def __init__(self, failures: int) -> None:
        self._failures = failures
        self._in_a_row: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def paused_for(self, platform: str, now: float) -> float:
        return max(0.0, self._until.get(platform, 0.0) - now) if self._until else 0.0

    def answered(self, platform: str, now: float, *, refused: bool) -> None:
        if refused:
            self._in_a_row[platform] = self._in_a_row.get(platform, 0) + 1
            if self._in_a_row[platform] >= self._failures:
                self._until[platform] = now + _PLATFORM_PAUSE_S
        elif self._in_a_row:
            self._in_a_row.pop(platform, None)


class Gate:
    """Lets deliveries of one app through."""

    def __init__(self, in_flight: int, rule: BreakerRule, clock: Clock) -> None:
        self.in_flight = in_flight
        self._clock = clock
        self._breaker = Breaker(rule, clock)
        self._pace = Pace()
        self._platforms = _PlatformPauses(rule.failures)
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
        tries = self._breaker.free_permits
        return free if tries is None else min(free, tries)

    def closed_for_s(self, platform: str = "") -> float:
        """Seconds until it may open again, for a platform or for those that are not paused; 0 when it is open."""
        now = self._clock.monotonic()
        return max(self._breaker.retry_in_s, self._pace.paused_for(now), self._platforms.paused_for(platform, now))

    def enter(self, platform: str) -> Permit | None:
        """Leave to send one to a platform now; None when what was claimed has to wait after all."""
        now = self._clock.monotonic()
        if self._pace.paused_for(now) > 0 or self._platforms.paused_for(platform, now) > 0:
            return None
        return self._breaker.acquire()

    def learned(self, permit: Permit, outcome: Outcome, platform: str) -> None:
        """Learn from what came of what was let through. A dead token or a bad message is no failure of the provider.

        A configuration that looks wrong is one, like an outage: five in a row close the gate for a minute. A single one
        may be a proxy's doing, and others may get through. What is wrong with a platform's own credentials closes the
        gate to that platform only.
        """
        now = self._clock.monotonic()
        throttled = outcome.verdict is Verdict.RETRY and outcome.reason is Reason.THROTTLED
        self._pace.answered(now, throttled=throttled, retry_after_s=outcome.retry_after_s)
        if outcome.blame is Blame.ACCESS:
            self._pace.pause(now, outcome.retry_after_s or 0.0)
        self._platforms.answered(platform, now, refused=outcome.blame is Blame.PLATFORM)
        if outcome.verdict is Verdict.RETRY and (outcome.blame is Blame.APP or outcome.reason in _FAILURES):
            permit.fail()
        elif outcome.verdict is Verdict.RETRY:
            permit.release()
        else:
            permit.succeed()
