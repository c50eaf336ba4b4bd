"""Reads the inputs of a device's hint in one statement."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from syncbeat_server.directory.model import MAX_SCOPES
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.sync.model import Activity, ActivityState, Cursor, DeviceKey, Network, Reach, ScopeState
from syncbeat_server.sync.store.device_cursors import device_columns
from syncbeat_server.sync.store.scopes import STATE, scope_state

_FEW_SCOPES = 100
_ROWS_PER_TURN = 500  # some two milliseconds


class DeviceView(NamedTuple):
    """Holds the inputs of a device's hint.

    They are the activity it last reported and when (unix seconds), the reach of pushes, its user's scopes by name, most
    recently changed first where they are many, the newest cursors that it has shown, and the heads in order of names if
    they were computed before. `more_scopes`: its user has more scopes than these.
    """

    activity: Activity | None
    reported_at: float
    reach: Reach
    platform: str
    scopes: dict[str, ScopeState]
    shown: dict[str, Cursor]
    heads: tuple[Cursor, ...] | None = None
    more_scopes: bool = False


async def read_device_views(
    conn: Connection, devices: Sequence[DeviceKey], max_scopes: int = MAX_SCOPES
) -> list[DeviceView | None]:
    """Return the view of each device, or None if it is not registered, with its `max_scopes` newest scopes."""
    # A planner without statistics searches for each cursor among all of the device. OFFSET 0 prevents that; for few
    # scopes it would cost a fourth more, as the planner may also find a good join.
    by_key = "OFFSET 0" if max_scopes > _FEW_SCOPES else ""
    rows = await conn.fetch(
        f"""SELECT k.i, d.activity, extract(epoch FROM d.activity_at)::float8 AS reported_at, d.platform,
                  d.token_state IN ('ACTIVE', 'STALE'), d.reach_answered, d.reach_missed,
                  extract(epoch FROM d.reach_at)::float8, c.epoch AS shown_epoch, c.sequence AS shown_sequence, {STATE}
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
        *device_columns(devices),
        max_scopes + 1,
    )
    views: list[DeviceView | None] = [None] * len(devices)
    for number, row in enumerate(rows, 1):
        if not number % _ROWS_PER_TURN:
            await asyncio.sleep(0)  # so that others get their turn of the event loop
        (
            place,
            activity,
            reported_at,
            platform,
            usable,
            answered,
            missed,
            reach_at,
            shown_epoch,
            shown_sequence,
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
        if len(view.scopes) == max_scopes:
            views[place - 1] = view._replace(more_scopes=True)
        elif scope is not None:
            view.scopes[scope] = scope_state(columns)
            if shown_sequence is not None:
                view.shown[scope] = Cursor(scope, shown_epoch, shown_sequence)
    return views


def _activity(text: str | None) -> Activity | None:
    if text is None:
        return None
    fields: dict[str, Any] = orjson.loads(text)
    return Activity(ActivityState(fields["state"]), fields["idle_s"], Network(fields["network"]), fields["battery_low"])
