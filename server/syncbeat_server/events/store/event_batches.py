"""Looks up, locks and records events of a batch: what each needs to know in one statement, all writes in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson

from syncbeat_server.events.model import (
    NO_RESULT,
    EffectResult,
    EventKey,
    EventState,
    IncomingEvent,
    OrderKey,
)
from syncbeat_server.events.policy.order import OrderHead, order_head
from syncbeat_server.storage.postgres.database import Connection, Row
from syncbeat_server.sync.feed.batch_writer import FIRST_BESIDE, Beside
from syncbeat_server.sync.model import Cursor

# A tick before the end of time: behind it there is place for an event that arrives.
_LAST = datetime.max.replace(tzinfo=UTC) - timedelta(microseconds=1)


class KnownEvent(NamedTuple):
    """Holds what a repetition of a recorded event is answered by."""

    content_hash: bytes
    state: EventState
    first_seen_at: datetime
    failure: str
    result: EffectResult


@dataclass(frozen=True, slots=True)
class LookUp:
    """Holds the events and order heads that are there, of those asked for. The heads are locked, the events are not.

    `held` are orders whose heads another transaction has locked.
    """

    now: datetime
    known: Mapping[EventKey, KnownEvent]
    heads: Mapping[OrderKey, OrderHead]
    held: frozenset[OrderKey] = frozenset()


@dataclass(frozen=True, slots=True)
class NewEvent:
    """Holds a new event as it is recorded: ACCEPTED, with the result of its effects, or STALE."""

    event: IncomingEvent
    occurred_at: datetime
    state: EventState
    duplicates: int = 0
    result: EffectResult = NO_RESULT


@dataclass(frozen=True, slots=True)
class HeadMove:
    """Moves an order's head on; `is_new`: there was none."""

    key: OrderKey
    head: OrderHead
    is_new: bool


class RacedError(Exception):
    """Another transaction has recorded one of the events, or begun one of their orders, since they were looked up."""


# The heads are locked in order, at their newest; the events are those of before that wait, so that one which another
# transaction recorded meanwhile is found when it is inserted.
_LOOK_UP = """
    WITH head AS MATERIALIZED (
        SELECT h.app_id, h.source, h.ordering_key, h.occurred_at, h.event_id FROM event_order_heads h
        JOIN unnest($4::text[], $5::text[], $6::text[]) AS k (app_id, source, ordering_key)
             USING (app_id, source, ordering_key)
        ORDER BY h.app_id, h.source, h.ordering_key FOR NO KEY UPDATE OF h)
    SELECT 'clock' AS kind, '' AS app_id, '' AS source, '' AS name, syncbeat_now() AS at, '' AS event_id,
           ''::bytea AS content_hash, '' AS state, '' AS failure, NULL::jsonb AS result
    UNION ALL
    SELECT 'head', app_id, source, ordering_key, occurred_at, event_id, '', '', '', NULL FROM head
    UNION ALL
    SELECT 'event', e.app_id, e.source, e.event_id, e.first_seen_at, '', e.content_hash, e.state, e.failure, e.result
    FROM unnest($1::text[], $2::text[], $3::text[]) AS k (app_id, source, event_id)
    JOIN events e USING (app_id, source, event_id)"""
_LOCKS_HEADS = "FOR NO KEY UPDATE OF h"
_LOOK_UP_FREE = f"""{_LOOK_UP.replace(_LOCKS_HEADS, f"{_LOCKS_HEADS} SKIP LOCKED")}
    UNION ALL
    SELECT 'held', h.app_id, h.source, h.ordering_key, h.occurred_at, '', '', '', '', NULL FROM event_order_heads h
    JOIN unnest($4::text[], $5::text[], $6::text[]) AS k (app_id, source, ordering_key)
         USING (app_id, source, ordering_key)
    WHERE (h.app_id, h.source, h.ordering_key) NOT IN (SELECT app_id, source, ordering_key FROM head)"""  # noqa: S608  # constants

_EVENT_TYPES = (
    *("text", "text", "text", "bytea", "text", "text", "text", "text", "timestamptz", "text"),
    *("text", "integer", "bigint", "text"),
)


def _parameters(first: int, types: Sequence[str]) -> str:
    return ", ".join(f"${number}::{name}[]" for number, name in enumerate(types, first))


def _record_sql(first: int, give_up: str) -> str:
    return f"""INSERT INTO events (app_id, source, event_id, content_hash, caller, type, subject, ordering_key,
                                   occurred_at, payload, state, attempts, duplicate_count, result,
                                   first_seen_at, updated_at, deadline_at)
        SELECT app_id, source, event_id, content_hash, caller, type, subject, ordering_key,
               occurred_at, payload, state, attempts, duplicates, result::jsonb,
               syncbeat_now(), syncbeat_now(), syncbeat_now() + make_interval(secs => {give_up})
        FROM unnest({_parameters(first, _EVENT_TYPES)})
             AS k (app_id, source, event_id, content_hash, caller, type, subject, ordering_key, occurred_at, payload,
                   state, attempts, duplicates, result)
        ORDER BY app_id COLLATE "C", source COLLATE "C", event_id COLLATE "C"
        ON CONFLICT (app_id, source, event_id) DO NOTHING RETURNING 1"""  # noqa: S608  # constants


_BEGIN_ORDERS = """INSERT INTO event_order_heads (app_id, source, ordering_key, occurred_at, event_id, moved_at)
    SELECT app_id, source, ordering_key, occurred_at, event_id, syncbeat_now() FROM move WHERE is_new
    ORDER BY app_id, source, ordering_key
    ON CONFLICT (app_id, source, ordering_key) DO NOTHING RETURNING 1"""
_MOVE_HEADS = """UPDATE event_order_heads h SET occurred_at = m.occurred_at, event_id = m.event_id,
        moved_at = CASE WHEN h.moved_at < syncbeat_now() - interval '1 day' THEN syncbeat_now() ELSE h.moved_at END
    FROM move m
    WHERE NOT m.is_new AND (h.app_id, h.source, h.ordering_key) = (m.app_id, m.source, m.ordering_key)"""
_COUNT_DUPLICATES = """UPDATE events e SET duplicate_count = e.duplicate_count + own.count
    FROM (SELECT e.app_id, e.source, e.event_id, k.count
          FROM events e JOIN unnest({columns}) AS k (app_id, source, event_id, count) USING (app_id, source, event_id)
          ORDER BY e.app_id, e.source, e.event_id FOR NO KEY UPDATE OF e) own
    WHERE (e.app_id, e.source, e.event_id) = (own.app_id, own.source, own.event_id)"""
_MOVE_TYPES = ("text", "text", "text", "timestamptz", "text", "boolean")
_KEY_COUNT_TYPES = ("text", "text", "text", "bigint")


def _write_sql(first: int) -> str:
    moves = first + len(_EVENT_TYPES) + 1
    counts = moves + len(_MOVE_TYPES)
    return f"""move AS (
            SELECT * FROM unnest({_parameters(moves, _MOVE_TYPES)})
                          AS k (app_id, source, ordering_key, occurred_at, event_id, is_new)),
        recorded AS ({_record_sql(first + 1, f"${first}::float8")}),
        begun AS ({_BEGIN_ORDERS}), moved AS ({_MOVE_HEADS}),
        counted AS ({_COUNT_DUPLICATES.format(columns=_parameters(counts, _KEY_COUNT_TYPES))})
        SELECT (SELECT count(*) FROM recorded) AS recorded, (SELECT count(*) FROM begun) AS begun"""  # noqa: S608  # constants


_RECORD = f"WITH {_write_sql(1)}"
_RECORD_BESIDE = _write_sql(FIRST_BESIDE)


async def look_up(
    conn: Connection, keys: Sequence[EventKey], orders: Sequence[OrderKey], *, skip_held: bool = False
) -> LookUp:
    """Find events, and lock the heads of orders; both are distinct and sorted.

    `skip_held`: do not wait for heads that another transaction has locked, but tell them.
    """
    now: datetime | None = None
    known: dict[EventKey, KnownEvent] = {}
    heads: dict[OrderKey, OrderHead] = {}
    held = set[OrderKey]()
    for row in await conn.fetch(_LOOK_UP_FREE if skip_held else _LOOK_UP, *_columns(keys, 3), *_columns(orders, 3)):
        kind, app_id, source, name, at, event_id, content_hash, state, failure, result = row.values()
        if kind == "clock":
            now = at
        elif kind == "head":
            heads[OrderKey(app_id, source, name)] = order_head(readable_time(at), event_id)
        elif kind == "held":
            held.add(OrderKey(app_id, source, name))
        else:
            known[EventKey(app_id, source, name)] = KnownEvent(
                content_hash, EventState(state), at, failure, result_of(result)
            )
    if now is None:
        raise AssertionError("the look-up tells the time")
    return LookUp(now, known, heads, frozenset(held))


@dataclass(frozen=True, slots=True)
class BatchWrites:
    """Holds what a batch writes: new events, moved heads of orders, and repetitions to count."""

    events: Sequence[NewEvent] = ()
    heads: Sequence[HeadMove] = ()
    repetitions: Mapping[EventKey, int] = field(default_factory=dict)

    def beside_changes(self, give_up_s: float) -> Beside:
        """Return what is written in the statement of changes; `check` has to see the row that it returns."""
        return Beside(_RECORD_BESIDE, self.columns(give_up_s))

    def columns(self, give_up_s: float) -> list[Any]:
        """Return the parameters of the statement; effects are given up so many seconds from now."""
        moves = [(*one.key, one.head.occurred_at, one.head.event_id.decode(), one.is_new) for one in self.heads]
        counts = [(*key, count) for key, count in sorted(self.repetitions.items())]
        return [
            give_up_s,
            *_event_columns(self.events),
            *_columns(moves, len(_MOVE_TYPES)),
            *_columns(counts, len(_KEY_COUNT_TYPES)),
        ]

    def check(self, row: Row) -> None:
        """Check that all was written. Raises RacedError: an event or an order is there by now; begin again."""
        begun = sum(one.is_new for one in self.heads)
        if row["recorded"] < len(self.events) or row["begun"] < begun:
            raise RacedError


async def write_batch(conn: Connection, writes: BatchWrites, give_up_s: float) -> None:
    """Write a batch without changes in one statement. Raises RacedError: the transaction has to begin again."""
    (row,) = await conn.fetch(_RECORD, *writes.columns(give_up_s))
    writes.check(row)


def readable_time(stored: datetime) -> datetime:
    """Return the time of an event from its column, with its zone where the driver has none: at an infinity.

    asyncpg writes the first and the last microsecond that Python knows as PostgreSQL's infinities, and reads these
    without a zone. Events are no longer recorded with such a time; rows that have one stay to be read and ordered.
    """
    if stored.tzinfo is not None:
        return stored
    return min(stored.replace(tzinfo=UTC), _LAST)


def result_of(stored: str | None) -> EffectResult:
    """Return the result of an event's effects from its column."""
    if stored is None:
        return NO_RESULT
    heads, trigger_notification_id, notification_id = orjson.loads(stored)
    return EffectResult(tuple(Cursor(*head) for head in heads), trigger_notification_id, notification_id)


def result_json(result: EffectResult) -> str | None:
    """Return the column of a result; None where there is nothing to tell."""
    if result == NO_RESULT:
        return None
    heads = [tuple(head) for head in result.heads]  # orjson takes no named tuples
    return orjson.dumps((heads, result.trigger_notification_id, result.notification_id)).decode()


def _event_columns(events: Sequence[NewEvent]) -> list[list[Any]]:
    return _columns(
        [
            (
                *(one.event.app_id, one.event.source, one.event.event_id, one.event.content_hash, one.event.caller),
                *(one.event.type, one.event.subject, one.event.ordering_key, one.occurred_at, one.event.payload_json),
                *(one.state, int(one.state is not EventState.STALE), one.duplicates, result_json(one.result)),
            )
            for one in events
        ],
        len(_EVENT_TYPES),
    )


def _columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    return [[row[column] for row in rows] for column in range(width)]
