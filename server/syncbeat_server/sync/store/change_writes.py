"""Writes the values of keys in the change feed, and reads what a write depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import islice
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


class Version(NamedTuple):
    """Holds what a key has: its sequence, and when that was made."""

    sequence: int
    made_at: datetime


class Candidate(NamedTuple):
    """Describes a value that may be what its key has, or meets another of its time: JSON, or None for a deletion."""

    app_id: str
    scope: str
    key: str
    value: str | None


class Ranks(NamedTuple):
    """Holds ranks, from 1 on, of values among those of their key. Equal ones are the same value; of one time the
    greatest stays."""

    stored: dict[ChangeKey, int]
    candidates: list[int]


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
    source_time: datetime | None = None

    @property
    def change_key(self) -> ChangeKey:
        """Return the primary key of the row."""
        return self[:3]


_COLUMNS = 8  # of `Write`, which are $1 to $8; its source time is a parameter of its own


def _merged_sql(source_times: int | None = None) -> str:
    types, names = "", ""
    if source_times is not None:
        types, names = f", ${source_times}::timestamptz[]", ", source_time"
    return f"""SELECT k.*, CASE WHEN k.patch IS NULL THEN NULL
                   WHEN k.whole THEN k.patch::jsonb
                   WHEN k.flat THEN CASE WHEN jsonb_typeof(old.value) = 'object' THEN old.value || k.patch::jsonb
                                         ELSE k.patch::jsonb END
                   WHEN k.reset IS NULL THEN syncbeat_merge_patch(old.value, k.patch::jsonb)
                   ELSE syncbeat_merge_patch(syncbeat_merge_patch(old.value, k.reset::jsonb), k.patch::jsonb)
                   END AS value
           FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::bool[],
                       $8::bool[]{types})
                WITH ORDINALITY AS k (app_id, scope, key, sequence, reset, patch, whole, flat{names}, i)
           LEFT JOIN changes old USING (app_id, scope, key)"""


def write_sql(source_times: int | None = None) -> str:
    """Return the statement that writes keys into the feed, each once; its parameters are the `write_columns`.

    `$source_times` is that of the `source_times`, where any of the writes has one. A write without one leaves none of
    before. The scopes are locked before it, so the old values that it reads are the newest.
    """
    name = "" if source_times is None else ", source_time"
    return f"""INSERT INTO changes AS c (app_id, scope, key, value, deleted, sequence, changed_at{name})
        SELECT app_id, scope, key, value, patch IS NULL, sequence, syncbeat_now(){name}
        FROM ({_merged_sql(source_times)}) AS merged
        ORDER BY app_id, scope, key
        ON CONFLICT (app_id, scope, key) DO UPDATE
        SET value = excluded.value, deleted = excluded.deleted, sequence = excluded.sequence,
            changed_at = excluded.changed_at, xid = excluded.xid, source_time = excluded.source_time"""


_WRITE = write_sql()
_WRITE_WITH_SOURCE_TIMES = write_sql(_COLUMNS + 1)


async def write_changes(conn: Connection, writes: Sequence[Write]) -> None:
    """Write keys into the feed, each once, in one statement."""
    times = source_times(writes)
    await conn.execute(_WRITE_WITH_SOURCE_TIMES if times else _WRITE, *write_columns(writes), *times)


async def versions(conn: Connection, keys: Sequence[ChangeKey]) -> dict[ChangeKey, Version]:
    """Return what each (app, scope, key) has, value or tombstone: made at its source time, or when it was published."""
    rows = await conn.fetch(
        """SELECT app_id, scope, key, sequence, coalesce(source_time, changed_at) AS made_at FROM changes
           JOIN unnest($1::text[], $2::text[], $3::text[]) AS k (app_id, scope, key) USING (app_id, scope, key)""",
        *([key[column] for key in keys] for column in range(3)),
    )
    return {(row["app_id"], row["scope"], row["key"]): Version(row["sequence"], row["made_at"]) for row in rows}


# A deletion is the greatest, then the longer value, then the greater by bytes: so a stored value is read only where it
# is as long as a candidate, and what is compared is bounded by the candidates.
_RANK = """
    WITH given AS MATERIALIZED (
        SELECT app_id, scope, key, i, value IS NULL AS deleted, coalesce(value::jsonb::text, '') AS value
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
             WITH ORDINALITY AS k (app_id, scope, key, value, i)),
    met AS (
        SELECT app_id, scope, key, i, deleted, octet_length(value) AS octets, value FROM given
        UNION ALL
        SELECT c.app_id, c.scope, c.key, 0, c.deleted, c.octets,
               CASE WHEN c.octets = ANY (g.octets) THEN c.value::text END
        FROM (SELECT app_id, scope, key, array_agg(octet_length(value)) AS octets FROM given
              GROUP BY app_id, scope, key) g
        JOIN changes c USING (app_id, scope, key))
    SELECT app_id, scope, key, i, dense_rank() OVER (
        PARTITION BY app_id, scope, key ORDER BY deleted, octets, coalesce(value, '') COLLATE "C") AS rank
    FROM met"""


async def rank_values(conn: Connection, candidates: Sequence[Candidate]) -> Ranks:
    """Rank candidates, and what their keys have, by what the values are, on whichever path they came.

    Raises:
        StatementRejected: PostgreSQL cannot store a value.
    """
    found = Ranks({}, [0] * len(candidates))
    for row in await conn.fetch(_RANK, *map(list, zip(*candidates, strict=True))):
        if row["i"]:
            found.candidates[row["i"] - 1] = row["rank"]
        else:
            found.stored[row["app_id"], row["scope"], row["key"]] = row["rank"]
    return found


async def raise_source_times(conn: Connection, source_times: Mapping[ChangeKey, datetime]) -> None:
    """Give values that are there a later source time. Nothing else of their rows changes, and no reader is told."""
    await conn.execute(
        """UPDATE changes c SET source_time = k.source_time
           FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[]) AS k (app_id, scope, key, source_time)
           WHERE c.app_id = k.app_id AND c.scope = k.scope AND c.key = k.key""",
        *([key[column] for key in source_times] for column in range(3)),
        list(source_times.values()),
    )


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
        f"""SELECT i - 1 AS place FROM ({_merged_sql()}) AS merged
            WHERE greatest(octet_length(value::text), pg_column_size(value)) > {VALUE_OCTETS} ORDER BY 1""",
        *write_columns(writes),
    )
    return [row["place"] for row in rows]


def write_columns(writes: Sequence[Write]) -> list[list[Any]]:
    """Return the columns of `write_sql` but the source times."""
    if not writes:
        return [[] for _ in range(_COLUMNS)]
    return [list(column) for column in islice(zip(*writes, strict=True), _COLUMNS)]


def source_times(writes: Sequence[Write]) -> list[list[datetime | None]]:
    """Return the column of the source times alone, and none if no write has one."""
    times = [write.source_time for write in writes]
    return [times] if any(times) else []
