"""Reads when the values of keys were made at their source, and ranks those that were made at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.sync.store.change_writes import ChangeKey


class Version(NamedTuple):
    """Holds what a key has: its sequence, and when that was made."""

    sequence: int
    made_at: datetime


class Candidate(NamedTuple):
    """Describes a value that was made when another of its key was: JSON, or None for a deletion."""

    app_id: str
    scope: str
    key: str
    made_at: datetime
    value: str | None


class Ranks(NamedTuple):
    """Holds ranks of values among those of their key and time. Equal ones are the same value; the greatest stays."""

    stored: dict[ChangeKey, int]
    candidates: list[int]


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
        SELECT app_id, scope, key, made_at, i, value IS NULL AS deleted, coalesce(value::jsonb::text, '') AS value
        FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::text[])
             WITH ORDINALITY AS k (app_id, scope, key, made_at, value, i)),
    tied AS (
        SELECT app_id, scope, key, made_at, i, deleted, octet_length(value) AS octets, value FROM given
        UNION ALL
        SELECT c.app_id, c.scope, c.key, g.made_at, 0, c.deleted, c.octets,
               CASE WHEN c.octets = ANY (g.octets) THEN c.value::text END
        FROM (SELECT app_id, scope, key, made_at, array_agg(octet_length(value)) AS octets FROM given
              GROUP BY app_id, scope, key, made_at) g
        JOIN changes c USING (app_id, scope, key)
        WHERE coalesce(c.source_time, c.changed_at) = g.made_at)
    SELECT app_id, scope, key, i, dense_rank() OVER (
        PARTITION BY app_id, scope, key, made_at
        ORDER BY deleted, octets, coalesce(value, '') COLLATE "C") AS rank
    FROM tied"""


async def rank_ties(conn: Connection, candidates: Sequence[Candidate]) -> Ranks:
    """Rank candidates, and what their keys have of the same time, by what the values are, on whichever path they came.

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
