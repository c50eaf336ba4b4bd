"""SQL of the change feed, of hints and of what each device has seen."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from syncbeat_server.storage.postgres import Connection
from syncbeat_server.sync.model import (
    Activity,
    ActivityState,
    Change,
    Cursor,
    DeviceKey,
    Network,
    NewChange,
    Reach,
    ScopeState,
)
from syncbeat_server.sync.scopes import STATE, STATE_COLUMNS, scope_state

MAX_SCOPES = 500


class DeviceView(NamedTuple):
    """What a hint is made of: the activity a device last reported and when (unix seconds), how far pushes reach it, its
    user's scopes by name (of many, those that changed last come first), the newest cursors that it has shown, and the
    heads of its scopes by name where they were asked for before."""

    activity: Activity | None
    reported_at: float
    reach: Reach
    platform: str
    scopes: dict[str, ScopeState]
    seen: dict[str, Cursor]
    heads: tuple[Cursor, ...] | None = None


async def device_views(conn: Connection, devices: Sequence[DeviceKey]) -> list[DeviceView | None]:
    """For each device its view, or None when it is not registered. At most `MAX_SCOPES` scopes each, newest first."""
    rows = await conn.fetch(
        f"""SELECT k.i, d.activity, extract(epoch FROM d.activity_at)::float8 AS reported_at, d.platform,
                  d.token_state IN ('ACTIVE', 'STALE'), d.reach_answered, d.reach_missed,
                  extract(epoch FROM d.reach_at)::float8, c.epoch AS seen_epoch, c.sequence AS seen_sequence, {STATE}
           FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS k (app_id, user_id, device_id, i)
           JOIN devices d USING (app_id, user_id, device_id)
           LEFT JOIN LATERAL (
               SELECT s.* FROM scope_members m JOIN scopes s ON s.app_id = m.app_id AND s.scope = m.scope
               WHERE m.app_id = k.app_id AND m.user_id = k.user_id
               ORDER BY s.changed_at DESC NULLS LAST, s.scope LIMIT $4) s ON true
           LEFT JOIN device_cursors c ON (c.app_id, c.user_id, c.device_id, c.scope)
                                       = (k.app_id, k.user_id, k.device_id, s.scope)""",
        *_device_columns(devices),
        MAX_SCOPES,
    )
    views: list[DeviceView | None] = [None] * len(devices)
    for row in rows:
        (
            place,
            activity,
            reported_at,
            platform,
            usable,
            answered,
            missed,
            reach_at,
            seen_epoch,
            seen_sequence,
            *columns,
        ) = row.values()
        view = views[place - 1]
        if view is None:
            view = views[place - 1] = DeviceView(
                _activity(activity),
                reported_at or 0.0,
                Reach(usable, answered, missed, reach_at or 0.0),
                platform,
                {},
                {},
            )
        scope = columns[0]
        if scope is not None:
            view.scopes[scope] = scope_state(columns)
            if seen_sequence is not None:
                view.seen[scope] = Cursor(scope, seen_epoch, seen_sequence)
    return views


def _activity(text: str | None) -> Activity | None:
    if text is None:
        return None
    fields: dict[str, Any] = orjson.loads(text)
    return Activity(ActivityState(fields["state"]), fields["idle_s"], Network(fields["network"]), fields["battery_low"])


async def report_activity(conn: Connection, reports: Sequence[tuple[DeviceKey, Activity]]) -> None:
    """Keep the newest report of each device; devices that are not registered are passed over."""
    newest = dict(reports)
    await conn.execute(
        """UPDATE devices d SET activity = k.activity::jsonb, activity_at = syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS k (app_id, user_id, device_id, activity)
           WHERE (d.app_id, d.user_id, d.device_id) = (k.app_id, k.user_id, k.device_id)""",
        *_device_columns(list(newest)),
        [orjson.dumps(activity).decode() for activity in newest.values()],
    )


async def record_seen(conn: Connection, seen: Sequence[tuple[DeviceKey, Cursor]]) -> None:
    """Remember the newest cursor that each device has shown for a scope; older ones change nothing."""
    newest = {(device, cursor.scope): cursor for device, cursor in seen}
    await conn.execute(
        """INSERT INTO device_cursors AS c (app_id, user_id, device_id, scope, epoch, sequence, seen_at)
           SELECT k.app_id, k.user_id, k.device_id, k.scope, k.epoch, k.sequence, syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[])
                AS k (app_id, user_id, device_id, scope, epoch, sequence)
           JOIN devices d ON (d.app_id, d.user_id, d.device_id) = (k.app_id, k.user_id, k.device_id)
           JOIN scopes s ON (s.app_id, s.scope, s.epoch) = (k.app_id, k.scope, k.epoch) AND k.sequence <= s.head
           ORDER BY k.app_id, k.user_id, k.device_id, k.scope
           ON CONFLICT (app_id, user_id, device_id, scope) DO UPDATE
           SET epoch = excluded.epoch, sequence = excluded.sequence, seen_at = excluded.seen_at,
               fetched = CASE WHEN c.epoch = excluded.epoch THEN c.fetched END
           -- What is kept and ahead of the head was lost with a restore.
           WHERE c.epoch <> excluded.epoch OR c.sequence < excluded.sequence
              OR c.sequence > (SELECT s.head FROM scopes s WHERE (s.app_id, s.scope) = (c.app_id, c.scope))""",
        *_device_columns([device for device, _ in newest]),
        [scope for _, scope in newest],
        [cursor.epoch for cursor in newest.values()],
        [cursor.sequence for cursor in newest.values()],
    )


async def heads(conn: Connection, reads: Sequence[tuple[str, str | None, str]]) -> list[ScopeState | None]:
    """For each (app, user, scope) the scope's state, or None: no such scope, or `user` is not a member of it."""
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


class FeedRead(NamedTuple):
    """Which changes of a scope to read: after a sequence, up to the head that was known with the right to see them."""

    app_id: str
    scope: str
    epoch: str
    after: int
    head: int
    limit: int


class FeedPart(NamedTuple):
    """The next changes of a read, and the highest sequence of a tombstone that was gone by then."""

    pruned: int
    changes: tuple[Change, ...]


async def changes_between(conn: Connection, reads: Sequence[FeedRead]) -> list[FeedPart]:
    """The next changes of each read, oldest first. Access was checked by `heads`."""
    # `pruned` as of the same snapshot as the changes: no pause, however long, comes between the two.
    rows = await conn.fetch(
        """SELECT k.i, s.pruned, c.key, c.value::text AS value, c.deleted, c.sequence, c.changed_at
           FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[])
                WITH ORDINALITY AS k (app_id, scope, after, head, most, i)
           JOIN scopes s USING (app_id, scope)
           LEFT JOIN LATERAL (
               SELECT * FROM changes c
               WHERE c.app_id = k.app_id AND c.scope = k.scope AND c.sequence > k.after AND c.sequence <= k.head
               ORDER BY c.sequence LIMIT k.most) c ON true
           ORDER BY k.i, c.sequence""",
        [read.app_id for read in reads],
        [read.scope for read in reads],
        [read.after for read in reads],
        [read.head for read in reads],
        [read.limit for read in reads],
    )
    pruned = [0] * len(reads)
    pages: list[list[Change]] = [[] for _ in reads]
    for row in rows:
        index = row["i"] - 1
        pruned[index] = row["pruned"]
        if row["sequence"] is None:
            continue
        pages[index].append(
            Change(
                scope=reads[index].scope,
                epoch=reads[index].epoch,
                key=row["key"],
                value_json=row["value"] or "",
                deleted=row["deleted"],
                sequence=row["sequence"],
                changed_at=row["changed_at"],
            )
        )
    return [FeedPart(mark, tuple(page)) for mark, page in zip(pruned, pages, strict=True)]


async def member_scopes(conn: Connection, app_id: str, user_id: str) -> list[ScopeState]:
    """The scopes of a user, at most `MAX_SCOPES`, those that changed last first."""
    rows = await conn.fetch(
        f"""SELECT {STATE}
           FROM scope_members m JOIN scopes s USING (app_id, scope)
           WHERE m.app_id = $1 AND m.user_id = $2
           ORDER BY s.changed_at DESC NULLS LAST, s.scope LIMIT $3""",
        app_id,
        user_id,
        MAX_SCOPES,
    )
    return [scope_state(list(row.values())) for row in rows]


async def joined_starts(
    conn: Connection, app_id: str, user_id: str, scopes: Sequence[str], margin_s: float
) -> dict[str, int]:
    """For each scope the sequence before its first change since the user joined it, less `margin_s` for changes that
    had begun before and were committed after."""
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
    """(app, user) of memberships that were added in the last seconds."""
    rows = await conn.fetch(
        """SELECT app_id, user_id FROM scope_members
           WHERE added_at > syncbeat_now() - make_interval(secs => $1)
           ORDER BY added_at DESC LIMIT $2""",
        within_s,
        limit,
    )
    return [(row["app_id"], row["user_id"]) for row in rows]


async def starts(conn: Connection, app_id: str, scopes: Sequence[str], since: datetime) -> list[tuple[ScopeState, int]]:
    """Each scope's state, and the sequence before its first change since a moment (its head when there is none)."""
    rows = await conn.fetch(
        f"""SELECT {STATE},
                  coalesce((SELECT min(c.sequence) - 1 FROM changes c
                            WHERE c.app_id = s.app_id AND c.scope = s.scope AND c.changed_at >= $3), s.head) AS start
           FROM scopes s WHERE s.app_id = $1 AND s.scope = ANY($2::text[])""",
        app_id,
        list(scopes),
        since,
    )
    return [(scope_state(list(row.values())[:STATE_COLUMNS]), row["start"]) for row in rows]


async def key_sequences(conn: Connection, keys: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str, str], int]:
    """The present sequence of each (app, scope, key) that exists."""
    rows = await conn.fetch(
        """SELECT app_id, scope, key, sequence FROM changes
           JOIN unnest($1::text[], $2::text[], $3::text[]) AS k (app_id, scope, key) USING (app_id, scope, key)""",
        *([key[column] for key in keys] for column in range(3)),
    )
    return {(row["app_id"], row["scope"], row["key"]): row["sequence"] for row in rows}


async def write_changes(conn: Connection, changes: Sequence[tuple[str, int, NewChange]]) -> None:
    """Merge each (app, sequence, change) into the feed: one statement, each key once.

    The scopes are locked by `lock_scopes`, so the old values that are read here are the newest.
    """
    await conn.execute(
        """INSERT INTO changes AS c (app_id, scope, key, value, deleted, sequence, changed_at)
           SELECT app_id, scope, key,
                  CASE WHEN k.deleted THEN NULL ELSE syncbeat_merge_patch(old.value, k.patch::jsonb) END,
                  k.deleted, k.sequence, syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bool[], $6::bigint[])
                AS k (app_id, scope, key, patch, deleted, sequence)
           LEFT JOIN changes old USING (app_id, scope, key)
           ORDER BY app_id, scope, key
           ON CONFLICT (app_id, scope, key) DO UPDATE
           SET value = excluded.value, deleted = excluded.deleted,
               sequence = excluded.sequence, changed_at = excluded.changed_at""",
        [app_id for app_id, _, _ in changes],
        [change.scope for _, _, change in changes],
        [change.key for _, _, change in changes],
        [None if change.deleted else change.merge_patch_json for _, _, change in changes],
        [change.deleted for _, _, change in changes],
        [sequence for _, sequence, _ in changes],
    )


def _device_columns(devices: Sequence[DeviceKey]) -> tuple[list[str], list[str], list[str]]:
    return (
        [device.app_id for device in devices],
        [device.user_id for device in devices],
        [device.device_id for device in devices],
    )
