"""SQL of devices, scopes' members and the audit of moved tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from syncbeat_server.directory.model import (
    Device,
    Holder,
    Member,
    MemberRole,
    Platform,
    Preferences,
    QuietHours,
    Registration,
    TokenMove,
    TokenState,
)
from syncbeat_server.storage.postgres.database import Connection, Row
from syncbeat_server.storage.retention import DeletedBatch, delete_oldest, delete_oldest_sql


async def upsert_device(conn: Connection, device: Registration, digest: bytes | None) -> Device:
    """Register a device, or replace its registration. Without a token it gets no push, whatever it had."""
    row = await conn.fetchrow(
        """INSERT INTO devices AS d (app_id, user_id, device_id, platform, registration_token, token_digest,
                                     token_state, token_registered_at, time_zone, locale, registered_at, updated_at)
           VALUES ($1, $2, $3, $4, $5, $6, CASE WHEN $5::text IS NULL THEN 'NONE' ELSE 'ACTIVE' END,
                   CASE WHEN $5::text IS NOT NULL THEN syncbeat_now() END, $7, $8, syncbeat_now(), syncbeat_now())
           ON CONFLICT (app_id, user_id, device_id) DO UPDATE SET
               platform = excluded.platform,
               registration_token = excluded.registration_token, token_digest = excluded.token_digest,
               token_state = excluded.token_state, token_registered_at = excluded.token_registered_at,
               time_zone = excluded.time_zone, locale = excluded.locale, updated_at = excluded.updated_at
           RETURNING *""",
        device.app_id,
        device.user_id,
        device.device_id,
        device.platform,
        device.registration_token or None,
        digest,
        device.time_zone,
        device.locale,
    )
    if row is None:
        raise AssertionError("an upsert returns its row")
    return _device(row)


async def lock_token(conn: Connection, app_id: str, digest: bytes) -> None:
    """Let one transaction at a time register this token: who is first is found by the next, on whichever device."""
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"{app_id} {digest.hex()}")


async def lock_mover(conn: Connection, device: Registration, digest: bytes) -> Holder | None:
    """Lock the device that holds a token and the one that is to have it, as everybody locks several: in their order.

    Returns whose token it is.
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


async def lock_registering(conn: Connection, app_id: str, user_id: str, device_id: str) -> None:
    """Let a user's devices register side by side, each by one transaction at a time, and none while the user is erased.

    A device that is not there yet has no row to lock: of two who add it, the second would meet the first one's row out
    of the order of rows.
    """
    await conn.execute(
        """SELECT pg_advisory_xact_lock_shared(hashtextextended($1, 1)),
                  pg_advisory_xact_lock(hashtextextended($1 || ' ' || $2::text, 2))""",
        f"{app_id} {user_id}",
        device_id,
    )


async def lock_erasing(conn: Connection, app_id: str, user_id: str) -> None:
    """Let no device of the user register meanwhile, which would leave it."""
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 1))", f"{app_id} {user_id}")


async def release_token(conn: Connection, app_id: str, holder: Holder, digest: bytes) -> bool:
    """Take a token from the device that holds it; whether it did."""
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
    """Where a token went within the last 24 hours, the latest first, from the audit trail."""
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
    """Write a token's move into the audit trail; `refused`: it was taken from there, and went nowhere."""
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


async def count_devices(conn: Connection, app_id: str, user_id: str, but: str) -> int:
    """How many devices a user has beside one."""
    return int(
        await conn.fetchval(
            "SELECT count(*) FROM devices WHERE app_id = $1 AND user_id = $2 AND device_id <> $3",
            app_id,
            user_id,
            but,
        )
    )


async def find_device(conn: Connection, app_id: str, user_id: str, device_id: str) -> Device | None:
    """One device."""
    row = await conn.fetchrow(
        "SELECT * FROM devices WHERE app_id = $1 AND user_id = $2 AND device_id = $3",
        app_id,
        user_id,
        device_id,
    )
    return None if row is None else _device(row)


async def list_devices(conn: Connection, app_id: str, user_id: str, after: str, limit: int) -> list[Device]:
    """A user's devices by id, after `after`."""
    rows = await conn.fetch(
        """SELECT * FROM devices WHERE app_id = $1 AND user_id = $2 AND device_id > $3
           ORDER BY device_id LIMIT $4""",
        app_id,
        user_id,
        after,
        limit,
    )
    return [_device(row) for row in rows]


async def lock_scope(conn: Connection, app_id: str, scope: str) -> None:
    """Make the scope if it is not there, and lock it, so that its members are counted by one call at a time."""
    await conn.execute(
        """INSERT INTO scopes AS s (app_id, scope, created_at) VALUES ($1, $2, syncbeat_now())
           ON CONFLICT (app_id, scope) DO UPDATE SET app_id = s.app_id""",
        app_id,
        scope,
    )


async def add_members(conn: Connection, app_id: str, scope: str, members: Sequence[Member]) -> list[str]:
    """Add members, or change their role; the users who were no members before."""
    rows = await conn.fetch(
        """INSERT INTO scope_members (app_id, user_id, scope, role, added_at)
           SELECT $1, user_id, $2, role, syncbeat_now() FROM unnest($3::text[], $4::text[]) AS k (user_id, role)
           ORDER BY user_id
           ON CONFLICT (app_id, user_id, scope) DO UPDATE SET role = excluded.role
           RETURNING user_id, xmax = 0 AS joined""",
        app_id,
        scope,
        [member.user_id for member in members],
        [member.role for member in members],
    )
    return [row["user_id"] for row in rows if row["joined"]]


async def count_members(conn: Connection, app_id: str, scope: str) -> int:
    """How many members a scope has."""
    return int(
        await conn.fetchval("SELECT count(*) FROM scope_members WHERE app_id = $1 AND scope = $2", app_id, scope)
    )


async def count_scopes(conn: Connection, app_id: str, user_ids: Sequence[str], most: int) -> dict[str, int]:
    """How many scopes each user is a member of who is in any; more than `most` are not counted further."""
    rows = await conn.fetch(
        """SELECT k.user_id, m.count FROM unnest($2::text[]) AS k (user_id)
           CROSS JOIN LATERAL (
               SELECT count(*) FROM (
                   SELECT 1 FROM scope_members WHERE app_id = $1 AND user_id = k.user_id LIMIT $3) counted) m
           WHERE m.count > 0""",
        app_id,
        list(user_ids),
        most + 1,
    )
    return {row["user_id"]: row["count"] for row in rows}


async def lock_memberships(conn: Connection, app_id: str) -> None:
    """Let one transaction at a time add members to the app's scopes, of those that ask for it."""
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"{app_id} memberships")


async def remove_members(conn: Connection, app_id: str, scope: str, user_ids: Sequence[str]) -> int:
    """Take members out of a scope; how many were in it."""
    rows = await conn.fetch(
        """WITH own AS MATERIALIZED (
               SELECT user_id FROM scope_members WHERE app_id = $1 AND scope = $2 AND user_id = ANY($3::text[])
               ORDER BY user_id FOR UPDATE)
           DELETE FROM scope_members m USING own WHERE m.app_id = $1 AND m.scope = $2 AND m.user_id = own.user_id
           RETURNING m.user_id""",
        app_id,
        scope,
        list(user_ids),
    )
    return len(rows)


async def known_scopes(conn: Connection, keys: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of the (app, scope) that exist."""
    rows = await conn.fetch(
        """SELECT app_id, scope FROM scopes
           JOIN unnest($1::text[], $2::text[]) AS k (app_id, scope) USING (app_id, scope)""",
        [app_id for app_id, _ in keys],
        [scope for _, scope in keys],
    )
    return {(row["app_id"], row["scope"]) for row in rows}


async def list_members(conn: Connection, app_id: str, scope: str, after: str, limit: int) -> list[Member]:
    """A scope's members by user, after `after`."""
    rows = await conn.fetch(
        """SELECT * FROM scope_members WHERE app_id = $1 AND scope = $2 AND user_id > $3
           ORDER BY user_id LIMIT $4""",
        app_id,
        scope,
        after,
        limit,
    )
    return [_member(row) for row in rows]


async def list_scopes(conn: Connection, app_id: str, user_id: str, after: str, limit: int) -> list[Member]:
    """A user's memberships by scope, after `after`."""
    rows = await conn.fetch(
        """SELECT * FROM scope_members WHERE app_id = $1 AND user_id = $2 AND scope > $3
           ORDER BY scope LIMIT $4""",
        app_id,
        user_id,
        after,
        limit,
    )
    return [_member(row) for row in rows]


async def erase_memberships(conn: Connection, app_id: str, user_id: str) -> int:
    """Take a user out of all scopes: how many there were."""
    rows = await conn.fetch(
        "DELETE FROM scope_members WHERE app_id = $1 AND user_id = $2 RETURNING 1 AS gone", app_id, user_id
    )
    return len(rows)


async def erase_traces(conn: Connection, app_id: str, user_id: str) -> None:
    """Forget a user's preferences, the moves of registration tokens from and to it, and that some were dead."""
    await conn.execute(
        """WITH preferences AS (DELETE FROM preferences WHERE app_id = $1 AND user_id = $2),
                removals AS (DELETE FROM token_removals WHERE app_id = $1 AND user_id = $2)
           DELETE FROM token_moves WHERE app_id = $1 AND $2 IN (from_user_id, to_user_id)""",
        app_id,
        user_id,
    )


async def set_preferences(conn: Connection, app_id: str, user_id: str, wanted: Preferences) -> Preferences:
    """Replace a user's preferences."""
    quiet = wanted.quiet_hours
    row = await conn.fetchrow(
        """INSERT INTO preferences (app_id, user_id, quiet_start, quiet_end, quiet_zone, max_per_day, muted_types,
                                    updated_at)
           VALUES ($1, $2, $3, $4, $5, $6, $7, syncbeat_now())
           ON CONFLICT (app_id, user_id) DO UPDATE SET
               quiet_start = excluded.quiet_start, quiet_end = excluded.quiet_end, quiet_zone = excluded.quiet_zone,
               max_per_day = excluded.max_per_day, muted_types = excluded.muted_types,
               updated_at = excluded.updated_at
           RETURNING *""",
        app_id,
        user_id,
        None if quiet is None else quiet.start_minute,
        None if quiet is None else quiet.end_minute,
        "" if quiet is None else quiet.zone,
        wanted.max_per_day,
        list(wanted.muted_types),
    )
    if row is None:
        raise AssertionError("an upsert returns its row")
    return _preferences(row)


async def find_preferences(conn: Connection, app_id: str, user_id: str) -> Preferences | None:
    """A user's preferences; None when none were set."""
    row = await conn.fetchrow("SELECT * FROM preferences WHERE app_id = $1 AND user_id = $2", app_id, user_id)
    return None if row is None else _preferences(row)


def _preferences(row: Row) -> Preferences:
    quiet = None
    if row["quiet_start"] is not None:
        quiet = QuietHours(row["quiet_start"], row["quiet_end"], row["quiet_zone"])
    return Preferences(quiet, row["max_per_day"], tuple(row["muted_types"]), row["updated_at"])


def _device(row: Row) -> Device:
    return Device(
        user_id=row["user_id"],
        device_id=row["device_id"],
        platform=Platform(row["platform"]),
        token_state=_token_state(row),
        time_zone=row["time_zone"],
        locale=row["locale"],
        registered_at=row["registered_at"],
        updated_at=row["updated_at"],
    )


def _token_state(row: Row) -> TokenState:
    # Servers of before know no INVALID: the column has DEAD, and the moment at which it was both tells them apart.
    state = TokenState(row["token_state"])
    marked = row["token_invalid_at"]
    return TokenState.INVALID if state is TokenState.DEAD and marked and marked == row["token_state_at"] else state


def _member(row: Row) -> Member:
    return Member(row["scope"], row["user_id"], MemberRole(row["role"]), row["added_at"])
