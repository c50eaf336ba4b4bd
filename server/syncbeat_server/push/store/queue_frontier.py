"""Where walks along the queue begin: where the last one ended, and now and then further back.

What was claimed stays in the index until it is vacuumed, which a snapshot that somebody holds prevents. A walk from the
very beginning passes all of that: after half a million deliveries it takes ten times as long. But what is committed
late, or was locked by somebody who gave up, is behind: so a walk goes a minute back each second, and to the very
beginning every three, as long as that takes a small part of the time.
"""

from __future__ import annotations

import uuid
from collections.abc import Hashable
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from syncbeat_server.clock import Clock

Key = TypeVar("Key", bound=Hashable)

# Most transactions that accept are over by then; the others are found by the next walk that begins further back.
_MARGIN = timedelta(seconds=2)
_RECENT = timedelta(seconds=60)
_RECENT_EVERY_S, _ALL_EVERY_S = 1.0, 3.0
# A walk that took long is repeated after so many times as long: a tenth of the time, and a twentieth.
_RECENT_SHARE, _ALL_SHARE = 10.0, 20.0
_NO_ID = str(uuid.UUID(int=0))


class Place(NamedTuple):
    """A delivery in the order in which they are due; walks begin behind it."""

    at: datetime
    delivery_id: str = _NO_ID


FIRST = Place(datetime(1970, 1, 1, tzinfo=UTC))


class Reach(Enum):
    """How far back a walk begins."""

    NEAR = "where the last one ended"
    RECENT = "a minute before that"
    ALL = "at the very beginning"


class Frontier(Generic[Key]):
    """The places of several walks that are made together, by key."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._places: dict[Key, Place] = {}
        self._recent_at = self._all_at = clock.monotonic()
        self._began = 0.0

    def begin(self) -> Reach:
        """A walk begins now: how far back."""
        self._began = self._clock.monotonic()
        if self._began >= self._all_at:
            return Reach.ALL
        return Reach.RECENT if self._began >= self._recent_at else Reach.NEAR

    def place(self, reach: Reach, key: Key) -> Place:
        """Where it begins."""
        place = self._places.get(key)
        if place is None or reach is Reach.ALL:
            return FIRST
        return place if reach is Reach.NEAR else Place(place.at - _RECENT)

    def stopped_at(self, key: Key, place: Place | None, now: datetime) -> None:
        """Keep where the walk stopped, with more behind; None: it found all there was at `now`, the database's time."""
        self._places[key] = Place(now - _MARGIN) if place is None else place

    def end(self, reach: Reach) -> None:
        """The walk is over."""
        now = self._clock.monotonic()
        took_s = now - self._began
        if reach is Reach.ALL:
            self._all_at = now + max(_ALL_EVERY_S, took_s * _ALL_SHARE)
        if reach is not Reach.NEAR:
            self._recent_at = now + max(_RECENT_EVERY_S, took_s * _RECENT_SHARE)
