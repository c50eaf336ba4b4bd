"""SQL of what devices' calls were answered, beside what they have shown: was a wake-up answered?"""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.storage.postgres import Connection
from syncbeat_server.sync.model import Cursor, DeviceKey


async def record_fetched(conn: Connection, fetched: Sequence[tuple[DeviceKey, Cursor]]) -> None:
    """Remember up to which cursor each device's calls were answered for a scope; older ones change nothing."""
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
           -- What is kept and ahead of the head was lost with a restore.
           WHERE c.epoch <> excluded.epoch OR c.fetched IS NULL OR c.fetched < excluded.fetched
              OR c.fetched > (SELECT s.head FROM scopes s WHERE (s.app_id, s.scope) = (c.app_id, c.scope))""",
        [device.app_id for device, _ in newest],
        [device.user_id for device, _ in newest],
        [device.device_id for device, _ in newest],
        [cursor.scope for cursor in newest.values()],
        [cursor.epoch for cursor in newest.values()],
        [cursor.sequence for cursor in newest.values()],
    )
