"""Limits how many deliveries of one app are under way: by its own maximum, its breaker and its provider's throttling.

Each app has a gate of its own, so that an app whose provider hangs does not slow the others down.
"""

from __future__ import annotations

from typing import NamedTuple

from syncbeat_server.clock import Clock
from syncbeat_server.push.model import Blame, Outcome, Reason, Verdict
from syncbeat_server.push.policy.in_flight_limit import InFlightLimit
from syncbeat_server.push.policy.throttle import Throttle
from syncbeat_server.resilience.breaker import BreakerState, Permit
from syncbeat_server.resilience.fleet_breaker import FleetBreaker

_FAILURES = (Reason.UNAVAILABLE, Reason.AMBIGUOUS)
_STATES = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN)
_PLATFORM_PAUSE_S = 60.0  # replacing a project's key for APNs or web push takes a person


class _PlatformPauses:
    """Pauses a platform after several consecutive refusals of its credentials; from then on one refusal is enough."""

    def __init__(self, failures: int) -> None:
        self._failures = failures
        self._in_a_row: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def paused_for_s(self, platform: str, now: float) -> float:
        return max(0.0, self._until.get(platform, 0.0) - now) if self._until else 0.0

    def record_answer(self, platform: str, now: float, *, refused: bool) -> None:
        if refused:
            self._in_a_row[platform] = self._in_a_row.get(platform, 0) + 1
            if self._in_a_row[platform] >= self._failures:
                self._until[platform] = now + _PLATFORM_PAUSE_S
        elif self._in_a_row:
            self._in_a_row.pop(platform, None)


class Admission(NamedTuple):
    """The right to make one attempt, given at a time: a permit of the app's breaker, and one of its endpoint's."""

    began: float
    app: Permit
    endpoint: Permit | None = None

    def release(self) -> None:
        """Record no outcome, unless one was recorded: the attempt was cancelled or never made."""
        self.app.release()
        if self.endpoint is not None:
            self.endpoint.release()


class Gate:
    """Admits the deliveries of one app to its provider."""

    def __init__(
        self,
        most_in_flight: int,
        rate_per_s: float,
        breaker: FleetBreaker,
        clock: Clock,
    ) -> None:
        """Start open; the breaker's number of failures also pauses a platform.

        Up to `most_in_flight` attempts are under way, as many as `rate_per_s` and the provider's latency call for.
        """
        self.in_flight = 0
        self.endpoint: FleetBreaker | None = None
        """The breaker of the host that is asked, which several apps may share."""
        self._limit = InFlightLimit(most_in_flight, rate_per_s)
        self._clock = clock
        self._breaker = breaker
        self._throttle = Throttle()
        self._platforms = _PlatformPauses(breaker.rule.failures)

    @property
    def breaker(self) -> BreakerState:
        """State of the breaker that is closed least: the app's, or its endpoint's."""
        return max((one.state for one in self._breakers()), key=_STATES.index)

    @property
    def max_in_flight(self) -> int:
        """Return how many attempts may be under way now."""
        return self._limit.current(self.rate_share)

    @property
    def is_broken(self) -> bool:
        """True while the provider cannot be relied on: its breaker is not closed, or nothing is admitted."""
        return self.breaker is not BreakerState.CLOSED or self.closed_for_s() > 0

    @property
    def rate_share(self) -> float:
        """Share of its rate that the app may use now: 1 unless its provider throttles."""
        return self._throttle.rate_share(self._clock.monotonic())

    def free_slots(self, *, has_fallback: bool) -> int:
        """Return how many more deliveries may be claimed now. With a fallback, a closed gate does not matter."""
        free = max(0, self.max_in_flight - self.in_flight)
        if has_fallback:
            return free
        if self.closed_for_s() > 0:
            return 0
        return min([free, *(probes for one in self._breakers() if (probes := one.free_permits) is not None)])

    def closed_for_s(self, platform: str = "") -> float:
        """Return the seconds until the gate may open, 0 when it is open.

        Without a platform, pauses of single platforms are left out.
        """
        now = self._clock.monotonic()
        return max(
            *(one.retry_in_s for one in self._breakers()),
            self._throttle.paused_for_s(now),
            self._platforms.paused_for_s(platform, now),
        )

    async def enter(self, platform: str) -> Admission | None:
        """Return the right to send to this platform now, or None if the claimed delivery has to wait after all."""
        now = self._clock.monotonic()
        if self._throttle.paused_for_s(now) > 0 or self._platforms.paused_for_s(platform, now) > 0:
            return None
        app = await self._breaker.acquire()
        if app is None:
            return None
        if self.endpoint is None:
            return Admission(now, app)
        endpoint = None
        try:
            endpoint = await self.endpoint.acquire()
        finally:
            if endpoint is None:
                app.release()
        return None if endpoint is None else Admission(now, app, endpoint)

    def record_outcome(self, admission: Admission, outcome: Outcome, platform: str) -> None:
        """Learn from the outcome of an attempt, and from the time that it took.

        A dead token or a bad message does not count against the provider.

        A configuration error counts like an outage: five in a row close the gate for a minute. A single one may come
        from a proxy while other attempts get through. An error of one platform's credentials closes the gate to that
        platform only.
        """
        now = self._clock.monotonic()
        if outcome.verdict is Verdict.SENT:
            self._limit.record_latency(now, now - admission.began)
        throttled = outcome.verdict is Verdict.RETRY and outcome.reason is Reason.THROTTLED
        self._throttle.record_answer(now, throttled=throttled, retry_after_s=outcome.retry_after_s)
        if outcome.blame is Blame.ACCESS:
            self._throttle.pause(now, outcome.retry_after_s or 0.0)
        self._platforms.record_answer(platform, now, refused=outcome.blame is Blame.PLATFORM)
        if admission.endpoint is not None:
            record_endpoint(admission.endpoint, outcome)
        unreachable = outcome.reason in _FAILURES and admission.endpoint is None
        if outcome.verdict is Verdict.RETRY and (outcome.blame is Blame.APP or unreachable):
            admission.app.fail()
        elif outcome.verdict is Verdict.RETRY:
            admission.app.release()
        else:
            admission.app.succeed()

    def _breakers(self) -> tuple[FleetBreaker, ...]:
        return (self._breaker,) if self.endpoint is None else (self._breaker, self.endpoint)


def record_endpoint(permit: Permit, outcome: Outcome) -> None:
    """Record an outcome for the host that was asked: one that refuses an app, or a message, is there."""
    if outcome.verdict is not Verdict.RETRY or outcome.blame is Blame.APP:
        permit.succeed()
    elif outcome.reason in _FAILURES:
        permit.fail()
    else:
        permit.release()
