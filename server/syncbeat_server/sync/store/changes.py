"""Reads the change feeds of scopes, bounded in octets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

from syncbeat_server.storage.postgres.database import Connection, Row
from syncbeat_server.sync.model import Change
from syncbeat_server.sync.store.change_rows import MAX_READ_OCTETS, change_of

ROW_OCTETS = 400
"""The most that a change takes on the wire beside its value: names of scope and key, epoch, numbers, times."""


class FeedRead(NamedTuple):
    """Selects changes of a scope: after a sequence, up to the head that was read with the access check."""

    app_id: str
    scope: str
    epoch: str
    after: int
    head: int
    limit: int


class FeedPart(NamedTuple):
    """Holds the next changes of a read, their octets on the wire at most, and if others follow up to its head.

    `pruned` is the highest sequence of a removed tombstone as of the same snapshot.
    """

    pruned: int
    changes: tuple[Change, ...]
    octets: int
    more: bool


async def changes_between(conn: Connection, reads: Sequence[FeedRead], octets: int) -> list[FeedPart | None]:
    """Return the next changes of each read, oldest first; None where there was no room left for any.

    In the order of the reads as many as fit into `octets`, and one at least. Access was checked by `scope_states`.
    """
    # `pruned` is read in the snapshot of the changes, so that no pause, however long, comes between the two.
    # Sizes are summed before any value is read: values that are not sent are neither fetched nor printed.
    rows = await conn.fetch(
        f"""SELECT t.i, t.pruned, c.key, c.value, c.deleted, t.sequence, c.changed_at, c.source_time, t.octets,
                  t.followed, t.octets - $7 AS value_octets
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
               SELECT c.key, CASE WHEN c.octets <= {MAX_READ_OCTETS} THEN c.value::text END AS value, c.deleted,
                      c.changed_at, c.source_time
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
