"""SQL that begins new epochs: what devices know of a scope's feed is not believed any more, and they list it anew."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.storage.postgres import Connection
from syncbeat_server.sync.model import Extent

ScopeKey = tuple[str, str]


async def extent(conn: Connection, app_id: str | None) -> Extent:
    """How many scopes there are, of an app or of all (None)."""
    row = await conn.fetchrow(
        """SELECT current_database()::text AS name, count(DISTINCT app_id) AS apps, count(*) AS scopes
           FROM scopes WHERE $1::text IS NULL OR app_id = $1""",
        app_id,
    )
    return Extent("", 0, 0) if row is None else Extent(row["name"], row["apps"], row["scopes"])


async def lock_page(
    conn: Connection, app_id: str | None, after: ScopeKey, limit: int, patience_ms: int
) -> list[ScopeKey]:
    """Lock the next scopes behind one, in the order in which publishing locks them.

    Raises:
        LockTimeout: somebody else had one of them for longer than `patience_ms`.
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
    """Give locked scopes new epochs; how many. Their changes, heads and members stay."""
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


async def forget_foreign_transactions(conn: Connection, keys: Sequence[ScopeKey]) -> None:
    """Take changes of locked scopes whose transactions this cluster has not come to yet for changes of old.

    A dump brings the transactions' numbers of the cluster it was made in: streams of the whole app would take such a
    change for news when this one comes to its number.
    """
    await conn.execute(
        """UPDATE changes c SET xid = '0' FROM unnest($1::text[], $2::text[]) AS k (app_id, scope)
           WHERE (c.app_id, c.scope) = (k.app_id, k.scope) AND c.xid >= pg_snapshot_xmax(pg_current_snapshot())""",
        [app_id for app_id, _ in keys],
        [scope for _, scope in keys],
    )
