"""Begins new epochs of scopes, so that devices discard what they know of those feeds and list them anew."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.sync.model import Extent, ScopeKey


async def extent(conn: Connection, app_id: str | None) -> Extent:
    """Count the scopes, of an app or of all (None)."""
    row = await conn.fetchrow(
        """SELECT current_database()::text AS name, count(DISTINCT app_id) AS apps, count(*) AS scopes
           FROM scopes WHERE $1::text IS NULL OR app_id = $1""",
        app_id,
    )
    return Extent("", 0, 0) if row is None else Extent(row["name"], row["apps"], row["scopes"])


async def lock_page(
    conn: Connection, app_id: str | None, after: ScopeKey, limit: int, patience_ms: int
) -> list[ScopeKey]:
    """Lock the next scopes after one, in the order in which publishing locks them.

    Raises:
        LockTimeout: another session held one of them for longer than `patience_ms`.
    """
    await conn.execute(f"SET LOCAL lock_timeout = {patience_ms}")
    rows = await conn.fetch(
        """SELECT app_id, scope FROM scopes
           WHERE (app_id, scope) > ($2::text COLLATE "C", $3::text COLLATE "C") AND ($1::text IS NULL OR app_id = $1)
           ORDER BY app_id, scope LIMIT $4 FOR UPDATE""",
        app_id,
        *after,
        limit,
    )
    return [(row["app_id"], row["scope"]) for row in rows]


async def renew(conn: Connection, keys: Sequence[ScopeKey]) -> int:
    """Give locked scopes new epochs; return their number. Their changes, heads and members stay."""
    return int(
        await conn.fetchval(
            """WITH renewed AS (
                   UPDATE scopes s SET epoch = DEFAULT FROM unnest($1::text[], $2::text[]) AS k (app_id, scope)
                   WHERE (s.app_id, s.scope) = (k.app_id, k.scope) RETURNING 1)
               SELECT count(*) FROM renewed""",
            [app_id for app_id, _ in keys],
            [scope for _, scope in keys],
        )
    )


# A row with a transaction number that this cluster had not reached when the run began, and that was not written since:
# rows written meanwhile have such numbers rightly. Their writer is in `xmin`, whose age is told by `age`.
_FOREIGN = "c.xid >= $1::text::xid8 AND age(c.xmin) > age($1::text::xid8::xid)"


async def next_transaction(conn: Connection) -> str:
    """Return the next transaction number of this deployment's cluster."""
    return str(await conn.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text FROM deployment"))


async def foreign_apps(conn: Connection, begun: str, app_id: str | None) -> list[str]:
    """Return the apps, of all or of one, with changes numbered above the transactions that this cluster had at `begun`.

    A dump brings the numbers of the cluster it was made in: streams of the whole app would take such a change for news
    when this cluster reaches its number.
    """
    rows = await conn.fetch(
        f"""SELECT a.app_id FROM (SELECT DISTINCT app_id FROM scopes WHERE $2::text IS NULL OR app_id = $2) a
            WHERE EXISTS (SELECT FROM changes c WHERE c.app_id = a.app_id AND c.xid > '0' AND {_FOREIGN})
            ORDER BY a.app_id""",
        begun,
        app_id,
    )
    return [row["app_id"] for row in rows]


async def forget_foreign_transactions(
    conn: Connection, begun: str, app_id: str, after: ScopeKey, limit: int
) -> tuple[int, ScopeKey | None]:
    """Mark the foreign ones among the next `limit` changes of an app, in order of (scope, key), as old.

    Returns the number of changes marked, and the last key looked at (None: there are no more). It waits for nobody: a
    row that is being written is skipped, since the write gives it a number of this cluster, or it is found by the next
    look.
    """
    row = await conn.fetchrow(
        f"""WITH page AS MATERIALIZED (
                SELECT scope, key FROM changes WHERE app_id = $2 AND (scope, key) > ($3, $4)
                ORDER BY scope, key LIMIT $5),
            locked AS MATERIALIZED (
                SELECT c.scope, c.key FROM changes c JOIN page USING (scope, key)
                WHERE c.app_id = $2 AND {_FOREIGN} FOR NO KEY UPDATE OF c SKIP LOCKED),
            forgotten AS (
                UPDATE changes c SET xid = '0' FROM locked l
                WHERE (c.app_id, c.scope, c.key) = ($2, l.scope, l.key) AND {_FOREIGN} RETURNING 1)
            SELECT (SELECT count(*) FROM forgotten) AS forgotten, count(*) OVER () AS looked_at, scope, key
            FROM page ORDER BY scope DESC, key DESC LIMIT 1""",
        begun,
        app_id,
        *after,
        limit,
    )
    if row is None:
        return 0, None
    return row["forgotten"], (row["scope"], row["key"]) if row["looked_at"] == limit else None


async def forget_pruned_tombstones(conn: Connection) -> None:
    """Delete the marks of removed tombstones, which tokens of the next generation do not need."""
    await conn.execute("DELETE FROM pruned_feeds")
