"""How long a stream goes on: until its caller is let in no more, this process drains, or it is old."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown, TokenExpired
from syncbeat_server.sync.model import Drain
from syncbeat_server.sync.streams.hub import Hub, Subscription

MIN_HEARTBEAT_S, MAX_HEARTBEAT_S, DEFAULT_HEARTBEAT_S = 5.0, 300.0, 30.0
RETRY_S = 1.0
"""How long a stream waits for a database that is away."""
REFETCH_S = 2.0
"""Within which time those who are reset together fetch."""

_RECONNECT_S = 2.0
_RECHECK_S = 50.0

jitter: Callable[[float, float], float] = random.SystemRandom().uniform


@dataclass
class Lifetime:
    """The time of one stream, from when it is made.

    `recheck` raises when the caller is no longer let in, DependencyDown when that cannot be known now; `turn` knows in
    how many seconds one of many who are sent away together may come back.
    """

    hub: Hub
    subscription: Subscription
    clock: Clock
    expires_at: datetime | None
    recheck: Callable[[], Awaitable[None]]
    turn: Callable[[], float]
    recheck_at: float = 0.0
    ends_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.ends_at = self.clock.monotonic() + self.hub.stream_age_s * jitter(0.85, 1.0)

    @property
    def is_over(self) -> bool:
        """Whether the stream is to end by itself now, with a drain."""
        return self.hub.draining or self.clock.monotonic() >= self.ends_at

    @property
    def remaining_s(self) -> float | None:
        """How long the caller's token is still good; None: it has no end."""
        return None if self.expires_at is None else (self.expires_at - self.clock.now()).total_seconds()

    async def check(self) -> None:
        """Return when the caller is still let in, which is asked anew when that was told, and every 50 s.

        Raises:
            TokenExpired: the caller's token came to its end.
            TokenRevoked: it was taken back.
            DependencyDown: it cannot be known now.
        """
        if self.expires_at is not None and self.clock.now() >= self.expires_at:
            raise TokenExpired("the access token has expired")
        if not self.subscription.recheck and self.clock.monotonic() < self.recheck_at:
            return
        # First the flag: what is told while the answer is under way is asked again.
        self.subscription.recheck = False
        try:
            await self.recheck()
        except DependencyDown:
            self.subscription.recheck = True
            raise
        self.recheck_at = self.clock.monotonic() + _RECHECK_S * jitter(0.9, 1.0)

    def patience_s(self, until: float) -> float:
        """Returns for how long to wait for news, up to a moment: until something else is to be done."""
        seconds = min(until, self.ends_at, self.recheck_at) - self.clock.monotonic()
        remaining_s = self.remaining_s
        return seconds if remaining_s is None else min(seconds, remaining_s)

    def drain(self) -> Drain:
        """Returns when to come back."""
        return Drain(jitter(0.1, _RECONNECT_S) + self.turn())
