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

_REFETCH_SPREAD_S = 2.0


@dataclass(frozen=True)
class StreamRule:
    """Intervals and sizes of streams that no setting changes."""

    retry_s: float = 1.0
    """Seconds that a stream waits while the database is down."""
    recheck_s: float = 50.0
    """Seconds after which the caller's access is checked again."""
    news_every_s: float = 5.0
    """Seconds between two checkpoints for news: one names every scope, up to 4,000 for a change of one."""
    look_every_s: float = 5.0
    """Seconds after which the stream of a whole app looks for changes unasked."""
    cursors_every_s: float = 5.0
    """Seconds after which the cursors of a whole app follow a change."""
    page_size: int = 200
    """Changes that a stream reads of one scope at once."""
    max_cursors: int = 100_000
    """Scopes of a whole app of which a stream keeps the cursors."""
    draw: Callable[[float, float], float] = random.SystemRandom().uniform
    """Draws a moment between two."""


_RULE = StreamRule()


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
    rule: StreamRule = _RULE

    @cached_property
    def hints(self) -> SharedHints:
        """Return the hints that streams share."""
        return SharedHints(self.clock, self.tuning)

    def refetch_delay_s(self) -> float:
        """Return the seconds after which a client lists a feed again, spread because many are reset together."""
        return self.rule.draw(0.0, _REFETCH_SPREAD_S) + self.reconnect_delay_s()
