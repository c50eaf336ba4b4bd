"""Writes the values of keys in the change feed, and reads what a write depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from syncbeat_server.defaults import VALUE_OCTETS
from syncbeat_server.storage.postgres.database import Connection

ChangeKey = tuple[str, str, str]
"""The app, the scope and the key."""


async def key_sequences(conn: Connection, keys: Sequence[ChangeKey]) -> dict[ChangeKey, int]:
    """Return the present sequence of each (app, scope, key) that exists."""
    rows = await conn.fetch(
        """SELECT app_id, scope, key, sequence FROM changes
           JOIN unnest($1::text[], $2::text[], $3::text[]) AS k (app_id, scope, key) USING (app_id, scope, key)""",
        *([key[column] for key in keys] for column in range(3)),
    )
    return {(row["app_id"], row["scope"], row["key"]): row["sequence"] for row in rows}


class Write(NamedTuple):
    """Describes the write of one key: a merge with `patch` after that with `reset`, or a deletion without a patch.

    `whole`: `patch` is the new value itself. `flat`: `patch` is an object without a member that is an object or null,
    which PostgreSQL merges without calling a function.
    """

    app_id: str
    scope: str
    key: str
    sequence: int
    reset: str | None
    patch: str | None
    whole: bool = False
    flat: bool = False

    @property
    def change_key(self) -> ChangeKey:
        """Return the primary key of the row."""
        return self[:3]


# $1 to $8 are the columns of `Write`.
_MERGED = """SELECT k.*, CASE WHEN k.patch IS NULL THEN NULL
                   WHEN k.whole THEN k.patch::jsonb
                   WHEN k.flat THEN CASE WHEN jsonb_typeof(old.value) = 'object' THEN old.value || k.patch::jsonb
                                         ELSE k.patch::jsonb END
                   WHEN k.reset IS NULL THEN syncbeat_merge_patch(old.value, k.patch::jsonb)
                   ELSE syncbeat_merge_patch(syncbeat_merge_patch(old.value, k.reset::jsonb), k.patch::jsonb)
                   END AS value
           FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::bool[],
                       $8::bool[])
                WITH ORDINALITY AS k (app_id, scope, key, sequence, reset, patch, whole, flat, i)
           LEFT JOIN changes old USING (app_id, scope, key)"""


WRITE = f"""INSERT INTO changes AS c (app_id, scope, key, value, deleted, sequence, changed_at)
    SELECT app_id, scope, key, value, patch IS NULL, sequence, syncbeat_now() FROM ({_MERGED}) AS merged
    ORDER BY app_id, scope, key
    ON CONFLICT (app_id, scope, key) DO UPDATE
    SET value = excluded.value, deleted = excluded.deleted,
        sequence = excluded.sequence, changed_at = excluded.changed_at, xid = excluded.xid"""
"""The statement that writes keys into the feed, each once; its parameters are the `write_columns`.

The scopes are locked before it, so the old values that it reads are the newest.
"""


async def write_changes(conn: Connection, writes: Sequence[Write]) -> None:
    """Write keys into the feed, each once, in one statement."""
    await conn.execute(WRITE, *write_columns(writes))


async def value_of(conn: Connection, app_id: str, scope: str, key: str) -> str | None:
    """Return the present value of a key as JSON; None if it has none."""
    value: str | None = await conn.fetchval(
        "SELECT value::text FROM changes WHERE app_id = $1 AND scope = $2 AND key = $3", app_id, scope, key
    )
    return value


async def octets_of(conn: Connection, keys: Sequence[ChangeKey]) -> dict[ChangeKey, int]:
    """Return the size as JSON of the present value of each (app, scope, key) that exists, without reading it."""
    rows = await conn.fetch(
        """SELECT app_id, scope, key, octets FROM changes
           JOIN unnest($1::text[], $2::text[], $3::text[]) AS k (app_id, scope, key) USING (app_id, scope, key)""",
        *([key[column] for key in keys] for column in range(3)),
    )
    return {(row["app_id"], row["scope"], row["key"]): row["octets"] for row in rows}


async def oversized(conn: Connection, writes: Sequence[Write]) -> list[int]:
    """Return the indexes of the writes whose value would exceed the largest size."""
    rows = await conn.fetch(
        f"""SELECT i - 1 AS place FROM ({_MERGED}) AS merged
            WHERE greatest(octet_length(value::text), pg_column_size(value)) > {VALUE_OCTETS} ORDER BY 1""",
        *write_columns(writes),
    )
    return [row["place"] for row in rows]


def write_columns(writes: Sequence[Write]) -> list[list[Any]]:
    """Return the columns of `WRITE`."""
    return [list(column) for column in zip(*writes, strict=True)]
