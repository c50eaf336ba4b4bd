"""Remembers where scans of the queue ended, so that the next one does not begin at the start of the index.

Claimed rows stay in the index until they are vacuumed, which a long snapshot prevents. A scan from the very beginning
passes all of them: after half a million deliveries it takes ten times as long. But rows that commit late, or were
locked by a transaction that rolled back, lie behind the end of the last scan: so a scan goes back a minute every
second, and to the very beginning every three seconds, as long as that takes a small part of the time.
"""

from __future__ import annotations

from collections.abc import Hashable
from datetime import datetime, timedelta
from enum import Enum
from typing import Generic, TypeVar

from syncbeat_server.clock import Clock
from syncbeat_server.push.store.queue import QUEUE_START, QueuePosition

Key = TypeVar("Key", bound=Hashable)

# Most transactions that accept have committed by then; a scan that begins further back finds the others. Where answers
# of the database come late, they commit later too, by about as much as a scan takes, which has as many statements.
_MARGIN, _MARGIN_SHARE = timedelta(seconds=2), 2
_RECENT = timedelta(seconds=60)
_RECENT_EVERY_S, _ALL_EVERY_S = 1.0, 3.0
# A scan that took long is repeated after so many times as long: so it takes a tenth of the time, or a twentieth.
_RECENT_SHARE, _ALL_SHARE = 10.0, 20.0


class ScanDepth(Enum):
    """Distance that a scan goes back."""

    NEAR = "to the end of the last scan"
    RECENT = "a minute further"
    ALL = "to the very beginning"


class Frontier(Generic[Key]):
    """Keeps the positions of several scans that are made together, by key."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._positions: dict[Key, QueuePosition] = {}
        self._recent_at = self._all_at = clock.monotonic()
        self._began = 0.0

    def begin_scan(self) -> ScanDepth:
        """Return how far back the scan that begins now has to go."""
        self._began = self._clock.monotonic()
        if self._began >= self._all_at:
            return ScanDepth.ALL
        return ScanDepth.RECENT if self._began >= self._recent_at else ScanDepth.NEAR

    def position(self, depth: ScanDepth, key: Key) -> QueuePosition:
        """Return the position behind which the scan of `key` begins."""
        position = self._positions.get(key)
        if position is None or depth is ScanDepth.ALL:
            return QUEUE_START
        return position if depth is ScanDepth.NEAR else QueuePosition(position.due_at - _RECENT)

    def advance(self, key: Key, position: QueuePosition | None, now: datetime) -> None:
        """Remember the position of the last row that was found; None if the scan found all there was.

        `now` is the database's time of the scan.
        """
        if position is None:
            took = timedelta(seconds=self._clock.monotonic() - self._began)
            position = QueuePosition(now - _MARGIN - _MARGIN_SHARE * took)
        self._positions[key] = position

    def end_scan(self, depth: ScanDepth) -> None:
        """Schedule the next scan that goes as far back, by the time that this one took."""
        now = self._clock.monotonic()
        took_s = now - self._began
        if depth is ScanDepth.ALL:
            self._all_at = now + max(_ALL_EVERY_S, took_s * _ALL_SHARE)
        if depth is not ScanDepth.NEAR:
            self._recent_at = now + max(_RECENT_EVERY_S, took_s * _RECENT_SHARE)
