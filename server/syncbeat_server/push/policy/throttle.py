"""How fast an app may send after what its provider said of its rate. Pure: the moment is an argument.

A 429 is answered by sending half as fast, and by growing back over a minute. Only when they are many is nothing sent
at all (firebase.google.com, "Best practices when using FCM at scale": wait for Retry-After, 60 s without it).
"""

from __future__ import annotations

from collections import deque

_HALVE_EVERY_S = 5.0  # what is in flight when the first 429 comes belongs to the same event
_RECOVERS_IN_S = 60.0
_LEAST_SHARE = 1 / 64
_WINDOW_S = 10.0
_MANY = 0.10
_MIN_ANSWERS = 20
_PAUSE_S = 60.0


class Pace:
    """The share of its rate that an app may use, and whether it pauses."""

    def __init__(self) -> None:
        self._share = 1.0
        self._share_at = 0.0
        self._halved_at = -_HALVE_EVERY_S
        self._paused_until = 0.0
        self._answers: deque[tuple[float, bool]] = deque()  # bounded by the rate: ten seconds of answers
        self._throttled = 0

    def share(self, now: float) -> float:
        """Between 1/64 and 1."""
        grown = self._share + max(0.0, now - self._share_at) / _RECOVERS_IN_S
        return min(1.0, grown)

    def paused_for(self, now: float) -> float:
        """Seconds until something may be sent; 0 when it may now."""
        return max(0.0, self._paused_until - now)

    def pause(self, now: float, seconds: float) -> None:
        """Send nothing for `seconds`."""
        self._paused_until = max(self._paused_until, now + seconds)

    def answered(self, now: float, *, throttled: bool, retry_after_s: float | None = None) -> None:
        """The provider answered; `throttled`: 429."""
        self._answers.append((now, throttled))
        self._throttled += throttled
        while self._answers[0][0] <= now - _WINDOW_S:
            self._throttled -= self._answers.popleft()[1]
        if not throttled:
            return
        if now - self._halved_at >= _HALVE_EVERY_S:
            self._share, self._share_at, self._halved_at = max(_LEAST_SHARE, self.share(now) / 2), now, now
        if len(self._answers) >= _MIN_ANSWERS and self._throttled > _MANY * len(self._answers):
            self.pause(now, max(_PAUSE_S, retry_after_s or 0.0))
            self._answers.clear()
            self._throttled = 0
