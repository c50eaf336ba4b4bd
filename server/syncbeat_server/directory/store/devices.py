"""Reads and writes the devices of users."""

from __future__ import annotations

from collections.abc import Mapping

from syncbeat_server.directory.model import REACH_HALF_LIFE_S, Device, Platform, Registration, TokenState
from syncbeat_server.directory.store.device_locks import lock_in_order
from syncbeat_server.storage.postgres.database import Connection, Row


async def upsert_device(conn: Connection, device: Registration, digest: bytes | None) -> Device:
    """Register a device, or replace its registration. Without a token it gets no push, even if it had one."""
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


async def lock_registering(conn: Connection, app_id: str, user_id: str, device_id: str) -> None:
    """Lock the registration of one device of a user, and wait while the user is being deleted.

    A user's devices register side by side, each by one transaction at a time. A device that is not registered yet has
    no row to lock: of two transactions that add it, the second would lock the first one's row out of the order of rows.
    """
    await conn.execute(
        """SELECT pg_advisory_xact_lock_shared(hashtextextended($1, 1)),
                  pg_advisory_xact_lock(hashtextextended($1 || ' ' || $2::text, 2))""",
        f"{app_id} {user_id}",
        device_id,
    )


async def lock_erasing(conn: Connection, app_id: str, user_id: str) -> None:
    """Block registrations of a user's devices while the user is deleted: a device registered meanwhile would remain."""
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 1))", f"{app_id} {user_id}")


async def count_devices(conn: Connection, app_id: str, user_id: str, except_device_id: str) -> int:
    """Count the devices of a user other than `except_device_id`."""
    return int(
        await conn.fetchval(
            "SELECT count(*) FROM devices WHERE app_id = $1 AND user_id = $2 AND device_id <> $3",
            app_id,
            user_id,
            except_device_id,
        )
    )


async def find_device(conn: Connection, app_id: str, user_id: str, device_id: str) -> Device | None:
    """Return one device of a user; None if it is not registered."""
    row = await conn.fetchrow(
        "SELECT * FROM devices WHERE app_id = $1 AND user_id = $2 AND device_id = $3",
        app_id,
        user_id,
        device_id,
    )
    return None if row is None else _device(row)


async def list_devices(conn: Connection, app_id: str, user_id: str, after: str, limit: int) -> list[Device]:
    """Return up to `limit` devices of a user in order of their ids, after the id `after`."""
    rows = await conn.fetch(
        """SELECT * FROM devices WHERE app_id = $1 AND user_id = $2 AND device_id > $3
           ORDER BY device_id LIMIT $4""",
        app_id,
        user_id,
        after,
        limit,
    )
    return [_device(row) for row in rows]


async def report_activity(conn: Connection, reports: Mapping[tuple[str, str, str], str]) -> None:
    """Store the newest report of activity, JSON, of each (app, user, device); those not registered are skipped."""
    there = sorted(await lock_in_order(conn, *([device[column] for device in reports] for column in range(3))))
    await conn.execute(
        """UPDATE devices d SET activity = k.activity::jsonb, activity_at = syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS k (app_id, user_id, device_id, activity)
           WHERE (d.app_id, d.user_id, d.device_id) = (k.app_id, k.user_id, k.device_id)""",
        *([device[column] for device in there] for column in range(3)),
        [reports[device] for device in there],
    )


async def count_wake_ups(conn: Connection, counts: Mapping[tuple[str, str, str], tuple[float, float]]) -> None:
    """Add (answered, missed) wake-ups to the reach of each (app, user, device)."""
    known = await lock_in_order(conn, *([device[column] for device in counts] for column in range(3)))
    ordered = sorted(known)
    await conn.execute(
        """UPDATE devices v SET
               reach_answered = v.reach_answered * syncbeat_decay(v.reach_at, $6) + own.answered,
               reach_missed = v.reach_missed * syncbeat_decay(v.reach_at, $6) + own.missed,
               reach_at = syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::float8[])
                AS own (app_id, user_id, device_id, answered, missed)
           WHERE (v.app_id, v.user_id, v.device_id) = (own.app_id, own.user_id, own.device_id)""",
        *([device[column] for device in ordered] for column in range(3)),
        *([counts[device][column] for device in ordered] for column in range(2)),
        REACH_HALF_LIFE_S,
    )


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
    # Earlier versions know no INVALID: the column has DEAD, and equal times of both marks tell INVALID.
    state = TokenState(row["token_state"])
    marked = row["token_invalid_at"]
    return TokenState.INVALID if state is TokenState.DEAD and marked and marked == row["token_state_at"] else state
