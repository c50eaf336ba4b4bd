"""Reads the scopes of users, with the check that they are members."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.directory.model import MAX_SCOPES
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.sync.model import ScopeState
from syncbeat_server.sync.store.scopes import STATE, scope_state


async def scope_states(conn: Connection, reads: Sequence[tuple[str, str | None, str]]) -> list[ScopeState | None]:
    """Return the state of each (app, user, scope); None if there is no such scope or `user` is not a member of it."""
    rows = await conn.fetch(
        f"""SELECT k.i, {STATE}
           FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS k (app_id, user_id, scope, i)
           JOIN scopes s USING (app_id, scope)
           WHERE k.user_id IS NULL OR EXISTS (
               SELECT 1 FROM scope_members m
               WHERE (m.app_id, m.user_id, m.scope) = (k.app_id, k.user_id, k.scope))""",
        [app_id for app_id, _, _ in reads],
        [user_id for _, user_id, _ in reads],
        [scope for _, _, scope in reads],
    )
    found: list[ScopeState | None] = [None] * len(reads)
    for row in rows:
        place, *columns = row.values()
        found[place - 1] = scope_state(columns)
    return found


async def are_members(conn: Connection, readers: Sequence[tuple[str, str, str]]) -> list[bool]:
    """Return for each (app, user, scope) if the user is a member of the scope."""
    rows = await conn.fetch(
        """SELECT k.i
           FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS k (app_id, user_id, scope, i)
           JOIN scope_members m USING (app_id, user_id, scope)""",
        [app_id for app_id, _, _ in readers],
        [user_id for _, user_id, _ in readers],
        [scope for _, _, scope in readers],
    )
    members = {row["i"] for row in rows}
    return [place in members for place in range(1, len(readers) + 1)]


async def member_scopes(conn: Connection, users: Sequence[tuple[str, str]]) -> list[tuple[list[ScopeState], bool]]:
    """Return for each (app, user) its scopes, at most `MAX_SCOPES`, newest change first; and True if it has more."""
    rows = await conn.fetch(
        f"""SELECT k.i, own.*
           FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (app_id, user_id, i)
           CROSS JOIN LATERAL (
               SELECT {STATE}
               FROM scope_members m JOIN scopes s USING (app_id, scope)
               WHERE m.app_id = k.app_id AND m.user_id = k.user_id
               ORDER BY s.changed_at DESC NULLS LAST, s.scope LIMIT $3) own""",
        [app_id for app_id, _ in users],
        [user_id for _, user_id in users],
        MAX_SCOPES + 1,
    )
    found: list[list[ScopeState]] = [[] for _ in users]
    for row in rows:
        place, *columns = row.values()
        found[place - 1].append(scope_state(columns))
    return [(states[:MAX_SCOPES], len(states) > MAX_SCOPES) for states in found]


async def join_sequences(
    conn: Connection, app_id: str, user_id: str, scopes: Sequence[str], margin_s: float
) -> dict[str, int]:
    """Return for each scope the sequence before its first change since the user joined it.

    The time of the join is reduced by `margin_s`, for changes that began before it and were committed after.
    """
    rows = await conn.fetch(
        """SELECT s.scope, coalesce((
                      SELECT min(c.sequence) - 1 FROM changes c
                      WHERE c.app_id = s.app_id AND c.scope = s.scope
                        AND c.changed_at >= m.added_at - make_interval(secs => $4)), s.head) AS start
           FROM scope_members m JOIN scopes s USING (app_id, scope)
           WHERE m.app_id = $1 AND m.user_id = $2 AND m.scope = ANY($3::text[])""",
        app_id,
        user_id,
        list(scopes),
        margin_s,
    )
    return {row["scope"]: row["start"] for row in rows}


async def recent_joiners(conn: Connection, within_s: float, limit: int) -> list[tuple[str, str]]:
    """Return the (app, user) of memberships that were added in the last `within_s` seconds."""
    rows = await conn.fetch(
        """SELECT app_id, user_id FROM scope_members
           WHERE added_at > syncbeat_now() - make_interval(secs => $1)
           ORDER BY added_at DESC LIMIT $2""",
        within_s,
        limit,
    )
    return [(row["app_id"], row["user_id"]) for row in rows]
