"""Schedules a device's polls: not before its hint allows, and later while the server cannot be reached. Pure."""

from __future__ import annotations

from syncbeat.backoff import Backoff, jitter

SAFE_INTERVAL_S = 300.0
"""The poll interval once the last hint is no longer valid, or if it names none."""

_MAX_RETRY_AFTER_S = 3_600.0


class PollSchedule:
    """The moment of the next poll. All times are seconds of one clock that never goes back."""

    def __init__(self) -> None:
        self.due_at = 0.0
        """The moment of the next poll; at once, until there was a hint or a failure."""
        self.not_before = 0.0
        """The moment until which the server asked not to be called, whatever the app wants."""
        self._interval_s = 0.0
        self._valid_until: float | None = None
        self._backoff = Backoff(SAFE_INTERVAL_S)

    def follow_hint(self, interval_s: float, valid_s: float, now: float) -> None:
        """Schedule the next poll by a hint that came now; an interval of 0 counts as the safe one."""
        self._interval_s = interval_s if interval_s > 0 else SAFE_INTERVAL_S
        self._valid_until = now + valid_s
        self.due_at = now + self._interval_s
        self._backoff.reset()

    def record_failure(self, retry_after_s: float | None, now: float) -> None:
        """Schedule the next poll after one that failed; the server may have said when to come back.

        While the hint is valid its interval is kept, each time with a delay on top; then it is the safe interval,
        unless the hint's own is longer. Before the first hint the delay is all.
        """
        interval_s = self._interval_s
        if self._valid_until is not None and now >= self._valid_until:
            interval_s = max(interval_s, SAFE_INTERVAL_S)
        self.hold_off(retry_after_s, now)
        self.due_at = max(now + interval_s, self.not_before) + self._backoff.next_delay()

    def hold_off(self, retry_after_s: float | None, now: float) -> None:
        """Call nothing for as long as the server asked, an hour at most."""
        self.not_before = max(self.not_before, now + min(retry_after_s or 0.0, _MAX_RETRY_AFTER_S))

    def spread(self, max_s: float, now: float) -> None:
        """Delay a poll that is due by up to `max_s`: many devices may wake, or lose their streams, at once."""
        if self.due_at <= now:
            self.due_at = now + jitter(max_s)

    def spread_over_interval(self, now: float) -> None:
        """Delay a poll that is due by up to the hint's interval; see `spread`."""
        self.spread(self._interval_s, now)
