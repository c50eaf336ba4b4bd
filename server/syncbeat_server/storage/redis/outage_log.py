"""Tracks the health of Redis for log and metrics: each cause is logged once, hourly, and when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from syncbeat_server.clock import Clock
from syncbeat_server.storage.redis.failure_causes import MOVED, SENTENCES, Cause, cause_of

_log = logging.getLogger(__name__)

_LOG_AGAIN_S = 3600.0
# A fault that comes and goes is logged as one: two lines a minute and cause at most.
_QUIET_S = 60.0


@dataclass(frozen=True)
class Refusal:
    """Refusal of one use of Redis: its cause, and the command and a sentence of its own if known."""

    cause: Cause
    use: str
    command: str | None = None
    sentence: str | None = None

    @property
    def fix(self) -> str:
        """Return a sentence on the cause and its fix."""
        return self.sentence or SENTENCES[self.cause]


class RedisHealth:
    """Combines failed calls and checks: a failed call requests a check, and only a check ends an outage."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.errors = dict.fromkeys(Cause, 0)
        """Failed calls and checks since the start, by cause."""
        self.cause: Cause | None = None
        """The cause of the present outage, which may concern a part of the uses only; None without one."""
        self.check_requested = asyncio.Event()
        """Set when a check is due at once."""
        self._failed_call: Cause | None = None
        self._moved = False
        self._since = self._logged_at = clock.monotonic()
        self._cause_logged_at: dict[Cause, float] = {}
        self._end_is_news = False

    @property
    def is_up(self) -> bool:
        """Return True while everything tried last has worked."""
        return self.cause is None

    def record_failure(self, error: BaseException) -> Cause:
        """Count a failed call and return its cause."""
        cause = cause_of(error)
        self.errors[cause] += 1
        self._failed_call = cause
        self._moved = self._moved or cause in MOVED
        if self.cause is None:
            self.check_requested.set()
        return cause

    def record_check(self, refusals: Sequence[Refusal]) -> bool:
        """Record the result of a check; return True if open connections may lead to a former primary.

        An outage is over when a check finds nothing and no call has failed since the previous check.
        """
        failed_call, self._failed_call = self._failed_call, None
        self.check_requested.clear()
        if refusals:
            self.errors[refusals[0].cause] += 1
            self._moved = self._moved or refusals[0].cause in MOVED
            self._down(refusals)
            return refusals[0].cause is Cause.UNHEARD
        moved, self._moved = self._moved, False
        if failed_call is not None:
            self._down([Refusal(failed_call, "a call")])
        elif self.cause is not None:
            self._up(self.cause)
        return moved

    def _down(self, refusals: Sequence[Refusal]) -> None:
        first, now = refusals[0], self._clock.monotonic()
        if self.cause is None:
            self._since = now
        is_new = first.cause is not self.cause and now - self._cause_logged_at.get(first.cause, -_QUIET_S) >= _QUIET_S
        self.cause = first.cause
        if not is_new and now - self._logged_at < _LOG_AGAIN_S:
            return
        self._logged_at = self._cause_logged_at[first.cause] = now
        self._end_is_news = True
        _log.warning(
            "redis cannot be used in full: wake-ups come late, shares are guessed, nothing is lost",
            extra={
                "cause": first.cause.value,
                "fix": first.fix,
                "refused": [" ".join(filter(None, (one.use, one.command))) for one in refusals],
                "for_s": round(now - self._since),
            },
        )

    def _up(self, ended: Cause) -> None:
        self.cause = None
        if self._end_is_news:
            self._end_is_news = False
            seconds = round(self._clock.monotonic() - self._since)
            # Not as a `cause`, by which such lines would be counted in place of written: each end is news.
            _log.info("redis can be used in full again", extra={"ended": ended.value, "for_s": seconds})
