"""SQL of the `sessions` table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import orjson

from syncbeat_server.auth.model import Revocation, Session, SessionState, SessionTimes
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import DeletedBatch, delete_oldest, delete_oldest_sql


@dataclass(frozen=True, slots=True)
class NewSession:
    """The columns of a session to insert. `idle_s` and `max_s` are its lifetimes in seconds."""

    app_id: str
    user_id: str
    device_id: str
    claims: Mapping[str, str]
    generation: int
    idle_s: float
    max_s: float


async def insert_session(conn: Connection, new: NewSession) -> tuple[str, SessionTimes]:
    """Insert a session. Returns its id and times."""
    row = await conn.fetchrow(
        """INSERT INTO sessions (app_id, user_id, device_id, claims, generation, created_at, refreshed_at,
                                 idle_until, expires_at)
           SELECT $1, $2, $3, $4::jsonb, $5, t, t, t + least($6::interval, $7::interval), t + $7::interval
           FROM syncbeat_now() AS t
           RETURNING session_id, created_at, idle_until, expires_at""",
        new.app_id,
        new.user_id,
        new.device_id,
        orjson.dumps(dict(new.claims)).decode(),
        new.generation,
        timedelta(seconds=new.idle_s),
        timedelta(seconds=new.max_s),
    )
    if row is None:
        raise AssertionError("an insert returns its row")
    return row["session_id"], SessionTimes(row["created_at"], row["idle_until"], row["expires_at"])


async def lock_session(conn: Connection, app_id: str, session_id: str) -> tuple[SessionState, datetime] | None:
    """Lock a session's row. Returns it with the database's time, or None if there is no such session."""
    row = await conn.fetchrow(
        """SELECT s.user_id, s.claims::text AS claims, s.counter, s.confirmed, s.generation, s.refreshed_at,
                  s.idle_until, s.expires_at, s.revoked_at IS NOT NULL AS revoked,
                  coalesce(u.disabled_at, u.deleted_at) IS NOT NULL AS blocked, u.generation AS user_generation,
                  syncbeat_now() AS now
           FROM sessions s JOIN users u USING (app_id, user_id)
           WHERE s.app_id = $1 AND s.session_id = $2
           FOR UPDATE OF s""",
        app_id,
        session_id,
    )
    if row is None:
        return None
    *_, now = row.values()
    state = SessionState(
        user_id=row["user_id"],
        claims=orjson.loads(row["claims"]),
        counter=row["counter"],
        confirmed=row["confirmed"],
        generation=row["generation"],
        refreshed_at=row["refreshed_at"],
        idle_until=row["idle_until"],
        expires_at=row["expires_at"],
        revoked=row["revoked"],
        blocked=row["blocked"],
        user_generation=row["user_generation"],
    )
    return state, now


async def advance_counter(conn: Connection, app_id: str, session_id: str, idle_s: float) -> SessionTimes:
    """Make the next refresh token the current one, and confirm the one that was presented. Returns the new times."""
    row = await conn.fetchrow(
        """UPDATE sessions SET counter = counter + 1, confirmed = counter, refreshed_at = syncbeat_now(),
                               idle_until = least(syncbeat_now() + $3::interval, expires_at)
           WHERE app_id = $1 AND session_id = $2
           RETURNING refreshed_at, idle_until, expires_at""",
        app_id,
        session_id,
        timedelta(seconds=idle_s),
    )
    if row is None:
        raise AssertionError("the session is locked, so it is there")
    return SessionTimes(*row.values())


async def confirm_counters(conn: Connection, counters: Sequence[tuple[str, str, int]]) -> None:
    """Record that the holder of each (app, session) has received the refresh token of this counter."""
    await conn.execute(
        """UPDATE sessions s SET confirmed = k.counter
           FROM unnest($1::text[], $2::text[], $3::bigint[]) AS k (app_id, session_id, counter)
           WHERE (s.app_id, s.session_id) = (k.app_id, k.session_id)
             AND s.confirmed < k.counter AND k.counter <= s.counter""",
        *([one[column] for one in counters] for column in range(3)),
    )


async def revoke_session(
    conn: Connection, app_id: str, session_id: str, user_id: str, reason: str
) -> Revocation | None:
    """Revoke a user's session, unless it was revoked before. Returns None if there is no such session."""
    ended = await conn.fetchrow(
        """UPDATE sessions SET revoked_at = syncbeat_now(), revoke_reason = $4
           WHERE app_id = $1 AND session_id = $2 AND user_id = $3 AND revoked_at IS NULL
           RETURNING 1 AS ended""",
        app_id,
        session_id,
        user_id,
        reason,
    )
    if ended is not None:
        return Revocation.NOW
    found = await conn.fetchrow(
        "SELECT 1 AS found FROM sessions WHERE app_id = $1 AND session_id = $2 AND user_id = $3",
        app_id,
        session_id,
        user_id,
    )
    return None if found is None else Revocation.BEFORE


async def revoke_sessions(conn: Connection, app_id: str, user_id: str, reason: str, keep: int = 0) -> int:
    """End all active sessions of a user but the `keep` newest. Returns how many ended."""
    rows = await conn.fetch(
        """UPDATE sessions SET revoked_at = syncbeat_now(), revoke_reason = $3
           WHERE app_id = $1 AND session_id IN (
               SELECT session_id FROM sessions
               WHERE app_id = $1 AND user_id = $2 AND revoked_at IS NULL
                 AND syncbeat_now() < least(idle_until, expires_at)
               ORDER BY session_id DESC OFFSET $4)
           RETURNING 1 AS ended""",
        app_id,
        user_id,
        reason,
        keep,
    )
    return len(rows)


async def has_sessions(conn: Connection, app_id: str, user_id: str) -> bool:
    """Tell if a user has sessions, active or not yet deleted."""
    return bool(
        await conn.fetchval("SELECT EXISTS (SELECT FROM sessions WHERE app_id = $1 AND user_id = $2)", app_id, user_id)
    )


async def delete_sessions(conn: Connection, app_id: str, user_id: str) -> int:
    """Delete all sessions of a user. Returns how many there were."""
    rows = await conn.fetch(
        "DELETE FROM sessions WHERE app_id = $1 AND user_id = $2 RETURNING 1 AS gone", app_id, user_id
    )
    return len(rows)


async def delete_ended(conn: Connection, app_id: str, user_id: str, after: timedelta, limit: int) -> None:
    """Delete up to `limit` sessions of a user that ended longer ago than `after`."""
    await conn.execute(
        """DELETE FROM sessions WHERE app_id = $1 AND session_id IN (
               SELECT session_id FROM sessions
               WHERE app_id = $1 AND user_id = $2
                 AND least(coalesce(revoked_at, expires_at), idle_until, expires_at) < syncbeat_now() - $3::interval
               LIMIT $4)""",
        app_id,
        user_id,
        after,
        limit,
    )


DELETE_EXPIRED = delete_oldest_sql("sessions", "app_id, session_id", "expires_at", "7 days")


async def delete_expired(conn: Connection, limit: int, since: datetime | None = None) -> DeletedBatch:
    """Delete up to `limit` sessions of all users whose maximum lifetime ended over a week ago."""
    return await delete_oldest(conn, DELETE_EXPIRED, limit, since)


async def list_sessions(conn: Connection, app_id: str, user_id: str, before: str, limit: int) -> list[Session]:
    """Return a user's active sessions, newest first, those before the id `before` (empty: from the newest)."""
    rows = await conn.fetch(
        """SELECT session_id, user_id, device_id, created_at, refreshed_at, least(idle_until, expires_at) AS expires_at
           FROM sessions
           WHERE app_id = $1 AND user_id = $2 AND revoked_at IS NULL AND syncbeat_now() < least(idle_until, expires_at)
             AND ($3 = '' OR session_id < $3)
           ORDER BY session_id DESC LIMIT $4""",
        app_id,
        user_id,
        before,
        limit,
    )
    return [Session(*row.values()) for row in rows]
