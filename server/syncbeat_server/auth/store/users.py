"""SQL of the `users` table: known, disabled and deleted users, revocations; and account statuses."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from syncbeat_server.auth.model import AccountKey, AccountStatus
from syncbeat_server.storage.postgres.database import Connection


class Revoked(NamedTuple):
    """A revocation: tokens of ours below `generation` and other issuers' tokens up to `revoked_at` are void."""

    generation: int
    revoked_at: datetime


class KnownUser(NamedTuple):
    """Says of a known user if it is disabled, or deleted."""

    disabled: bool
    deleted: bool


async def read_statuses(conn: Connection, keys: Sequence[AccountKey]) -> list[AccountStatus]:
    """Return the status of each key, in order.

    A subject is the user whom an identity of its issuer names. Without one, it is the user of its own id, unless
    that user is known by an identity of somebody else, or the issuer's subjects have to claim their ids first.
    """
    rows = await conn.fetch(
        """SELECT u.user_id IS NOT NULL AS exists,
                  coalesce(u.disabled_at, u.deleted_at) IS NOT NULL AS blocked,
                  coalesce(u.generation, 0) AS generation, u.revoked_at,
                  s.session_id IS NOT NULL AND s.revoked_at IS NULL AND s.expires_at > syncbeat_now() AS session_active,
                  coalesce(s.confirmed, 0) AS confirmed, coalesce(t.tier, '') AS tier,
                  coalesce(w.user_id, '') AS user_id
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bool[]) WITH ORDINALITY
                AS k (app_id, subject, session_id, issuer, claims_id, i)
           LEFT JOIN user_identities a ON (a.app_id, a.issuer, a.subject) = (k.app_id, k.issuer, k.subject)
           CROSS JOIN LATERAL (SELECT CASE
               WHEN a.user_id IS NOT NULL THEN a.user_id
               WHEN k.issuer = '' OR NOT k.claims_id AND NOT EXISTS (
                   SELECT FROM user_identities o WHERE (o.app_id, o.user_id) = (k.app_id, k.subject)) THEN k.subject
               END AS user_id OFFSET 0) w  -- computed once, and not in each join
           LEFT JOIN users u ON (u.app_id, u.user_id) = (k.app_id, w.user_id)
           LEFT JOIN sessions s ON (s.app_id, s.session_id, s.user_id) = (k.app_id, k.session_id, w.user_id)
           LEFT JOIN user_tiers t ON (t.app_id, t.user_id) = (k.app_id, w.user_id)
           ORDER BY k.i""",
        [key.app_id for key in keys],
        [key.subject for key in keys],
        [key.session_id for key in keys],
        [key.issuer for key in keys],
        [key.claims_id for key in keys],
    )
    return [AccountStatus(*row.values()) for row in rows]


async def insert_users(conn: Connection, users: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Insert each (app, user) that is unknown, and return those; known ones stay as they are."""
    rows = await conn.fetch(
        """INSERT INTO users (app_id, user_id, created_at)
           SELECT app_id, user_id, syncbeat_now() FROM unnest($1::text[], $2::text[]) AS k (app_id, user_id)
           ORDER BY app_id, user_id
           ON CONFLICT DO NOTHING
           RETURNING app_id, user_id""",
        [app_id for app_id, _ in users],
        [user_id for _, user_id in users],
    )
    return [(row["app_id"], row["user_id"]) for row in rows]


async def enable_user(conn: Connection, app_id: str, user_id: str) -> int:
    """Insert the user, or clear its disabled and deleted marks, and lock the row. Returns its generation."""
    return int(
        await conn.fetchval(
            """INSERT INTO users AS u (app_id, user_id, created_at) VALUES ($1, $2, syncbeat_now())
               ON CONFLICT (app_id, user_id) DO UPDATE SET disabled_at = NULL, deleted_at = NULL
               RETURNING u.generation""",
            app_id,
            user_id,
        )
    )


async def lock_user(conn: Connection, app_id: str, user_id: str) -> int | None:
    """Insert the user or lock its row, so that no revocation happens meanwhile; a deleted user becomes known again.

    Returns:
        Its generation; None if it is disabled.
    """
    row = await conn.fetchrow(
        """INSERT INTO users AS u (app_id, user_id, created_at) VALUES ($1, $2, syncbeat_now())
           ON CONFLICT (app_id, user_id) DO UPDATE SET deleted_at = NULL
           RETURNING u.generation, u.disabled_at IS NOT NULL AS disabled""",
        app_id,
        user_id,
    )
    if row is None:
        raise AssertionError("an upsert returns its row")
    return None if row["disabled"] else row["generation"]


async def lock_users(conn: Connection, app_id: str, user_ids: Sequence[str]) -> None:
    """Lock the rows of those users who have one, in order."""
    await lock_known(conn, app_id, user_ids)


async def lock_known(conn: Connection, app_id: str, user_ids: Sequence[str]) -> dict[str, KnownUser]:
    """Lock the rows of those users who have one, in order, and return them."""
    rows = await conn.fetch(
        """SELECT user_id, disabled_at IS NOT NULL AS disabled, deleted_at IS NOT NULL AS deleted FROM users
           WHERE app_id = $1 AND user_id = ANY($2::text[]) ORDER BY user_id FOR NO KEY UPDATE""",
        app_id,
        list(user_ids),
    )
    return {row["user_id"]: KnownUser(row["disabled"], row["deleted"]) for row in rows}


async def revoke_user(conn: Connection, app_id: str, user_id: str, reason: str) -> Revoked:
    """Revoke every token of a user that was issued so far."""
    row = await conn.fetchrow(
        """INSERT INTO users AS u (app_id, user_id, generation, revoked_at, revoke_reason, created_at)
           VALUES ($1, $2, 1, syncbeat_now(), $3, syncbeat_now())
           ON CONFLICT (app_id, user_id) DO UPDATE
           SET generation = u.generation + 1, revoked_at = greatest(u.revoked_at, excluded.revoked_at),
               revoke_reason = excluded.revoke_reason
           RETURNING u.generation, u.revoked_at""",
        app_id,
        user_id,
        reason,
    )
    if row is None:
        raise AssertionError("an upsert returns its row")
    return Revoked(row["generation"], row["revoked_at"])


async def disable_user(conn: Connection, app_id: str, user_id: str) -> None:
    """Disable a user until `enable_user`."""
    await conn.execute(
        """INSERT INTO users AS u (app_id, user_id, disabled_at, created_at)
           VALUES ($1, $2, syncbeat_now(), syncbeat_now())
           ON CONFLICT (app_id, user_id) DO UPDATE SET disabled_at = coalesce(u.disabled_at, excluded.disabled_at)""",
        app_id,
        user_id,
    )


async def mark_deleted(conn: Connection, app_id: str, user_id: str) -> None:
    """Mark a user as deleted whose rows are being erased. Call `revoke_user` first, which inserts the row."""
    await conn.execute(
        """UPDATE users SET deleted_at = coalesce(deleted_at, syncbeat_now()), disabled_at = NULL, revoke_reason = ''
           WHERE app_id = $1 AND user_id = $2""",
        app_id,
        user_id,
    )
