"""Locks devices in one common order, and deletes them with the rows that depend on them."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.storage.postgres.database import Connection

# The primary key of a device: app, user, device.
DeviceRow = tuple[str, str, str]

# The tables whose rows depend on a device, with the rest of their primary keys.
_DEPENDENT_TABLES = {
    "dedupe_windows": "device_id, dedupe_key, scope",
    "device_cursors": "device_id, scope",
    "wake_budgets": "device_id",
}
# Each try waits for all rows that stopped the one before.
_TRIES = 20


async def lock_in_order(
    conn: Connection, app_ids: Sequence[str], user_ids: Sequence[str], device_ids: Sequence[str]
) -> set[DeviceRow]:
    """Lock devices that are to be changed, by a statement of its own, and return those that exist.

    A statement that locked and changed them at once would, after waiting for another transaction, see the row as it was
    before. Only the returned devices may be changed: one that was registered since is not locked in order.
    """
    rows = await conn.fetch(
        """SELECT app_id, user_id, device_id FROM devices
           WHERE (app_id, user_id, device_id) IN (SELECT * FROM unnest($1::text[], $2::text[], $3::text[]))
           ORDER BY app_id, user_id, device_id FOR NO KEY UPDATE""",
        app_ids,
        user_ids,
        device_ids,
    )
    return {(row["app_id"], row["user_id"], row["device_id"]) for row in rows}


async def lock_devices(conn: Connection, app_id: str, user_id: str, device_id: str | None) -> int:
    """Lock a device of a user, or for None all of them, before the rows that wait for them; return their number.

    Transactions that accept notifications do not wait for this lock.
    """
    return len(await conn.fetch(_rows("devices", "device_id", "FOR NO KEY UPDATE"), app_id, user_id, device_id))


async def lock_keys(conn: Connection, app_id: str, user_id: str, device_id: str | None) -> None:
    """Lock the keys of devices that are to be deleted, and the rows that depend on them.

    Writers of dependent rows lock the existing ones, and then, for a new one, the key of its device. So the holder of
    keys must not wait for rows: if a new row is locked by another transaction, all locks are released and taken again
    in order.
    """
    of = (app_id, user_id, device_id)
    for _ in range(_TRIES):
        await conn.execute("SAVEPOINT none_locked")
        for table, key in _DEPENDENT_TABLES.items():
            await conn.execute(_rows(table, key, "FOR UPDATE"), *of)
        await conn.execute(_rows("devices", "device_id", "FOR UPDATE"), *of)
        if all([await conn.fetchval(_all_free(table, key), *of) for table, key in _DEPENDENT_TABLES.items()]):
            return
        await conn.execute("ROLLBACK TO SAVEPOINT none_locked; RELEASE SAVEPOINT none_locked")


def _rows(table: str, key: str, lock: str) -> str:
    return f"""SELECT {key} FROM {table} WHERE app_id = $1 AND user_id = $2 AND ($3::text IS NULL OR device_id = $3)
               ORDER BY {key} {lock}"""  # noqa: S608  # constants


def _all_free(table: str, key: str) -> str:
    # In one statement, so as of one moment: devices whose keys are locked get no more rows.
    return f"""WITH there AS ({_rows(table, key, "")}),
                    free AS MATERIALIZED ({_rows(table, key, "FOR UPDATE SKIP LOCKED")})
               SELECT (SELECT count(*) FROM there) = (SELECT count(*) FROM free)"""  # noqa: S608  # constants


async def delete_devices(conn: Connection, app_id: str, user_id: str, device_id: str | None) -> int:
    """Delete a device, or for None all of the user, with its cursors, windows and budget; return their number."""
    rows = await conn.fetch(
        """DELETE FROM devices WHERE app_id = $1 AND user_id = $2 AND ($3::text IS NULL OR device_id = $3)
           RETURNING 1 AS gone""",
        app_id,
        user_id,
        device_id,
    )
    return len(rows)
