"""Spaces the reconnects and retries of clients that are sent away at one moment, by overload or a shutdown. Pure."""

from __future__ import annotations

_MAX_DELAY_S = 300.0


class ReconnectSpacer:
    """Spaces out devices that are sent away at one moment: they return one after the other, at the rate we can serve.

    That is the spread over the time that it takes to serve them all, E/(C - other arrivals), without having to know
    how many they will be. Nobody waits longer than five minutes, since nobody would keep a later appointment.
    """

    def __init__(self) -> None:
        self._free_at = 0.0

    def next_delay_s(self, now: float, per_s: float) -> float:
        """Return the seconds after which the next one may return, where `per_s` of them can be served a second."""
        self._free_at = min(now + _MAX_DELAY_S, max(now, self._free_at) + 1.0 / per_s)
        return self._free_at - now
