"""Removes old tombstones from the feeds."""

from __future__ import annotations

from datetime import datetime

from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import BEGINNING, DeletedBatch

# The scopes' rows are locked, so that `pruned` and the tombstones change together for every reader, with no publish in
# between. A key that was published since the read has another sequence, which the last conditions spare. Those of a
# day are deleted together, so that a list under way has to begin anew once a day at most. For the streams of whole apps
# only transactions of this cluster are stored: a restored dump may hold others.
REMOVE_OLD = """
    WITH day AS (SELECT date_trunc('day', syncbeat_now() - make_interval(secs => $1 * 86400), 'UTC') AS begins),
    old AS MATERIALIZED (
        SELECT c.app_id, c.scope, c.key, c.sequence, c.changed_at, c.xid FROM changes c
        WHERE c.deleted AND c.changed_at >= $3 AND c.changed_at < (SELECT begins FROM day)
        ORDER BY c.changed_at LIMIT $2),
    locked AS MATERIALIZED (
        SELECT s.app_id, s.scope FROM scopes s
        WHERE (s.app_id, s.scope) IN (SELECT app_id, scope FROM old)
        FOR NO KEY UPDATE SKIP LOCKED),
    marked AS (
        UPDATE scopes s SET pruned = greatest(s.pruned, o.highest)
        FROM (SELECT app_id, scope, max(sequence) AS highest FROM old JOIN locked USING (app_id, scope)
              GROUP BY app_id, scope) o
        WHERE (s.app_id, s.scope) = (o.app_id, o.scope)),
    noted AS (
        INSERT INTO pruned_feeds AS p (app_id, xid)
        SELECT app_id, max(o.xid) FROM old o JOIN locked USING (app_id, scope)
        WHERE o.xid < pg_snapshot_xmax(pg_current_snapshot()) GROUP BY app_id ORDER BY app_id
        ON CONFLICT (app_id) DO UPDATE SET feed = excluded.feed,
            xid = CASE p.feed WHEN excluded.feed THEN greatest(p.xid, excluded.xid) ELSE excluded.xid END),
    gone AS (
        DELETE FROM changes c USING old JOIN locked USING (app_id, scope)
        WHERE (c.app_id, c.scope, c.key) = (old.app_id, old.scope, old.key) AND c.deleted AND c.sequence = old.sequence
        RETURNING 1)
    SELECT (SELECT count(*) FROM gone) AS gone, count(*) AS found, max(changed_at) AS last FROM old"""


async def remove_old(conn: Connection, keep_days: float, limit: int, since: datetime | None = None) -> DeletedBatch:
    """Delete up to `limit` tombstones of days that ended more than `keep_days` ago, from a time of deletion on.

    Those of scopes that another session has locked are left for the next time.
    """
    (row,) = await conn.fetch(REMOVE_OLD, keep_days, limit, since or BEGINNING)
    stuck = row["found"] == limit and not row["gone"] and row["last"] == since
    return DeletedBatch(row["gone"], row["found"] == limit and not stuck, row["last"])
