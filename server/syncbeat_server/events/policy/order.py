"""Orders the events of one source and ordering key by when they occurred, whatever their types (ADR 161)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

_TICK = timedelta(microseconds=1)


class OrderHead(NamedTuple):
    """Names the latest event whose effects were carried out. A later one compares greater: time, then id by bytes."""

    occurred_at: datetime
    event_id: bytes


def order_head(occurred_at: datetime, event_id: str) -> OrderHead:
    """Return the place of an event in its order."""
    return OrderHead(occurred_at, event_id.encode())


def arrival_time(now: datetime, head: OrderHead | None) -> datetime:
    """Return when an event occurred that says no time: now, and after the latest one.

    That is ahead of now where its sender's clock was, by `MOST_AHEAD_S` at most, or was put behind one that was: events
    without a time are ordered as they arrive, and not by their ids.
    """
    return now if head is None or head.occurred_at < now else head.occurred_at + _TICK


def is_stale(place: OrderHead, head: OrderHead | None) -> bool:
    """Tell if an event occurred before the latest one of its order."""
    return head is not None and place < head
