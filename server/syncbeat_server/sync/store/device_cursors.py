"""Records the cursors that devices have shown, and those that their calls were answered with."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import DeletedBatch
from syncbeat_server.sync.model import Cursor, DeviceKey


async def record_shown(conn: Connection, shown: Sequence[tuple[DeviceKey, Cursor]]) -> None:
    """Write the newest cursor that each device has shown for a scope; older ones change nothing."""
    newest = {(device, cursor.scope): cursor for device, cursor in shown}
    await conn.execute(
        """INSERT INTO device_cursors AS c (app_id, user_id, device_id, scope, epoch, sequence, seen_at)
           SELECT k.app_id, k.user_id, k.device_id, k.scope, k.epoch, k.sequence, syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[])
                AS k (app_id, user_id, device_id, scope, epoch, sequence)
           JOIN devices d ON (d.app_id, d.user_id, d.device_id) = (k.app_id, k.user_id, k.device_id)
           JOIN scopes s ON (s.app_id, s.scope, s.epoch) = (k.app_id, k.scope, k.epoch) AND k.sequence <= s.head
           ORDER BY k.app_id, k.user_id, k.device_id, k.scope
           ON CONFLICT (app_id, user_id, device_id, scope) DO UPDATE
           SET epoch = excluded.epoch, sequence = excluded.sequence, seen_at = excluded.seen_at,
               fetched = CASE WHEN c.epoch = excluded.epoch THEN c.fetched END
           -- A stored cursor ahead of the head is of changes that a restore undid.
           WHERE c.epoch <> excluded.epoch OR c.sequence < excluded.sequence
              OR c.sequence > (SELECT s.head FROM scopes s WHERE (s.app_id, s.scope) = (c.app_id, c.scope))""",
        *device_columns([device for device, _ in newest]),
        [scope for _, scope in newest],
        [cursor.epoch for cursor in newest.values()],
        [cursor.sequence for cursor in newest.values()],
    )


async def record_fetched(conn: Connection, fetched: Sequence[tuple[DeviceKey, Cursor]]) -> None:
    """Write the newest cursor that each device's calls were answered with for a scope; older ones change nothing."""
    newest = {(device, cursor.scope): cursor for device, cursor in fetched}
    await conn.execute(
        """INSERT INTO device_cursors AS c (app_id, user_id, device_id, scope, epoch, sequence, seen_at,
                                          fetched, fetched_at)
           SELECT k.app_id, k.user_id, k.device_id, k.scope, k.epoch, 0, syncbeat_now(), k.sequence, syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[])
                AS k (app_id, user_id, device_id, scope, epoch, sequence)
           JOIN devices d ON (d.app_id, d.user_id, d.device_id) = (k.app_id, k.user_id, k.device_id)
           JOIN scopes s ON (s.app_id, s.scope, s.epoch) = (k.app_id, k.scope, k.epoch) AND k.sequence <= s.head
           ORDER BY k.app_id, k.user_id, k.device_id, k.scope
           ON CONFLICT (app_id, user_id, device_id, scope) DO UPDATE
           SET sequence = CASE WHEN c.epoch = excluded.epoch THEN c.sequence ELSE 0 END,
               epoch = excluded.epoch, fetched = excluded.fetched, fetched_at = excluded.fetched_at
           -- A stored cursor ahead of the head is of changes that a restore undid.
           WHERE c.epoch <> excluded.epoch OR c.fetched IS NULL OR c.fetched < excluded.fetched
              OR c.fetched > (SELECT s.head FROM scopes s WHERE (s.app_id, s.scope) = (c.app_id, c.scope))""",
        *device_columns([device for device, _ in newest]),
        [scope for _, scope in newest],
        [cursor.epoch for cursor in newest.values()],
        [cursor.sequence for cursor in newest.values()],
    )


# Page by page through the primary key: an index by time would have to be updated with each poll.
FORGET_LEFT = """
    WITH page AS MATERIALIZED (
        SELECT app_id, user_id, device_id, scope FROM device_cursors
        WHERE (app_id, user_id, device_id, scope) > ($1, $2, $3, $4)
        ORDER BY app_id, user_id, device_id, scope LIMIT $5),
    gone AS (
        DELETE FROM device_cursors c USING page
        WHERE (c.app_id, c.user_id, c.device_id, c.scope) = (page.app_id, page.user_id, page.device_id, page.scope)
          AND greatest(c.seen_at, c.fetched_at) < syncbeat_now() - interval '30 days'
          AND NOT EXISTS (SELECT 1 FROM scope_members m
                          WHERE (m.app_id, m.user_id, m.scope) = (c.app_id, c.user_id, c.scope))
        RETURNING 1)
    SELECT app_id, user_id, device_id, scope, (SELECT count(*) FROM gone) AS gone, count(*) OVER () AS found
    FROM page ORDER BY app_id DESC, user_id DESC, device_id DESC, scope DESC LIMIT 1"""


async def forget_left(conn: Connection, limit: int, after: tuple[str, str, str, str] | None = None) -> DeletedBatch:
    """Look at `limit` cursors, and delete those not updated for a month of scopes that their users left."""
    row = await conn.fetchrow(FORGET_LEFT, *(after or ("", "", "", "")), limit)
    if row is None:
        return DeletedBatch(0, more=False, place=None)
    place = (row["app_id"], row["user_id"], row["device_id"], row["scope"])
    return DeletedBatch(row["gone"], more=row["found"] == limit, place=place)


def device_columns(devices: Sequence[DeviceKey]) -> tuple[list[str], list[str], list[str]]:
    """Return the three columns of device keys, as arguments of a statement."""
    return (
        [device.app_id for device in devices],
        [device.user_id for device in devices],
        [device.device_id for device in devices],
    )
