"""Decides how many attempts of one app may be under way at once (ADR 124). Pure: the time is an argument.

By Little's law a rate needs as many attempts at once as it has in the seconds that one takes. The seconds are the least
of the last half minute: under load the mean has our own waiting in it, and would justify ever more attempts.
"""

from __future__ import annotations

# A provider that is near needs fewer, but claims are of so many.
_LEAST = 200
_WINDOW_S = 30.0
# The next deliveries are claimed when half of the places are free (`delivery/worker.py`), so that claims stay large: a
# third of the places are empty on average, and as many are busy with recording.
_PLACES = 2.0


class InFlightLimit:
    """Tracks how fast a provider answers, and the number of attempts that follows from it."""

    def __init__(self, most: int, rate_per_s: float) -> None:
        """Begin with what a provider needs that answers at once; `rate_per_s` is the most that is sent in a second."""
        self._most = most
        self._rate_per_s = rate_per_s
        self._began = 0.0
        self._least_before = self._least_now = float("inf")

    def record_latency(self, now: float, seconds: float) -> None:
        """Count the seconds that an attempt took which the provider accepted."""
        if now - self._began >= _WINDOW_S:
            self._began, self._least_before, self._least_now = now, self._least_now, seconds
        elif seconds < self._least_now:
            self._least_now = seconds

    def current(self, rate_share: float = 1.0) -> int:
        """Return how many attempts may be under way, at a share of the rate."""
        seconds = min(self._least_before, self._least_now)
        needed = 0.0 if seconds == float("inf") else self._rate_per_s * rate_share * seconds * _PLACES
        return min(self._most, max(_LEAST, round(needed)))
