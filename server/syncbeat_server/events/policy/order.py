"""Orders the events of one source and ordering key by when they occurred, whatever their types (ADR 161)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

MOST_AHEAD_S = 300.0
"""Bounds, in seconds, how far ahead of the service's clock an event may have occurred: one of the year 3000 would make
all later ones of its order stale."""
_TICK = timedelta(microseconds=1)
# More events without a time of their own than fit into one second of ticks do not come in one second.
_LONGEST_RUN = timedelta(seconds=1)


class OrderHead(NamedTuple):
    """Names the latest event whose effects were carried out. A later one compares greater: time, then id by bytes."""

    occurred_at: datetime
    event_id: bytes


def order_head(occurred_at: datetime, event_id: str) -> OrderHead:
    """Return the place of an event in its order."""
    return OrderHead(occurred_at, event_id.encode())


def arrival_time(now: datetime, head: OrderHead | None) -> datetime:
    """Return when an event occurred that says no time: now.

    Where the latest one has the same time, or was put behind one that had, it goes behind: those without a time are
    ordered as they arrive, and not by their ids.
    """
    if head is None or not now <= head.occurred_at < now + _LONGEST_RUN:
        return now
    return head.occurred_at + _TICK


def is_stale(place: OrderHead, head: OrderHead | None) -> bool:
    """Tell if an event occurred before the latest one of its order."""
    return head is not None and place < head
