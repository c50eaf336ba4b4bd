"""Reads and writes the rows of scopes: heads, what is known of their changes, locks, boosts, presence of writers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.sync.model import Belief, Priority, ScopeKey, ScopeState, Signal, Windows

_NOW = "extract(epoch FROM syncbeat_now())::float8 AS now"
_TRIGGER_WEIGHT = 0.1  # of each commit in the share of those that wake devices: the latest ten or twenty count
_SIGNAL = """s.p_hot, s.hot_count, s.hot_s, s.cold_count, s.cold_s, s.recent_count, s.long_count,
    extract(epoch FROM s.changed_at)::float8 AS changed, extract(epoch FROM s.created_at)::float8 AS born,
    s.present, extract(epoch FROM s.presence_at)::float8 AS presence, s.triggered_share"""
STATE = f"""s.scope, s.epoch, s.head, s.pruned, s.boosted, extract(epoch FROM s.boosted_until)::float8 AS boost_end,
    {_SIGNAL}"""
"""The columns of a scope `s`, in the order of `scope_state`."""


class LockedScope(NamedTuple):
    """Holds the row of a scope that this transaction has locked, at `now` (unix seconds); `created`: it made it."""

    epoch: str
    head: int
    created: bool
    signal: Signal
    now: float


class Commits(NamedTuple):
    """Counts the commits of one scope, and those that came with a trigger."""

    made: int
    triggered: int


class MovedScope(NamedTuple):
    """Holds the new head and signal of a locked scope after this transaction's commits."""

    app_id: str
    scope: str
    head: int
    signal: Signal
    commits: Commits


def scope_state(columns: Sequence[Any]) -> ScopeState:
    """Return a scope's state from the columns of `STATE`."""
    scope, epoch, head, pruned, boosted, boosted_until, *signal = columns
    tier = None if boosted is None else Priority(boosted)
    return ScopeState(scope, epoch, head, _signal(signal), tier, boosted_until or 0.0, pruned)


def _signal(columns: Sequence[Any]) -> Signal:
    p_hot, hot_count, hot_s, cold_count, cold_s, recent, long, changed, born, present, presence, triggered = columns
    belief = None if p_hot is None else Belief(p_hot, hot_count, hot_s, cold_count, cold_s, changed)
    return Signal(belief, Windows(recent, long, changed or born, born), present, presence or 0.0, triggered or 0.0)


async def lock_scopes(
    conn: Connection, keys: Sequence[tuple[str, str]], *, create: bool
) -> dict[tuple[str, str], LockedScope]:
    """Lock the scopes' rows in sorted order, by (app, scope). `create` inserts those that are missing.

    In a USER's transaction only those that it may write are found.
    """
    ordered = sorted(set(keys))
    columns = lock_columns(ordered)
    if create:
        rows = await conn.fetch(create_sql(1), *columns)
    else:
        rows = await conn.fetch(lock_sql(1, "FOR UPDATE"), *columns)
    return locked_scopes(row.values() for row in rows)


def create_sql(first: int, condition: str = "") -> str:
    """Return the statement that creates missing scopes and locks all; its parameters from `$first` on are the keys."""
    return f"""INSERT INTO scopes AS s (app_id, scope, created_at)
        SELECT app_id, scope, syncbeat_now() FROM unnest(${first}::text[], ${first + 1}::text[]) AS k (app_id, scope)
        {condition} ORDER BY app_id COLLATE "C", scope COLLATE "C"
        ON CONFLICT (app_id, scope) DO UPDATE SET app_id = s.app_id
        RETURNING app_id, scope, epoch, head, s.xmax = 0 AS created, {_NOW}, {_SIGNAL}"""


def lock_sql(first: int, strength: str, condition: str = "") -> str:
    """Return the statement that locks the scopes that exist; its parameters from `$first` on are the keys."""
    return f"""SELECT s.app_id, s.scope, s.epoch, s.head, false AS created, {_NOW}, {_SIGNAL} FROM scopes s
        JOIN unnest(${first}::text[], ${first + 1}::text[]) AS k (app_id, scope) USING (app_id, scope)
        {condition} ORDER BY s.app_id, s.scope {strength} OF s"""


def lock_columns(keys: Sequence[ScopeKey]) -> tuple[list[str], list[str]]:
    """Return the columns of `create_sql` and `lock_sql`."""
    return [app_id for app_id, _ in keys], [scope for _, scope in keys]


def locked_scopes(rows: Iterable[Iterable[Any]]) -> dict[ScopeKey, LockedScope]:
    """Return the scopes by their keys from the columns of `create_sql` and `lock_sql`."""
    return dict(map(_locked, rows))


def _locked(columns: Iterable[Any]) -> tuple[ScopeKey, LockedScope]:
    app_id, scope, epoch, head, created, now, *signal = columns
    return (app_id, scope), LockedScope(epoch, head, created, _signal(signal), now)


async def drop_scopes(conn: Connection, keys: Sequence[tuple[str, str]]) -> None:
    """Delete scopes that `lock_scopes` created in this transaction."""
    await conn.execute(
        """DELETE FROM scopes s USING unnest($1::text[], $2::text[]) AS k (app_id, scope)
           WHERE (s.app_id, s.scope) = (k.app_id, k.scope)""",
        [app_id for app_id, _ in keys],
        [scope for _, scope in keys],
    )


def advance_sql(first: int) -> str:
    """Return the statement that sets the heads and signals of locked scopes; its parameters begin with `$first`.

    The signal has the change rates, and the share of commits that wake devices: where none does, no push can be relied
    on, however well it arrives.
    """
    types = ("text", "text", "bigint", *("float8",) * 9)
    columns = ", ".join(f"${number}::{name}[]" for number, name in enumerate(types, first))
    return f"""UPDATE scopes s SET head = k.head, changed_at = greatest(s.changed_at, syncbeat_now()),
            p_hot = k.p_hot, hot_count = k.hot_count, hot_s = k.hot_s, cold_count = k.cold_count, cold_s = k.cold_s,
            recent_count = k.recent_count, long_count = k.long_count,
            triggered_share = coalesce(s.triggered_share + (k.triggered - s.triggered_share) * k.weight, k.triggered)
        FROM unnest({columns})
             AS k (app_id, scope, head, p_hot, hot_count, hot_s, cold_count, cold_s, recent_count, long_count,
                   triggered, weight)
        WHERE (s.app_id, s.scope) = (k.app_id, k.scope)"""


_ADVANCE = advance_sql(1)


async def advance_heads(conn: Connection, moved: Sequence[MovedScope]) -> int:
    """Set the heads and signals of locked scopes; return the number of scopes that this transaction may write."""
    return updated_rows(await conn.execute(_ADVANCE, *advance_columns(moved)))


def updated_rows(done: str) -> int:
    """Return the number of rows that an UPDATE changed, as its completion tells it."""
    return int(done.rsplit(" ", 1)[-1])


def advance_columns(moved: Sequence[MovedScope]) -> list[list[Any]]:
    """Return the columns of `advance_sql`."""
    signals = [(one.signal.belief, one.signal.windows) for one in moved]
    beliefs = [belief for belief, _ in signals if belief is not None]
    return [
        [one.app_id for one in moved],
        [one.scope for one in moved],
        [one.head for one in moved],
        *([belief[column] for belief in beliefs] for column in range(5)),
        [windows.recent for _, windows in signals],
        [windows.long for _, windows in signals],
        [one.commits.triggered / one.commits.made for one in moved],
        [1.0 - (1.0 - _TRIGGER_WEIGHT) ** one.commits.made for one in moved],
    ]


async def boost(conn: Connection, app_id: str, scope: str, priority: Priority, seconds: float) -> datetime | None:
    """Keep a scope at a tier from now on; the newest boost counts. Returns its end; None if there is no such scope."""
    ends: datetime | None = await conn.fetchval(
        """UPDATE scopes SET boosted = $3, boosted_until = syncbeat_now() + make_interval(secs => $4)
           WHERE (app_id, scope) = ($1, $2) RETURNING boosted_until""",
        app_id,
        scope,
        priority,
        seconds,
    )
    return ends


async def record_writer_presence(
    conn: Connection, users: Iterable[tuple[str, str]], *, present: bool, limit: int
) -> list[tuple[str, str]]:
    """Store that writers arrived or left with the scopes they write, at most `limit` of each user, newest first.

    Returns the scopes of which that was not stored yet, or not for ten minutes.
    """
    writers = sorted(set(users))
    rows = await conn.fetch(
        """WITH written AS (
               SELECT m.app_id, m.scope FROM unnest($1::text[], $2::text[]) AS k (app_id, user_id)
               CROSS JOIN LATERAL (
                   SELECT m.app_id, m.scope FROM scope_members m JOIN scopes s USING (app_id, scope)
                   WHERE m.app_id = k.app_id AND m.user_id = k.user_id AND m.role = 'WRITER'
                   ORDER BY s.changed_at DESC NULLS LAST LIMIT $4) m),
           locked AS (
               SELECT s.app_id, s.scope FROM scopes s JOIN (SELECT DISTINCT * FROM written) t USING (app_id, scope)
               WHERE s.present <> $3 OR s.presence_at IS NULL AND $3
                   OR s.presence_at < syncbeat_now() - interval '10 minutes'
               ORDER BY s.app_id, s.scope FOR UPDATE OF s)
           UPDATE scopes s SET present = $3, presence_at = syncbeat_now() FROM locked l
           WHERE (s.app_id, s.scope) = (l.app_id, l.scope) RETURNING s.app_id, s.scope""",
        [app_id for app_id, _ in writers],
        [user_id for _, user_id in writers],
        present,
        limit,
    )
    return [(row["app_id"], row["scope"]) for row in rows]
