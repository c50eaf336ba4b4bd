"""Holds what all streams of a process share."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from syncbeat_server.clock import Clock
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.policy import Tuning
from syncbeat_server.sync.streams.hub import Hub
from syncbeat_server.sync.streams.shared_hints import SharedHints

RETRY_S = 1.0
"""Seconds that a stream waits while the database is down."""
PAGE_SIZE = 200
"""Changes that a stream reads of one scope at once."""
_REFETCH_SPREAD_S = 2.0

jitter: Callable[[float, float], float] = random.SystemRandom().uniform


@dataclass(frozen=True)
class StreamContext:
    """Shares the hub, the feed reader, the clock and the pacing of this process between its streams.

    `tuning(app)` returns the policy inputs of an app. `reconnect_delay_s()` returns the seconds after which one of many
    clients that are sent away together may return.
    """

    hub: Hub
    reader: FeedReader
    clock: Clock
    tuning: Callable[[str], Tuning]
    reconnect_delay_s: Callable[[], float]

    @cached_property
    def hints(self) -> SharedHints:
        """Return the hints that streams share."""
        return SharedHints(self.clock, self.tuning)

    def refetch_delay_s(self) -> float:
        """Return the seconds after which a client lists a feed again, spread because many are reset together."""
        return jitter(0.0, _REFETCH_SPREAD_S) + self.reconnect_delay_s()
