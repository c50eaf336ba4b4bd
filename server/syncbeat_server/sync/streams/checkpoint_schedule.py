"""Schedules the hints and checkpoints of a stream."""

from __future__ import annotations

import math

from syncbeat_server.sync.streams.stream_context import StreamContext


class CheckpointSchedule:
    """Schedules a checkpoint at each heartbeat, and within 5 s of news, but no more often than that for news.

    Streams of one scope draw their moments, so that they do not all send at once.
    """

    def __init__(self, context: StreamContext, heartbeat_s: float) -> None:
        self._clock = context.clock
        self._news_every_s = context.rule.news_every_s
        self._draw = context.rule.draw
        self._heartbeat_s = heartbeat_s
        self._sent_at = -math.inf
        self._news_at = math.inf
        self._heartbeat_at = context.clock.monotonic()

    @property
    def next_at(self) -> float:
        """Return the monotonic moment at which the next hint or checkpoint is due."""
        return min(self._news_at, self._heartbeat_at)

    def mark_news(self) -> None:
        """Schedule a checkpoint for news, unless one is scheduled."""
        if self._news_at == math.inf:
            now = self._clock.monotonic()
            self._news_at = max(now + self._draw(0.0, self._news_every_s), self._sent_at + self._news_every_s)

    def is_due(self) -> bool:
        """Return True if a hint or checkpoint is due."""
        return self._clock.monotonic() >= self.next_at

    def is_heartbeat_due(self) -> bool:
        """Return True if a checkpoint is due even without news."""
        return self._clock.monotonic() >= self._heartbeat_at

    def mark_sent(self, *, is_checkpoint: bool) -> None:
        """Start the next interval; that of heartbeats only after a checkpoint."""
        self._sent_at, self._news_at = self._clock.monotonic(), math.inf
        if is_checkpoint:
            self._heartbeat_at = self._sent_at + self._heartbeat_s
