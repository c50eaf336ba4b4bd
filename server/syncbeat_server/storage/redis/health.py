"""Keeps whether Redis is there in full, for log and metrics: each cause is said once, hourly, and when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from syncbeat_server.clock import Clock
from syncbeat_server.storage.redis.faults import MOVED, SENTENCES, Cause, cause_of

_log = logging.getLogger(__name__)

_SAID_AGAIN_S = 3600.0
# A fault that comes and goes is told as one: two lines a minute and cause at most.
_QUIET_S = 60.0


@dataclass(frozen=True)
class Refusal:
    """Tells one thing that Redis did not do: why, which of its uses, and more where it is known."""

    cause: Cause
    use: str
    command: str | None = None
    sentence: str | None = None

    @property
    def fix(self) -> str:
        """Say what it is, and what to do about it."""
        return self.sentence or SENTENCES[self.cause]


class RedisHealth:
    """Joins what calls report and trials find: a failed call calls for a trial, and only a trial ends an outage."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.errors = dict.fromkeys(Cause, 0)
        """Failed calls and trials since the start, by cause."""
        self.cause: Cause | None = None
        """Why Redis is not there in full; None while it is."""
        self.asked = asyncio.Event()
        """Set when a trial is wanted at once."""
        self._reported: Cause | None = None
        self._moved = False
        self._since = self._said = clock.monotonic()
        self._said_of: dict[Cause, float] = {}
        self._end_is_news = False

    @property
    def is_up(self) -> bool:
        """True while all that was tried last has worked."""
        return self.cause is None

    def failed(self, error: BaseException) -> Cause:
        """Count a call that failed, and return why it did."""
        cause = cause_of(error)
        self.errors[cause] += 1
        self._reported = cause
        self._moved = self._moved or cause in MOVED
        if self.cause is None:
            self.asked.set()
        return cause

    def judge(self, refusals: Sequence[Refusal]) -> bool:
        """Take what a trial found; True when open connections may lead to a former primary, and others are due.

        An outage is over when a trial finds nothing and no call has failed since the one before.
        """
        reported, self._reported = self._reported, None
        self.asked.clear()
        if refusals:
            self.errors[refusals[0].cause] += 1
            self._moved = self._moved or refusals[0].cause in MOVED
            self._down(refusals)
            return refusals[0].cause is Cause.UNHEARD
        moved, self._moved = self._moved, False
        if reported is not None:
            self._down([Refusal(reported, "a call")])
        elif self.cause is not None:
            self._up(self.cause)
        return moved

    def _down(self, refusals: Sequence[Refusal]) -> None:
        first, now = refusals[0], self._clock.monotonic()
        if self.cause is None:
            self._since = now
        is_new = first.cause is not self.cause and now - self._said_of.get(first.cause, -_QUIET_S) >= _QUIET_S
        self.cause = first.cause
        if not is_new and now - self._said < _SAID_AGAIN_S:
            return
        self._said = self._said_of[first.cause] = now
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
            _log.info("redis can be used in full again", extra={"cause": ended.value, "for_s": seconds})
