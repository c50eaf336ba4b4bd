"""Reads and writes the members of scopes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from syncbeat_server.directory.model import Member, MemberRole
from syncbeat_server.storage.postgres.database import Connection, Row


async def add_members(conn: Connection, app_id: str, scope: str, members: Sequence[Member]) -> list[str]:
    """Add members, or change their roles; return the users who were no members before."""
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


async def present_members(conn: Connection, app_id: str, keys: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those of the (scope, user) that are memberships."""
    rows = await conn.fetch(
        """SELECT scope, user_id FROM scope_members
           JOIN unnest($2::text[], $3::text[]) AS k (scope, user_id) USING (scope, user_id) WHERE app_id = $1""",
        app_id,
        [scope for scope, _ in keys],
        [user_id for _, user_id in keys],
    )
    return {(row["scope"], row["user_id"]) for row in rows}


async def count_members(conn: Connection, app_id: str, scope: str) -> int:
    """Count the members of a scope."""
    return int(
        await conn.fetchval("SELECT count(*) FROM scope_members WHERE app_id = $1 AND scope = $2", app_id, scope)
    )


async def count_scopes(conn: Connection, app_id: str, user_ids: Sequence[str], limit: int) -> dict[str, int]:
    """Count the scopes of each user who is a member of any, up to `limit` + 1."""
    rows = await conn.fetch(
        """SELECT k.user_id, m.count FROM unnest($2::text[]) AS k (user_id)
           CROSS JOIN LATERAL (
               SELECT count(*) FROM (
                   SELECT 1 FROM scope_members WHERE app_id = $1 AND user_id = k.user_id LIMIT $3) counted) m
           WHERE m.count > 0""",
        app_id,
        list(user_ids),
        limit + 1,
    )
    return {row["user_id"]: row["count"] for row in rows}


async def lock_memberships(conn: Connection, app_id: str) -> None:
    """Serialize transactions that add members to the app's scopes, of those that ask for it."""
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"{app_id} memberships")


async def remove_members(conn: Connection, app_id: str, scope: str, user_ids: Sequence[str]) -> int:
    """Remove members from a scope; return the number removed."""
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
    """Return those of the (app, scope) that exist."""
    rows = await conn.fetch(
        """SELECT app_id, scope FROM scopes
           JOIN unnest($1::text[], $2::text[]) AS k (app_id, scope) USING (app_id, scope)""",
        [app_id for app_id, _ in keys],
        [scope for _, scope in keys],
    )
    return {(row["app_id"], row["scope"]) for row in rows}


async def list_members(conn: Connection, app_id: str, scope: str, after: str, limit: int) -> list[Member]:
    """Return up to `limit` members of a scope in order of users, after the user `after`."""
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
    """Return up to `limit` memberships of a user in order of scopes, after the scope `after`."""
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
    """Remove a user from all scopes; return their number."""
    rows = await conn.fetch(
        "DELETE FROM scope_members WHERE app_id = $1 AND user_id = $2 RETURNING 1 AS gone", app_id, user_id
    )
    return len(rows)


def _member(row: Row) -> Member:
    return Member(row["scope"], row["user_id"], MemberRole(row["role"]), row["added_at"])
