"""SQL that removes old tombstones from the feeds."""

from __future__ import annotations

from syncbeat_server.storage.postgres import Connection

# The scopes' rows are locked, so that `pruned` and the tombstones move together for every reader, and nobody publishes
# in between. A key that was published since the look is another version of its row, which the last conditions spare.
# All of a day go together, so that a list under way is made to begin anew once a day at most. An array, so that the
# rows are found by their places, however many others there are. What is noted for the streams of whole apps are the
# transactions of this cluster: a restored dump may hold others.
REMOVE_OLD = """
    WITH day AS (SELECT date_trunc('day', syncbeat_now() - make_interval(secs => $1 * 86400), 'UTC') AS begins),
    old AS MATERIALIZED (
        SELECT c.ctid AS place, c.app_id, c.scope, c.sequence, c.xid FROM changes c
        WHERE c.deleted AND c.changed_at < (SELECT begins FROM day)
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
        ON CONFLICT (app_id) DO UPDATE SET xid = greatest(p.xid, excluded.xid))
    DELETE FROM changes c
    WHERE c.ctid = ANY (ARRAY(SELECT o.place FROM old o JOIN locked USING (app_id, scope)))
      AND c.deleted AND c.changed_at < (SELECT begins FROM day)
    RETURNING 1 AS gone"""


async def remove_old(conn: Connection, keep_days: float, limit: int) -> int:
    """Remove up to `limit` tombstones of days that ended more than `keep_days` ago; how many.

    Those of scopes that somebody has locked are left for another time.
    """
    return len(await conn.fetch(REMOVE_OLD, keep_days, limit))
