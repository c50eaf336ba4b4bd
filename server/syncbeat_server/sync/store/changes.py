"""SQL of the change feed, of hints and of what each device has seen."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import orjson

from syncbeat_server.directory.device_locks import lock_in_order
from syncbeat_server.directory.model import MAX_SCOPES
from syncbeat_server.storage.postgres.database import Connection, Row
from syncbeat_server.sync.model import (
    Activity,
    ActivityState,
    Change,
    Cursor,
    DeviceKey,
    Network,
    Reach,
    ScopeState,
)
from syncbeat_server.sync.store.change_rows import MAX_OCTETS, MOST_READ_OCTETS, change_of
from syncbeat_server.sync.store.scopes import STATE, scope_state

ROW_OCTETS = 400
"""What a change takes on the wire beside its value, at most: the names of its scope and key, epoch, numbers, times."""

_FEW_SCOPES = 100
_ROWS_A_TURN = 500  # some two milliseconds


class DeviceView(NamedTuple):
    """What a hint is made of: the activity a device last reported and when (unix seconds), how far pushes reach it, its
    user's scopes by name (of many, those that changed last come first), the newest cursors that it has shown, the
    heads of its scopes by name where they were asked for before, and whether the user has more scopes than these."""

    activity: Activity | None
    reported_at: float
    reach: Reach
    platform: str
    scopes: dict[str, ScopeState]
    seen: dict[str, Cursor]
    heads: tuple[Cursor, ...] | None = None
    more_scopes: bool = False


async def device_views(
    conn: Connection, devices: Sequence[DeviceKey], most: int = MAX_SCOPES
) -> list[DeviceView | None]:
    """For each device its view, or None when it is not registered. At most `most` scopes each, newest first."""
    # A planner without statistics looks for each cursor among all of the device. OFFSET 0 forbids that; where scopes
    # are few it would cost a fourth more, as the planner may also join them well.
    by_key = "OFFSET 0" if most > _FEW_SCOPES else ""
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
           LEFT JOIN LATERAL (
               SELECT c.epoch, c.sequence FROM device_cursors c
               WHERE (c.app_id, c.user_id, c.device_id, c.scope) = (k.app_id, k.user_id, k.device_id, s.scope)
               {by_key}) c ON true""",
        *_device_columns(devices),
        most + 1,
    )
    views: list[DeviceView | None] = [None] * len(devices)
    for number, row in enumerate(rows, 1):
        if not number % _ROWS_A_TURN:
            await asyncio.sleep(0)  # others have their turn of the loop
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
        if len(view.scopes) == most:
            views[place - 1] = view._replace(more_scopes=True)
        elif scope is not None:
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
    there = await lock_in_order(conn, *_device_columns(list(newest)))
    newest = {device: activity for device, activity in newest.items() if tuple(device) in there}
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
    """The next changes of a read, what they take on the wire at most, whether others follow up to its head, and the
    highest sequence of a tombstone that was gone by then."""

    pruned: int
    changes: tuple[Change, ...]
    octets: int
    more: bool


async def changes_between(conn: Connection, reads: Sequence[FeedRead], octets: int) -> list[FeedPart | None]:
    """The next changes of each read, oldest first: in the order of the reads as many as fit into `octets`, and one at
    least. None: there was no room left for any of the read. Access was checked by `heads`."""
    # `pruned` as of the same snapshot as the changes: no pause, however long, comes between the two.
    # Sizes are summed before any value is looked at: what is not sent is neither fetched nor rendered.
    rows = await conn.fetch(
        f"""SELECT t.i, t.pruned, c.key, c.value, c.deleted, t.sequence, c.changed_at, t.octets, t.followed,
                  t.octets - $7 AS value_octets
           FROM (
               SELECT k.i, k.app_id, k.scope, s.pruned, c.*,
                      sum(c.octets) OVER w <= $6 OR sum(c.octets) OVER w = c.octets AS fits
               FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[])
                    WITH ORDINALITY AS k (app_id, scope, after, head, most, i)
               JOIN scopes s USING (app_id, scope)
               LEFT JOIN LATERAL (
                   SELECT c.sequence, c.octets + $7 AS octets,
                          lead(true, 1, false) OVER (ORDER BY c.sequence) AS followed
                   FROM changes c
                   WHERE c.app_id = k.app_id AND c.scope = k.scope AND c.sequence > k.after AND c.sequence <= k.head
                   ORDER BY c.sequence LIMIT k.most) c ON true
               WINDOW w AS (ORDER BY k.i, c.sequence)) t
           LEFT JOIN LATERAL (
               SELECT c.key, CASE WHEN c.octets <= {MOST_READ_OCTETS} THEN c.value::text END AS value, c.deleted,
                      c.changed_at
               FROM changes c
               WHERE c.app_id = t.app_id AND c.scope = t.scope AND c.sequence = t.sequence LIMIT 1) c ON true
           WHERE t.fits IS NOT FALSE
           ORDER BY t.i, t.sequence""",
        [read.app_id for read in reads],
        [read.scope for read in reads],
        [read.after for read in reads],
        [read.head for read in reads],
        [read.limit for read in reads],
        octets,
        ROW_OCTETS,
    )
    parts: list[FeedPart | None] = [None] * len(reads)
    for place, of_read in itertools.groupby(rows, key=itemgetter("i")):
        parts[place - 1] = await _part(reads[place - 1], list(of_read))
    return parts


async def _part(read: FeedRead, rows: Sequence[Row]) -> FeedPart:
    found = [row for row in rows if row["sequence"] is not None]
    changes = tuple([await change_of(row, read.scope, read.epoch) for row in found])
    more = bool(found) and found[-1]["followed"]
    return FeedPart(rows[0]["pruned"], changes, sum(row["octets"] for row in found), more)


async def member_scopes(conn: Connection, app_id: str, user_id: str) -> tuple[list[ScopeState], bool]:
    """The scopes of a user, at most `MAX_SCOPES`, those that changed last first; and whether there are more."""
    rows = await conn.fetch(
        f"""SELECT {STATE}
           FROM scope_members m JOIN scopes s USING (app_id, scope)
           WHERE m.app_id = $1 AND m.user_id = $2
           ORDER BY s.changed_at DESC NULLS LAST, s.scope LIMIT $3""",
        app_id,
        user_id,
        MAX_SCOPES + 1,
    )
    return [scope_state(list(row.values())) for row in rows[:MAX_SCOPES]], len(rows) > MAX_SCOPES


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


async def key_sequences(conn: Connection, keys: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str, str], int]:
    """The present sequence of each (app, scope, key) that exists."""
    rows = await conn.fetch(
        """SELECT app_id, scope, key, sequence FROM changes
           JOIN unnest($1::text[], $2::text[], $3::text[]) AS k (app_id, scope, key) USING (app_id, scope, key)""",
        *([key[column] for key in keys] for column in range(3)),
    )
    return {(row["app_id"], row["scope"], row["key"]): row["sequence"] for row in rows}


class Write(NamedTuple):
    """What becomes of one key: merged with `patch`, after what `reset` takes away, or without a patch deleted. `whole`:
    `patch` is the value itself."""

    app_id: str
    scope: str
    key: str
    sequence: int
    reset: str | None
    patch: str | None
    whole: bool = False


# $1 to $7 are the columns of `Write`.
_MERGED = """SELECT k.*, CASE WHEN k.patch IS NULL THEN NULL
                   WHEN k.whole THEN k.patch::jsonb
                   WHEN k.reset IS NULL THEN syncbeat_merge_patch(old.value, k.patch::jsonb)
                   ELSE syncbeat_merge_patch(syncbeat_merge_patch(old.value, k.reset::jsonb), k.patch::jsonb)
                   END AS value
           FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::bool[])
                WITH ORDINALITY AS k (app_id, scope, key, sequence, reset, patch, whole, i)
           LEFT JOIN changes old USING (app_id, scope, key)"""


async def write_changes(conn: Connection, writes: Sequence[Write]) -> None:
    """Write keys into the feed, each once: one statement.

    The scopes are locked by `lock_scopes`, so the old values that are read here are the newest.
    """
    await conn.execute(
        f"""INSERT INTO changes AS c (app_id, scope, key, value, deleted, sequence, changed_at)
           SELECT app_id, scope, key, value, patch IS NULL, sequence, syncbeat_now() FROM ({_MERGED}) AS merged
           ORDER BY app_id, scope, key
           ON CONFLICT (app_id, scope, key) DO UPDATE
           SET value = excluded.value, deleted = excluded.deleted,
               sequence = excluded.sequence, changed_at = excluded.changed_at, xid = excluded.xid""",
        *_write_columns(writes),
    )


async def value_of(conn: Connection, app_id: str, scope: str, key: str) -> str | None:
    """Returns the present value of a key, as JSON; None: it has none."""
    value: str | None = await conn.fetchval(
        "SELECT value::text FROM changes WHERE app_id = $1 AND scope = $2 AND key = $3", app_id, scope, key
    )
    return value


async def octets_of(conn: Connection, keys: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str, str], int]:
    """What the present value of each (app, scope, key) that exists takes as JSON, without reading it."""
    rows = await conn.fetch(
        """SELECT app_id, scope, key, octets FROM changes
           JOIN unnest($1::text[], $2::text[], $3::text[]) AS k (app_id, scope, key) USING (app_id, scope, key)""",
        *([key[column] for key in keys] for column in range(3)),
    )
    return {(row["app_id"], row["scope"], row["key"]): row["octets"] for row in rows}


async def oversized(conn: Connection, writes: Sequence[Write]) -> list[int]:
    """The places of those writes whose value would pass what a value may come to."""
    rows = await conn.fetch(
        f"""SELECT i - 1 AS place FROM ({_MERGED}) AS merged
            WHERE greatest(octet_length(value::text), pg_column_size(value)) > {MAX_OCTETS} ORDER BY 1""",
        *_write_columns(writes),
    )
    return [row["place"] for row in rows]


def _write_columns(writes: Sequence[Write]) -> list[list[Any]]:
    return [list(column) for column in zip(*writes, strict=True)]


def _device_columns(devices: Sequence[DeviceKey]) -> tuple[list[str], list[str], list[str]]:
    return (
        [device.app_id for device in devices],
        [device.user_id for device in devices],
        [device.device_id for device in devices],
    )
