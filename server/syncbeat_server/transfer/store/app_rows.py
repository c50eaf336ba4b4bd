"""Reads the scopes, values, members, devices and preferences of an app in one snapshot, in the order of their names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

from syncbeat_server.directory.model import Preferences, QuietHours
from syncbeat_server.storage.postgres.database import Row
from syncbeat_server.storage.postgres.snapshot import Snapshot

# $2 is a scope, $3 a user: null for all.
_OF = """app_id = $1 AND ($2::text IS NULL OR scope = $2) AND ($3::text IS NULL OR scope IN (
             SELECT m.scope FROM scope_members m WHERE m.app_id = $1 AND m.user_id = $3))"""


def scope_rows(snapshot: Snapshot, app_id: str, scope: str | None, user_id: str | None) -> AsyncIterator[Row]:
    """Yield the scopes of an app, of all or one of them, or of those of a user."""
    return snapshot.rows(
        f"SELECT scope, epoch, head, created_at FROM scopes WHERE {_OF} ORDER BY scope",  # noqa: S608  # a constant
        app_id,
        scope,
        user_id,
    )


def value_rows(snapshot: Snapshot, app_id: str, scope: str | None, user_id: str | None) -> AsyncIterator[Row]:
    """Yield the values and tombstones of these scopes by scope and key, each value as the text of its JSON."""
    return snapshot.sized_rows(
        f"""SELECT scope, key, value::text AS value, deleted, sequence, changed_at, source_time
            FROM changes WHERE {_OF} ORDER BY scope, key""",  # noqa: S608  # a constant
        f"SELECT octets FROM changes WHERE {_OF} ORDER BY scope, key",  # noqa: S608  # a constant
        app_id,
        scope,
        user_id,
    )


def some_values(snapshot: Snapshot, app_id: str, keys: Collection[tuple[str, str]]) -> AsyncIterator[Row]:
    """Yield the values of some scopes and keys of an app, those that have one."""
    return snapshot.rows(
        """SELECT scope, key, value::text AS value FROM changes
           JOIN unnest($2::text[], $3::text[]) AS k (scope, key) USING (scope, key)
           WHERE app_id = $1 AND NOT deleted""",
        app_id,
        [scope for scope, _ in keys],
        [key for _, key in keys],
    )


def member_rows(snapshot: Snapshot, app_id: str, scope: str | None, user_id: str | None) -> AsyncIterator[Row]:
    """Yield the members of these scopes by scope and user."""
    return snapshot.rows(
        f"SELECT scope, user_id, role, added_at FROM scope_members WHERE {_OF} ORDER BY scope, user_id",  # noqa: S608  # a constant
        app_id,
        scope,
        user_id,
    )


def device_rows(snapshot: Snapshot, app_id: str, user_id: str | None) -> AsyncIterator[Row]:
    """Yield the devices of an app, or of a user, by user and id."""
    return snapshot.rows(
        """SELECT user_id, device_id, platform, registration_token, token_registered_at, time_zone, locale,
                  registered_at, updated_at
           FROM devices WHERE app_id = $1 AND ($2::text IS NULL OR user_id = $2) ORDER BY user_id, device_id""",
        app_id,
        user_id,
    )


def preference_rows(snapshot: Snapshot, app_id: str, user_id: str | None) -> AsyncIterator[Row]:
    """Yield the preferences of an app's users, or of one, by user."""
    return snapshot.rows(
        """SELECT user_id, quiet_start, quiet_end, quiet_zone, max_per_day, muted_types, updated_at
           FROM preferences WHERE app_id = $1 AND ($2::text IS NULL OR user_id = $2) ORDER BY user_id""",
        app_id,
        user_id,
    )


def account_rows(snapshot: Snapshot, app_id: str, user_id: str | None) -> AsyncIterator[Row]:
    """Yield the users of an app that are known, or one, by id."""
    return snapshot.rows(
        """SELECT user_id, created_at, disabled_at, deleted_at FROM users
           WHERE app_id = $1 AND ($2::text IS NULL OR user_id = $2) ORDER BY user_id""",
        app_id,
        user_id,
    )


def preferences_of(row: Row) -> Preferences:
    """Return the preferences of a row."""
    quiet = None
    if row["quiet_start"] is not None:
        quiet = QuietHours(row["quiet_start"], row["quiet_end"], row["quiet_zone"])
    return Preferences(quiet, row["max_per_day"], tuple(row["muted_types"]))
