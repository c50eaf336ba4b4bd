"""Writes scopes and users as a plain JSON document, whose form docs/migrate/export.md tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from syncbeat_server.storage.postgres.database import Row
from syncbeat_server.storage.postgres.snapshot import Snapshot
from syncbeat_server.transfer.export.json_stream import JsonStream
from syncbeat_server.transfer.export.ordered_rows import OrderedRows, first_name
from syncbeat_server.transfer.store import app_rows

FORMAT = "syncbeat-app-1"


@dataclass(frozen=True)
class AppSelection:
    """Selects what of an app is exported: all of it, one scope, or the scopes and the account of one user."""

    app_id: str
    scope: str | None = None
    user_id: str | None = None


@dataclass
class Exported:
    """Counts what was written; `values` without tombstones."""

    scopes: int = 0
    values: int = 0
    tombstones: int = 0
    members: int = 0
    users: int = 0


async def export_app(snapshot: Snapshot, selected: AppSelection, write: Callable[[str], object]) -> Exported:
    """Write what is selected as one JSON document and return the counts.

    Raises:
        DependencyDown: the database does not answer; what was written is no whole document.
    """
    stream = JsonStream(write)
    with stream.object():
        stream.member("format", _text(FORMAT))
        stream.member("app_id", _text(selected.app_id))
        stream.member("taken_at", _time(snapshot.taken_at))
        counts = await write_scopes(stream, snapshot, selected, members=True)
        if selected.scope is None:
            counts.users = await _write_users(stream, snapshot, selected)
    return counts


async def write_scopes(stream: JsonStream, snapshot: Snapshot, selected: AppSelection, *, members: bool) -> Exported:
    """Write the member `scopes` of the object that is open: each scope with its values, with its members if asked."""
    counts = Exported()
    of = (selected.app_id, selected.scope, selected.user_id)
    values = OrderedRows(app_rows.value_rows(snapshot, *of), "scope")
    joined = OrderedRows(app_rows.member_rows(snapshot, *of), "scope") if members else None
    with stream.object("scopes"):
        async for scope in app_rows.scope_rows(snapshot, *of):
            counts.scopes += 1
            with stream.object(scope["scope"]):
                stream.member("epoch", _text(scope["epoch"]))
                stream.member("head", str(scope["head"]))
                stream.member("created_at", _time(scope["created_at"]))
                if joined is not None:
                    with stream.object("members"):
                        async for row in joined.group(scope["scope"]):
                            stream.member(row["user_id"], _dump({"role": row["role"], "added_at": row["added_at"]}))
                            counts.members += 1
                with stream.object("values"):
                    async for row in values.group(scope["scope"]):
                        stream.member(row["key"], _value(row))
                        counts.values += not row["deleted"]
                        counts.tombstones += row["deleted"]
    return counts


async def _write_users(stream: JsonStream, snapshot: Snapshot, selected: AppSelection) -> int:
    of = (selected.app_id, selected.user_id)
    devices = OrderedRows(app_rows.device_rows(snapshot, *of), "user_id")
    preferences = OrderedRows(app_rows.preference_rows(snapshot, *of), "user_id")
    accounts = OrderedRows(app_rows.account_rows(snapshot, *of), "user_id")
    count = 0
    with stream.object("users"):
        # A device or a preference may be of a user that no token has shown yet, so that `users` has no row.
        while (user_id := await first_name(accounts, devices, preferences)) is not None:
            count += 1
            with stream.object(user_id):
                async for row in accounts.group(user_id):
                    fields = ("created_at", "disabled_at", "deleted_at")
                    stream.member("account", _dump({name: row[name] for name in fields}))
                async for row in preferences.group(user_id):
                    stream.member("preferences", _dump({k: v for k, v in row.items() if k != "user_id"}))
                with stream.object("devices"):
                    async for row in devices.group(user_id):
                        fields_of_device = {k: v for k, v in row.items() if k not in ("user_id", "device_id")}
                        stream.member(row["device_id"], _dump(fields_of_device))
    return count


def _value(row: Row) -> str:
    known = {name: row[name] for name in ("sequence", "changed_at", "source_time")}
    rest = _dump(known)[1:-1]
    return f'{{"deleted":true,{rest}}}' if row["deleted"] else f'{{"value":{row["value"]},{rest}}}'


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _time(moment: datetime) -> str:
    return _text(moment.astimezone(UTC).isoformat())


def _dump(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), default=_plain)


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    raise TypeError(f"no form for {type(value).__name__}")
