"""Locks and concludes single events, claims those that are due for another attempt, and reads them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from syncbeat_server.events.effect_codec import effects_json, effects_of
from syncbeat_server.events.model import (
    NO_RESULT,
    EffectResult,
    Effects,
    EventFilter,
    EventKey,
    EventState,
    ListPlace,
    OrderKey,
    StoredEvent,
)
from syncbeat_server.events.store.event_batches import KnownEvent, readable_time, result_json, result_of
from syncbeat_server.storage.postgres.database import Connection, Row

MAX_PAGE_OCTETS = 1 << 20
"""The payloads of one page, of which there is one at least."""

_SHOWN = """source, event_id, type, subject, ordering_key, occurred_at, payload, state, first_seen_at, updated_at,
    attempts, duplicate_count, failure, deadline_at, next_attempt_at"""
_AT_KEY = "WHERE (app_id, source, event_id) = ($1, $2, $3)"


@dataclass(frozen=True, slots=True)
class LockedEvent:
    """Holds the row of an event that this transaction has locked.

    `left_s`: the seconds from the transaction's beginning to its deadline; `is_waiting`: it is to be retried, even if
    that has passed. `effects` are those of a FAILED event.
    """

    known: KnownEvent
    caller: str
    order: OrderKey | None
    occurred_at: datetime
    attempts: int
    left_s: float
    is_waiting: bool
    effects: Effects | None

    @property
    def is_over(self) -> bool:
        """Tell if its deadline had passed when the transaction began."""
        return self.left_s <= 0


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Holds what an attempt to carry out effects has come to. A FAILED one keeps its effects for `retry_in_s`."""

    state: EventState
    attempts: int
    failure: str = ""
    effects: Effects | None = None
    retry_in_s: float = 0.0
    result: EffectResult = NO_RESULT
    repetitions: int = 0


async def find_order(conn: Connection, key: EventKey) -> OrderKey | None:
    """Return what a recorded event is ordered by; None: by nothing, or there is no such event."""
    name = await conn.fetchval(f"SELECT ordering_key FROM events {_AT_KEY}", *key)  # noqa: S608  # constants
    return OrderKey(key.app_id, key.source, name) if name else None


async def lock_event(conn: Connection, key: EventKey) -> LockedEvent | None:
    """Lock an event's row, after the head of its order; None if there is no such event."""
    row = await conn.fetchrow(
        f"""SELECT content_hash, state, first_seen_at, failure, result, caller, ordering_key, occurred_at, attempts,
                   extract(epoch FROM deadline_at - syncbeat_now())::float8 AS left_s,
                   next_attempt_at IS NOT NULL AS is_waiting, effects
            FROM events {_AT_KEY} FOR NO KEY UPDATE""",  # noqa: S608  # constants
        *key,
    )
    if row is None:
        return None
    known = KnownEvent(
        row["content_hash"],
        EventState(row["state"]),
        row["first_seen_at"],
        row["failure"],
        result_of(row["result"]),
    )
    order = OrderKey(key.app_id, key.source, row["ordering_key"]) if row["ordering_key"] else None
    effects = None if row["effects"] is None else effects_of(row["effects"])
    return LockedEvent(
        known=known,
        caller=row["caller"],
        order=order,
        occurred_at=readable_time(row["occurred_at"]),
        attempts=row["attempts"],
        left_s=row["left_s"],
        is_waiting=row["is_waiting"],
        effects=effects,
    )


async def conclude(conn: Connection, key: EventKey, end: Conclusion) -> datetime | None:
    """Write what became of a locked event, and return when it is tried again; None: not any more."""
    due_at: datetime | None = await conn.fetchval(
        f"""UPDATE events SET state = $4, attempts = $5, failure = $6, effects = $7::text::jsonb,
                result = $9::text::jsonb, duplicate_count = duplicate_count + $10,
                updated_at = CASE WHEN state = $4 THEN updated_at ELSE syncbeat_now() END,
                next_attempt_at = CASE
                    WHEN $4 = 'FAILED' AND syncbeat_now() + make_interval(secs => $8::float8) < deadline_at
                    THEN syncbeat_now() + make_interval(secs => $8::float8) END
            {_AT_KEY} RETURNING next_attempt_at""",  # noqa: S608  # constants
        *key,
        end.state,
        end.attempts,
        end.failure,
        None if end.effects is None else effects_json(end.effects),
        end.retry_in_s,
        result_json(end.result),
        end.repetitions,
    )
    return due_at


async def count_repetition(conn: Connection, key: EventKey) -> None:
    """Count that an event came again."""
    await conn.execute(f"UPDATE events SET duplicate_count = duplicate_count + 1 {_AT_KEY}", *key)  # noqa: S608  # constants


async def claim_due(conn: Connection, limit: int, lease_s: float) -> list[EventKey]:
    """Claim FAILED events that are due, oldest first: nobody else claims them for `lease_s` seconds."""
    rows = await conn.fetch(
        """WITH due AS MATERIALIZED (
               SELECT app_id, source, event_id FROM events
               WHERE next_attempt_at <= syncbeat_now() ORDER BY next_attempt_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED)
           UPDATE events e SET next_attempt_at = syncbeat_now() + make_interval(secs => $2::float8) FROM due
           WHERE (e.app_id, e.source, e.event_id) = (due.app_id, due.source, due.event_id)
           RETURNING e.app_id, e.source, e.event_id""",
        limit,
        lease_s,
    )
    return [EventKey(*row.values()) for row in rows]


async def oldest_waiting_s(conn: Connection) -> float:
    """Return for how many seconds the oldest FAILED event that is still retried has been known; 0 without any."""
    return float(
        await conn.fetchval(
            """SELECT coalesce(extract(epoch FROM syncbeat_now() - min(first_seen_at)), 0)::float8 FROM events
               WHERE next_attempt_at IS NOT NULL"""
        )
    )


async def find_event(conn: Connection, key: EventKey) -> StoredEvent | None:
    """Return an event; None if there is no such event."""
    row = await conn.fetchrow(f"SELECT {_SHOWN} FROM events {_AT_KEY}", *key)  # noqa: S608  # constants
    return None if row is None else _stored(row)


_OF_APP = "(e.first_seen_at, e.source, e.event_id) < ($4, $3, $5)"
_OF_SOURCE = "e.source = $3 AND (e.first_seen_at, e.event_id) < ($4, $5)"


def _list_sql(place: str, order: str) -> str:
    # State by state, each from its index; then as many as there is room for, and one that shows that more follow.
    return f"""SELECT {_SHOWN}, fits FROM (
            SELECT e.*, octets <= {MAX_PAGE_OCTETS} OR place = 1 AS fits,
                   place <= 2 OR lag(octets, 1, 0::bigint) OVER (ORDER BY place) <= {MAX_PAGE_OCTETS} AS follows
            FROM (
            SELECT e.*, sum(octet_length(e.payload)) OVER (ORDER BY {order}) AS octets,
                   row_number() OVER (ORDER BY {order}) AS place
            FROM unnest($2::text[]) AS s (state)
            CROSS JOIN LATERAL (
                SELECT * FROM events e WHERE e.app_id = $1 AND e.state = s.state AND {place}
                ORDER BY {order} LIMIT $6) e
            ORDER BY {order} LIMIT $6) e) e
        WHERE follows ORDER BY place"""  # noqa: S608  # constants


_LIST_OF_APP = _list_sql(_OF_APP, "e.first_seen_at DESC, e.source DESC, e.event_id DESC")
_LIST_OF_SOURCE = _list_sql(_OF_SOURCE, "e.first_seen_at DESC, e.event_id DESC")


async def list_events(
    conn: Connection, app_id: str, wanted: EventFilter, after: ListPlace, limit: int
) -> tuple[list[StoredEvent], bool]:
    """Return up to `limit` events after a place, newest first, and True if there are more.

    A page has fewer where the payloads would be larger than `MAX_PAGE_OCTETS` together.
    """
    states = [EventState.ACCEPTED, EventState.STALE, EventState.FAILED] if wanted.state is None else [wanted.state]
    rows = await conn.fetch(
        _LIST_OF_SOURCE if wanted.source else _LIST_OF_APP,
        app_id,
        states,
        wanted.source or after.source,
        after.first_seen_at,
        after.event_id,
        limit + 1,
    )
    page = [row for row in rows[:limit] if row["fits"]]
    return [_stored(row) for row in page], len(page) < len(rows)


def _stored(row: Row) -> StoredEvent:
    return StoredEvent(
        source=row["source"],
        event_id=row["event_id"],
        type=row["type"],
        subject=row["subject"],
        ordering_key=row["ordering_key"],
        occurred_at=readable_time(row["occurred_at"]),
        payload_json=row["payload"],
        state=EventState(row["state"]),
        first_seen_at=row["first_seen_at"],
        updated_at=row["updated_at"],
        attempts=row["attempts"],
        duplicate_count=row["duplicate_count"],
        failure=row["failure"],
        deadline_at=row["deadline_at"],
        next_attempt_at=row["next_attempt_at"],
    )
