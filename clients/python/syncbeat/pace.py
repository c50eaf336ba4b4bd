"""When a device may ask again: not before its hint said, and later while the server cannot be reached. Pure."""

from __future__ import annotations

import random

SAFE_INTERVAL_S = 300.0
"""The interval when the last hint is no longer valid, or says none."""

_FIRST_DELAY_S = 2.0
_MAX_ASKED_S = 3_600.0
_MAX_DOUBLINGS = 16


def jitter(longest_s: float) -> float:
    """A delay drawn evenly from 0 to `longest_s`."""
    return random.uniform(0.0, longest_s)  # noqa: S311  # not a secret


class Backoff:
    """Delays between attempts that fail: drawn from 0 up to a bound that doubles, from 2 s to `longest_s`.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ ("full jitter").
    """

    def __init__(self, longest_s: float = SAFE_INTERVAL_S) -> None:
        self._longest_s = longest_s
        self.failures = 0

    def next_delay(self) -> float:
        """Count one more failure, and how long to wait after it, in seconds."""
        longest_s = min(self._longest_s, _FIRST_DELAY_S * 2 ** min(self.failures, _MAX_DOUBLINGS))
        self.failures += 1
        return jitter(longest_s)

    def reset(self) -> None:
        """An attempt succeeded."""
        self.failures = 0


class Pace:
    """The moment of the next poll. All times are seconds of one clock that never goes back."""

    def __init__(self) -> None:
        self.due_at = 0.0
        """When to poll next; at once, until there was a hint or a failure."""
        self.not_before = 0.0
        """Until then the server wants to be left alone, whatever the app asks for."""
        self._interval_s = 0.0
        self._valid_until: float | None = None
        self._backoff = Backoff()

    def told(self, interval_s: float, valid_s: float, now: float) -> None:
        """A hint came; an interval of none is taken as the safe one."""
        self._interval_s = interval_s if interval_s > 0 else SAFE_INTERVAL_S
        self._valid_until = now + valid_s
        self.due_at = now + self._interval_s
        self._backoff.reset()

    def failed(self, asked_s: float | None, now: float) -> None:
        """The server could not be asked. It may have said for how long to leave it alone.

        The hint is followed on while it is valid, each time with a delay on top; then the safe interval is, unless the
        hint's own is longer. Without any hint the delay is all.
        """
        interval_s = self._interval_s
        if self._valid_until is not None and now >= self._valid_until:
            interval_s = max(interval_s, SAFE_INTERVAL_S)
        self.leave_alone(asked_s, now)
        self.due_at = max(now + interval_s, self.not_before) + self._backoff.next_delay()

    def leave_alone(self, asked_s: float | None, now: float) -> None:
        """The server asked for that; an hour at most is believed."""
        self.not_before = max(self.not_before, now + min(asked_s or 0.0, _MAX_ASKED_S))

    def spread(self, longest_s: float, now: float) -> None:
        """What is due already comes within `longest_s`: many devices may wake, or lose their streams, at once."""
        if self.due_at <= now:
            self.due_at = now + jitter(longest_s)

    def spread_interval(self, now: float) -> None:
        """As `spread`, over the hint's interval."""
        self.spread(self._interval_s, now)
