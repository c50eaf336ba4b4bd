"""SQL that finds what changed and was perhaps not told: heads that moved, users and scopes that were touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from syncbeat_server.storage.postgres import Connection

ScopeKey = tuple[str, str]
UserKey = tuple[str, str]


class Touched(NamedTuple):
    """Users and scopes, by app, that were touched, and where to look from the next time."""

    users: list[UserKey]
    scopes: list[ScopeKey]
    next_floor: str


async def touched(conn: Connection, floor: str | None, limit: int) -> Touched:
    """What was touched by transactions that were not over at the `floor`, at most `limit`; None: from now on.

    The floor is the oldest transaction under way when was looked last. Some are found twice, none is missed.
    """
    rows = await conn.fetch(
        """SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS next_floor, t.app_id, t.user_id, t.scope
           FROM (SELECT) always LEFT JOIN touches t ON t.xid >= $1::text::xid8 LIMIT $2""",
        floor,
        limit,
    )
    users = [(row["app_id"], row["user_id"]) for row in rows if row["user_id"]]
    scopes = [(row["app_id"], row["scope"]) for row in rows if row["scope"]]
    return Touched(users, scopes, rows[0]["next_floor"])


async def recent_heads(
    conn: Connection, app_ids: Sequence[str], within_s: float, limit: int
) -> dict[ScopeKey, tuple[str, int]]:
    """(epoch, head) of the scopes that changed in the last seconds."""
    rows = await conn.fetch(
        """SELECT app_id, scope, epoch, head FROM scopes
           WHERE app_id = ANY($1::text[]) AND changed_at > syncbeat_now() - make_interval(secs => $2) LIMIT $3""",
        list(app_ids),
        within_s,
        limit,
    )
    return {(row["app_id"], row["scope"]): (row["epoch"], row["head"]) for row in rows}


async def heads_of(conn: Connection, keys: Sequence[ScopeKey]) -> dict[ScopeKey, tuple[str, int]]:
    """(epoch, head) of these scopes."""
    rows = await conn.fetch(
        """SELECT app_id, scope, epoch, head FROM scopes
           JOIN unnest($1::text[], $2::text[]) AS k (app_id, scope) USING (app_id, scope)""",
        [app_id for app_id, _ in keys],
        [scope for _, scope in keys],
    )
    return {(row["app_id"], row["scope"]): (row["epoch"], row["head"]) for row in rows}


async def forget_touches(conn: Connection, older_s: float, limit: int) -> int:
    """Delete up to `limit` touches that every process has seen by now; how many."""
    rows = await conn.fetch(
        """WITH old AS (
               SELECT ctid FROM touches WHERE touched_at < syncbeat_now() - make_interval(secs => $1)
               LIMIT $2 FOR UPDATE SKIP LOCKED)
           DELETE FROM touches t USING old WHERE t.ctid = old.ctid RETURNING 1 AS gone""",
        older_s,
        limit,
    )
    return len(rows)
