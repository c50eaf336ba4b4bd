"""Slows an app down when its provider throttles it. Pure: the time is an argument.

A 429 halves the app's rate, which then grows back over a minute. Sending stops only when 429s are frequent
(firebase.google.com, "Best practices when using FCM at scale": wait for Retry-After, or 60 s without it).
"""

from __future__ import annotations

from collections import deque

_HALVE_EVERY_S = 5.0  # 429s that answer what was in flight at the first one belong to the same event
_RECOVERS_IN_S = 60.0
_LEAST_SHARE = 1 / 64
_WINDOW_S = 10.0
_FREQUENT = 0.10  # of the answers in the window
_MIN_ANSWERS = 20
_PAUSE_S = 60.0


class Throttle:
    """Tracks the share of its rate that an app may use, and its pauses."""

    def __init__(self) -> None:
        self._share = 1.0
        self._share_at = 0.0
        self._halved_at = -_HALVE_EVERY_S
        self._paused_until = 0.0
        self._answers: deque[tuple[float, bool]] = deque()  # bounded by the rate: ten seconds of answers
        self._throttled = 0

    def rate_share(self, now: float) -> float:
        """Return the share of its rate that the app may use, from 1/64 to 1."""
        grown = self._share + max(0.0, now - self._share_at) / _RECOVERS_IN_S
        return min(1.0, grown)

    def paused_for_s(self, now: float) -> float:
        """Return the seconds until sending may go on; 0 when it is not paused."""
        return max(0.0, self._paused_until - now)

    def pause(self, now: float, seconds: float) -> None:
        """Send nothing for `seconds`; a longer pause that is under way stays."""
        self._paused_until = max(self._paused_until, now + seconds)

    def record_answer(self, now: float, *, throttled: bool, retry_after_s: float | None = None) -> None:
        """Count an answer of the provider; `throttled` for a 429."""
        self._answers.append((now, throttled))
        self._throttled += throttled
        while self._answers[0][0] <= now - _WINDOW_S:
            self._throttled -= self._answers.popleft()[1]
        if not throttled:
            return
        if now - self._halved_at >= _HALVE_EVERY_S:
            self._share, self._share_at, self._halved_at = max(_LEAST_SHARE, self.rate_share(now) / 2), now, now
        if len(self._answers) >= _MIN_ANSWERS and self._throttled > _FREQUENT * len(self._answers):
            self.pause(now, max(_PAUSE_S, retry_after_s or 0.0))
            self._answers.clear()
            self._throttled = 0
