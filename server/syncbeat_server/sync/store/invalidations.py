"""Finds changes whose notifications may be lost: heads that moved, and users and scopes that were touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.sync.model import ScopeKey, UserKey


class Invalidations(NamedTuple):
    """Holds users and scopes, by app, that were touched, and the floor of the next look."""

    users: list[UserKey]
    scopes: list[ScopeKey]
    next_floor: str


async def invalidations_since(conn: Connection, floor: str | None, limit: int) -> Invalidations:
    """Return at most `limit` users and scopes touched by transactions that were open at the `floor`; None: from now on.

    The floor is the oldest open transaction at the last look. Some rows are found twice, none is missed.
    """
    rows = await conn.fetch(
        """SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS next_floor, t.app_id, t.user_id, t.scope
           FROM (SELECT) always LEFT JOIN touches t ON t.xid >= $1::text::xid8 LIMIT $2""",
        floor,
        limit,
    )
    users = [(row["app_id"], row["user_id"]) for row in rows if row["user_id"]]
    scopes = [(row["app_id"], row["scope"]) for row in rows if row["scope"]]
    return Invalidations(users, scopes, rows[0]["next_floor"])


async def recent_heads(
    conn: Connection, app_ids: Sequence[str], within_s: float, limit: int
) -> dict[ScopeKey, tuple[str, int]]:
    """Return the (epoch, head) of the scopes that changed in the last `within_s` seconds."""
    rows = await conn.fetch(
        """SELECT app_id, scope, epoch, head FROM scopes
           WHERE app_id = ANY($1::text[]) AND changed_at > syncbeat_now() - make_interval(secs => $2) LIMIT $3""",
        list(app_ids),
        within_s,
        limit,
    )
    return {(row["app_id"], row["scope"]): (row["epoch"], row["head"]) for row in rows}


async def current_heads(conn: Connection, keys: Sequence[ScopeKey]) -> dict[ScopeKey, tuple[str, int]]:
    """Return the (epoch, head) of these scopes."""
    rows = await conn.fetch(
        """SELECT app_id, scope, epoch, head FROM scopes
           JOIN unnest($1::text[], $2::text[]) AS k (app_id, scope) USING (app_id, scope)""",
        [app_id for app_id, _ in keys],
        [scope for _, scope in keys],
    )
    return {(row["app_id"], row["scope"]): (row["epoch"], row["head"]) for row in rows}


DELETE_TOUCHES = """
    WITH oldest AS MATERIALIZED (
        SELECT app_id, user_id, scope, xid, touched_at FROM touches WHERE xid >= $3::text::xid8 ORDER BY xid LIMIT $2),
    gone AS (
        DELETE FROM touches t USING oldest o
        WHERE (t.app_id, t.user_id, t.scope, t.xid) = (o.app_id, o.user_id, o.scope, o.xid)
          AND t.touched_at < syncbeat_now() - make_interval(secs => $1)
        RETURNING t.xid)
    SELECT count(*) AS gone, (SELECT xid::text FROM gone ORDER BY xid DESC LIMIT 1) AS last FROM gone"""


async def delete_touches(conn: Connection, older_s: float, limit: int, since: str = "0") -> tuple[int, str]:
    """Delete up to `limit` touches older than `older_s`, which every process has seen, from transaction `since` on.

    Returns their number, and the transaction from which the next call continues.
    """
    (row,) = await conn.fetch(DELETE_TOUCHES, older_s, limit, since)
    return row["gone"], row["last"] or since
