"""A circuit breaker: after consecutive failures it blocks calls for a while, then admits a few trial calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from syncbeat_server.clock import Clock

_MAX_REMEMBERED = 10_000  # calls; many times the number in flight


class BreakerState(StrEnum):
    """The states of a circuit breaker."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """The thresholds of a breaker.

    `failures` in a row open it for `open_s` seconds; then at most `trials` concurrent calls are admitted, and
    `successes` of them close it.
    """

    failures: int = 5
    open_s: float = 60.0
    trials: int = 3
    successes: int = 3


def _ignore(_: object) -> None:
    """Do nothing with what is told."""


class Permit:
    """The right to make one call. The first of `succeed`, `fail` and `release` ends it.

    `on_end` is told how: True for a failure, False for a success, None for neither.
    """

    __slots__ = ("_breaker", "_era", "_number", "_used", "on_end")

    def __init__(self, breaker: Breaker, era: int, number: int) -> None:
        self._breaker = breaker
        self._era = era
        self._number = number
        self._used = False
        self.on_end: Callable[[bool | None], None] | None = None

    def succeed(self) -> None:
        """Record that the dependency answered."""
        self._end(failed=False)

    def fail(self) -> None:
        """Record that the dependency did not answer, or not as it should."""
        self._end(failed=True)

    def release(self) -> None:
        """Record no outcome: the call was cancelled or never made."""
        self._end(failed=None)

    def _end(self, *, failed: bool | None) -> None:
        if not self._used:
            self._used = True
            self._breaker._record(self._era, self._number, failed=failed)
            if self.on_end is not None:
                self.on_end(failed)


class Breaker:
    """Counts consecutive failures. Calls that began before a transition do not count after it.

    Consecutive means in the order in which the calls began, not ended: of two hundred concurrent calls the few that
    fail may well end before all others. A failure of a call that began before one which has succeeded says nothing
    any more: a call that waited in vain for ten seconds ends when the dependency may be long back (ADR 139).
    """

    def __init__(
        self, rule: BreakerRule, clock: Clock, on_transition: Callable[[BreakerState], None] = _ignore
    ) -> None:
        """`on_transition` is told each new state; HALF_OPEN, to which the clock leads, with the first trial."""
        self._rule = rule
        self._clock = clock
        self._on_transition = on_transition
        self._told = BreakerState.CLOSED
        self._opened_at: float | None = None
        self._opening_failures = 0
        self.last_opened_at: float | None = None
        """The moment of the clock at which it last opened; None: never."""
        self._era = 0
        self._succeeded = self._trying = self._number = self._answered = 0
        self._failed: set[int] = set()
        self._released: set[int] = set()

    @property
    def state(self) -> BreakerState:
        """Return the current state."""
        if self._opened_at is None:
            return BreakerState.CLOSED
        over = self._clock.monotonic() - self._opened_at >= self._rule.open_s
        return BreakerState.HALF_OPEN if over else BreakerState.OPEN

    @property
    def failures(self) -> int:
        """Return how many calls failed in a row; while it is not closed, those that opened it.

        Calls that are on their way have not interrupted the row yet.
        """
        if self._opened_at is not None:
            return self._opening_failures
        newest = max(self._failed, default=0)
        return self._failed_beside(newest + 1, -1) if newest > self._answered else 0

    @property
    def free_permits(self) -> int | None:
        """Return how many calls are admitted now; None: any number."""
        if self._opened_at is None:
            return None
        return max(0, self._rule.trials - self._trying) if self.state is BreakerState.HALF_OPEN else 0

    @property
    def retry_in_s(self) -> float:
        """Return the seconds until a call is admitted; 0 if one is admitted now."""
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._opened_at + self._rule.open_s - self._clock.monotonic())

    def acquire(self) -> Permit | None:
        """Return a permit for one call, or None if no call is admitted now."""
        free = self.free_permits
        if free is not None:
            if free == 0:
                return None
            self._trying += 1
            self._tell(BreakerState.HALF_OPEN)
        self._number += 1
        return Permit(self, self._era, self._number)

    def open_for(self, seconds: float) -> None:
        """Open on the word of others; the first trial is admitted after so many seconds."""
        self._transition(self._clock.monotonic() + seconds - self._rule.open_s)

    def close(self) -> None:
        """Close on the word of others."""
        self._transition(None)

    def _record(self, era: int, number: int, *, failed: bool | None) -> None:
        if era != self._era:
            return
        if self._opened_at is not None:
            self._trying -= 1
            if failed:
                self._open()
            elif failed is False:
                self._succeeded += 1
                if self._succeeded >= self._rule.successes:
                    self._transition(None)
        elif failed is False:
            self._answered = max(self._answered, number)
        elif number > self._answered:
            (self._failed if failed else self._released).add(number)
            in_a_row = bool(failed) + self._failed_beside(number, -1) + self._failed_beside(number, 1)
            if in_a_row >= self._rule.failures:
                self._open()
                self._opening_failures = in_a_row
        if len(self._failed) + len(self._released) > _MAX_REMEMBERED:
            self._forget()

    def _failed_beside(self, number: int, step: int) -> int:
        """Count the consecutive failed calls beside this one; released calls neither count nor interrupt."""
        count = 0
        number += step
        while number in self._failed or number in self._released:
            count += number in self._failed
            number += step
        return count

    def _forget(self) -> None:
        oldest = self._number - _MAX_REMEMBERED
        self._failed = {number for number in self._failed if number > oldest}
        self._released = {number for number in self._released if number > oldest}

    def _open(self) -> None:
        self._transition(self._clock.monotonic())

    def _transition(self, opened_at: float | None) -> None:
        self._era += 1
        if opened_at is None or self._opened_at is None:
            self._opening_failures = 0
        self._opened_at = opened_at
        if opened_at is not None:
            self.last_opened_at = self._clock.monotonic()
        self._succeeded = self._trying = 0
        self._failed.clear()
        self._released.clear()
        self._tell(BreakerState.CLOSED if opened_at is None else BreakerState.OPEN)

    def _tell(self, state: BreakerState) -> None:
        if state is not self._told:
            self._told = state
            self._on_transition(state)
