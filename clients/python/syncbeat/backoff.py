"""Draws the delays between attempts that fail. Pure but for the random numbers."""

from __future__ import annotations

import random

_FIRST_DELAY_S = 2.0
_MAX_DOUBLINGS = 16


def jitter(max_s: float, *, at_least_s: float = 0.0) -> float:
    """Return a delay drawn evenly from `at_least_s` to `max_s`, in seconds."""
    return random.uniform(at_least_s, max_s)  # noqa: S311  # not a secret


class Backoff:
    """Delays drawn from 0 up to a bound that doubles with each failure, from 2 s to `max_s`.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ ("full jitter").
    """

    def __init__(self, max_s: float) -> None:
        self._max_s = max_s
        self.failures = 0

    def next_delay(self) -> float:
        """Count one more failure, and return how long to wait after it, in seconds."""
        max_s = min(self._max_s, _FIRST_DELAY_S * 2 ** min(self.failures, _MAX_DOUBLINGS))
        self.failures += 1
        return jitter(max_s)

    def reset(self) -> None:
        """Start again from the shortest delays, since an attempt succeeded."""
        self.failures = 0
