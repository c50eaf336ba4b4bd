"""Holds how long a process waits for Redis, and how often it tries again."""

from __future__ import annotations

import random
from dataclasses import dataclass

_LONGEST_RECONNECT_S = 4.0  # so that a failover is followed in seconds


@dataclass(frozen=True)
class RedisTimings:
    """Times that no setting changes; tests give longer ones where a busy machine must not matter."""

    call_s: float = 1.0
    """Seconds of one round trip, the wait for a connection included."""
    ping_s: float = 5.0
    """Seconds of silence after which a subscription is asked if it is still there."""
    reconnect_s: float = 0.5
    query_s: float = 1.0
    """Seconds that the answers of other processes are waited for."""

    def pause_s(self, failures: int) -> float:
        """Return a random wait in seconds after so many failures in a row, so that processes do not return together."""
        most = min(_LONGEST_RECONNECT_S, self.reconnect_s * 2.0 ** min(failures, 8))
        return random.uniform(most / 2, most)  # noqa: S311  # no secret


DEFAULT_TIMINGS = RedisTimings()
