"""Limits the lifetime of a stream: until its caller loses access, this process drains, or the stream is old."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

from syncbeat_server.errors import DependencyDown, Overloaded, TokenExpired
from syncbeat_server.sync.model import Drain
from syncbeat_server.sync.streams.stream_context import StreamContext
from syncbeat_server.sync.streams.subscription import Subscription

MIN_HEARTBEAT_S, MAX_HEARTBEAT_S, DEFAULT_HEARTBEAT_S = 5.0, 300.0, 30.0

_RECONNECT_S = 2.0


@dataclass
class Lifetime:
    """Tracks the remaining time of one stream, from its construction on.

    `recheck` raises AccessDenied, TokenExpired or TokenRevoked when the caller loses access, and DependencyDown when
    that cannot be known now.
    """

    context: StreamContext
    subscription: Subscription
    expires_at: datetime | None
    recheck: Callable[[], Awaitable[None]]
    recheck_at: float = 0.0
    ends_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.ends_at = self.context.clock.monotonic() + self.context.hub.stream_age_s * self.context.rule.draw(
            0.85, 1.0
        )

    @property
    def is_over(self) -> bool:
        """Return True if the stream has to end by itself now, with a drain."""
        return self.context.hub.draining or self.context.clock.monotonic() >= self.ends_at

    @property
    def token_remaining_s(self) -> float | None:
        """Return the seconds until the caller's token expires; None if it does not."""
        return None if self.expires_at is None else (self.expires_at - self.context.clock.now()).total_seconds()

    async def check(self) -> None:
        """Return if the caller still has access, which is checked again when told to, and every 50 s.

        Raises:
            TokenExpired: the caller's token expired.
            TokenRevoked: it was revoked.
            DependencyDown, Overloaded: access cannot be checked now.
        """
        clock = self.context.clock
        if self.expires_at is not None and clock.now() >= self.expires_at:
            raise TokenExpired("the access token has expired")
        if not self.subscription.recheck_caller and clock.monotonic() < self.recheck_at:
            return
        # The flag is cleared first: a request to check that arrives during the check is not lost.
        self.subscription.recheck_caller = False
        try:
            await self.recheck()
        except (DependencyDown, Overloaded):
            self.subscription.recheck_caller = True
            raise
        self.recheck_at = clock.monotonic() + self.context.rule.recheck_s * self.context.rule.draw(0.9, 1.0)

    def wait_limit_s(self, until: float) -> float:
        """Return the seconds to wait for news: until a monotonic moment, or until a check or the end is due before."""
        seconds = min(until, self.ends_at, self.recheck_at) - self.context.clock.monotonic()
        remaining_s = self.token_remaining_s
        return seconds if remaining_s is None else min(seconds, remaining_s)

    def drain(self) -> Drain:
        """Return the event that tells the client to reconnect."""
        return Drain(self.context.rule.draw(0.1, _RECONNECT_S) + self.context.reconnect_delay_s())
