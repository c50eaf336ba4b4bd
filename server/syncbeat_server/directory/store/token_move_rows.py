"""Locks registration tokens, releases them from devices, and keeps the audit trail of their moves."""

from __future__ import annotations

from datetime import datetime

from syncbeat_server.directory.model import Holder, Registration, TokenMove
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import DeletedBatch, delete_oldest, delete_oldest_sql


async def lock_token(conn: Connection, app_id: str, digest: bytes) -> None:
    """Serialize the registrations of a token: the first is found by the next one, on whichever device."""
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"{app_id} {digest.hex()}")


async def lock_holders(conn: Connection, device: Registration, digest: bytes) -> Holder | None:
    """Lock the device that holds a token and the one that registers it, in the common order of devices.

    Returns the device that holds it; None if none does.
    """
    rows = await conn.fetch(
        """SELECT user_id, device_id, token_digest FROM devices
           WHERE app_id = $1 AND (token_digest = $2 OR (user_id, device_id) = ($3, $4))
           ORDER BY user_id, device_id FOR NO KEY UPDATE""",
        device.app_id,
        digest,
        device.user_id,
        device.device_id,
    )
    holders = [Holder(row["user_id"], row["device_id"]) for row in rows if row["token_digest"] == digest]
    return holders[0] if holders else None


async def release_token(conn: Connection, app_id: str, holder: Holder, digest: bytes) -> bool:
    """Take a token from the device that holds it; return False if it did not."""
    row = await conn.fetchrow(
        """UPDATE devices SET registration_token = NULL, token_digest = NULL, token_state = 'MOVED',
                              updated_at = syncbeat_now()
           WHERE app_id = $1 AND user_id = $2 AND device_id = $3 AND token_digest = $4
           RETURNING 1 AS released""",
        app_id,
        holder.user_id,
        holder.device_id,
        digest,
    )
    return row is not None


async def recent_moves(conn: Connection, app_id: str, digest: bytes) -> list[TokenMove]:
    """Return the moves of a token in the last 24 hours from the audit trail, the latest first."""
    rows = await conn.fetch(
        """SELECT m.from_user_id, m.from_device_id, m.refused, coalesce(v.token_state = 'MOVED', false) AS without
           FROM token_moves m LEFT JOIN devices v
                ON (v.app_id, v.user_id, v.device_id) = (m.app_id, m.from_user_id, m.from_device_id)
           WHERE m.app_id = $1 AND m.token_digest = $2 AND m.moved_at > syncbeat_now() - interval '24 hours'
           ORDER BY m.moved_at DESC, m.move_id DESC""",
        app_id,
        digest,
    )
    return [
        TokenMove(Holder(row["from_user_id"], row["from_device_id"]), row["refused"], row["without"]) for row in rows
    ]


async def record_move(
    conn: Connection, device: Registration, digest: bytes, previous: Holder, caller: str, *, refused: bool
) -> None:
    """Write a token's move into the audit trail; `refused`: it was taken from its holder and given to nobody."""
    await conn.execute(
        """INSERT INTO token_moves (app_id, token_digest, from_user_id, from_device_id, to_user_id, to_device_id,
                                    caller, moved_at, refused)
           VALUES ($1, $2, $3, $4, $5, $6, $7, syncbeat_now(), $8)""",
        device.app_id,
        digest,
        *previous,
        device.user_id,
        device.device_id,
        caller,
        refused,
    )


FORGET_MOVES = delete_oldest_sql("token_moves", "app_id, move_id", "moved_at", "180 days")


async def forget_moves(conn: Connection, limit: int, since: datetime | None = None) -> DeletedBatch:
    """Delete up to `limit` moves of tokens that are older than half a year."""
    return await delete_oldest(conn, FORGET_MOVES, limit, since)
