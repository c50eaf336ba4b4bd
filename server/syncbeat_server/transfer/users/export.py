"""Exports what is stored of one user, by the declared tables, from one snapshot."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC

from syncbeat_server.storage.postgres.snapshot import Snapshot
from syncbeat_server.transfer.export.app_document import AppSelection, write_scopes
from syncbeat_server.transfer.export.json_stream import JsonStream
from syncbeat_server.transfer.users.rows import user_rows
from syncbeat_server.transfer.users.tables import USER_TABLES

FORMAT = "syncbeat-user-1"


async def export_user(
    snapshot: Snapshot, app_id: str, user_id: str, write: Callable[[str], object], *, with_values: bool
) -> dict[str, int]:
    """Write all that is stored of a user as one JSON document; return the number of rows by table.

    `with_values`: also the values of the scopes of which the user is a member, whoever wrote them.

    Raises:
        DependencyDown: the database does not answer; what was written is no whole document.
    """
    stream, counts = JsonStream(write), dict[str, int]()
    with stream.object():
        stream.member("format", json.dumps(FORMAT))
        stream.member("app_id", json.dumps(app_id, ensure_ascii=False))
        stream.member("user_id", json.dumps(user_id, ensure_ascii=False))
        stream.member("taken_at", json.dumps(snapshot.taken_at.astimezone(UTC).isoformat()))
        with stream.object("tables"):
            for name, table in USER_TABLES.items():
                with stream.array(name):
                    counts[name] = 0
                    async for row in user_rows(snapshot, name, table, app_id, user_id):
                        stream.item(row)
                        counts[name] += 1
        if with_values:
            await write_scopes(stream, snapshot, AppSelection(app_id, user_id=user_id), members=False)
    return counts
