"""A circuit breaker: after some failures in a row nobody asks for a while, then a few may try."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from syncbeat_server.clock import Clock

_REMEMBERED = 10_000  # calls; many times what is under way at once


class BreakerState(StrEnum):
    """Whether a dependency is asked."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """`failures` in a row open it for `open_s`; then at most `trials` at once may try, and `successes` close it."""

    failures: int = 5
    open_s: float = 60.0
    trials: int = 3
    successes: int = 3


class Permit:
    """The right to ask once. It ends with `succeed`, `fail` or `release`, whichever comes first."""

    __slots__ = ("_breaker", "_era", "_number", "_used")

    def __init__(self, breaker: Breaker, era: int, number: int) -> None:
        self._breaker = breaker
        self._era = era
        self._number = number
        self._used = False

    def succeed(self) -> None:
        """The dependency answered."""
        self._end(failed=False)

    def fail(self) -> None:
        """The dependency did not answer, or not as it should."""
        self._end(failed=True)

    def release(self) -> None:
        """Nothing was learned: the call was cancelled, or never made."""
        self._end(failed=None)

    def _end(self, *, failed: bool | None) -> None:
        if not self._used:
            self._used = True
            self._breaker._ended(self._era, self._number, failed=failed)


class Breaker:
    """Counts failures in a row. What was asked before it opened says nothing about the time after.

    In a row is in the order in which the calls were made, not in which they end: of two hundred at once the few that
    fail may well be answered before all others.
    """

    def __init__(self, rule: BreakerRule, clock: Clock) -> None:
        self._rule = rule
        self._clock = clock
        self._opened_at: float | None = None
        self._era = 0
        self._succeeded = self._trying = self._number = 0
        self._failed: set[int] = set()
        self._released: set[int] = set()

    @property
    def state(self) -> BreakerState:
        """Where it is now."""
        if self._opened_at is None:
            return BreakerState.CLOSED
        over = self._clock.monotonic() - self._opened_at >= self._rule.open_s
        return BreakerState.HALF_OPEN if over else BreakerState.OPEN

    @property
    def room(self) -> int | None:
        """How many may ask now; None for any number."""
        match self.state:
            case BreakerState.CLOSED:
                return None
            case BreakerState.OPEN:
                return 0
            case BreakerState.HALF_OPEN:
                return max(0, self._rule.trials - self._trying)

    @property
    def opens_in_s(self) -> float:
        """Seconds until somebody may try; 0 when somebody may now."""
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._opened_at + self._rule.open_s - self._clock.monotonic())

    def enter(self) -> Permit | None:
        """The right to ask once, or None."""
        room = self.room
        if room is not None:
            if room == 0:
                return None
            self._trying += 1
        self._number += 1
        return Permit(self, self._era, self._number)

    def _ended(self, era: int, number: int, *, failed: bool | None) -> None:
        if era != self._era:
            return
        if self._opened_at is not None:
            self._trying -= 1
            if failed:
                self._open()
            elif failed is False:
                self._succeeded += 1
                if self._succeeded >= self._rule.successes:
                    self._turn(None)
        elif failed is None:
            self._released.add(number)
        elif failed:
            self._failed.add(number)
            if 1 + self._failed_beside(number, -1) + self._failed_beside(number, 1) >= self._rule.failures:
                self._open()
        if len(self._failed) + len(self._released) > _REMEMBERED:
            self._forget()

    def _failed_beside(self, number: int, step: int) -> int:
        """How many calls next to this one failed; those that were released do not count and do not part."""
        count = 0
        number += step
        while number in self._failed or number in self._released:
            count += number in self._failed
            number += step
        return count

    def _forget(self) -> None:
        oldest = self._number - _REMEMBERED
        self._failed = {number for number in self._failed if number > oldest}
        self._released = {number for number in self._released if number > oldest}

    def _open(self) -> None:
        self._turn(self._clock.monotonic())

    def _turn(self, opened_at: float | None) -> None:
        self._era += 1
        self._opened_at = opened_at
        self._succeeded = self._trying = 0
        self._failed.clear()
        self._released.clear()
