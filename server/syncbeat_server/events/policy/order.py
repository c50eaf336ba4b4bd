"""Orders the events of one source and ordering key by when they occurred, whatever their types (ADR 161)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from syncbeat_server.defaults import MOST_AHEAD_S
from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.sync.model import NewChange

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
"""The earliest time of an event. No source tells of an earlier one: such a time was not set (Go's zero time is in the
year 1), or is in another unit. Unix times end there too, so that each form of a time has the same range."""

_TICK = timedelta(microseconds=1)


class OrderHead(NamedTuple):
    """Names the latest event whose effects were carried out. A later one compares greater: time, then id by bytes."""

    occurred_at: datetime
    event_id: bytes


def order_head(occurred_at: datetime, event_id: str) -> OrderHead:
    """Return the place of an event in its order."""
    return OrderHead(occurred_at, event_id.encode())


def time_fault(occurred_at: datetime, now: datetime) -> str | None:
    """Return what is wrong with the time that an event names, held against the service's clock; None: nothing."""
    if occurred_at < EARLIEST:
        return "before 1970-01-01T00:00:00Z; a time that was never set?"
    if occurred_at > now + timedelta(seconds=MOST_AHEAD_S):
        return f"more than {MOST_AHEAD_S:g} s ahead of the service's clock"
    return None


def check_source_times(changes: Sequence[NewChange], path: str, now: datetime) -> None:
    """Check that no change is from a time that `time_fault` refuses; `path` is the field of the changes.

    Raises:
        InvalidRequest: with each of those that are.
    """
    faults = [
        FieldViolation(f"{path}[{index}].source_time", fault, FieldReason.OUT_OF_RANGE)
        for index, change in enumerate(changes)
        if change.source_time is not None and (fault := time_fault(change.source_time, now))
    ]
    if faults:
        raise InvalidRequest(*faults)


def arrival_time(now: datetime, head: OrderHead | None) -> datetime:
    """Return when an event occurred that says no time: now, and after the latest one.

    That is ahead of now where its sender's clock was, by `MOST_AHEAD_S` at most, or was put behind one that was: events
    without a time are ordered as they arrive, and not by their ids.
    """
    return now if head is None or head.occurred_at < now else head.occurred_at + _TICK


def is_stale(place: OrderHead, head: OrderHead | None) -> bool:
    """Tell if an event occurred before the latest one of its order."""
    return head is not None and place < head
