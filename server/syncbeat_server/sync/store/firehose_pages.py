"""Reads what was committed in an app between two snapshots, a page at a time, for streams of whole apps.

Each row names the transaction that wrote it last. A sequence is allocated under the lock of the scope's row, which is
released only after the transaction has ended for everybody: so within a scope, the rows that a snapshot lacks are those
with the highest sequences, and going from snapshot to snapshot, and within by (scope, sequence), keeps the order of
each scope. The order of transaction numbers would not: a transaction may get its number long before it gets the lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from syncbeat_server.storage.postgres.database import Connection, Row
from syncbeat_server.sync.content.firehose_token import FeedPosition, Snapshot, feed_name, parse_snapshot
from syncbeat_server.sync.model import Change
from syncbeat_server.sync.store.change_rows import MAX_READ_OCTETS, change_of

MAX_CHANGES = 500
MAX_OCTETS = 1 << 20
MAX_ENTRIES = 20_000
"""Rows that a statement looks at: some 20 ms.

Up to this many are found by their transactions and sorted for each page; where there are more, all rows of the app are
scanned in order, this many a page, which is less work then.
"""

# An operator increases it to end all tokens (storage/postgres/restore_detection.py).
_GENERATION = "(SELECT feed_generation FROM deployment)"


class FeedState(NamedTuple):
    """Describes a feed as one statement saw it: its name, and the moment.

    `pruned` is the last transaction of which a tombstone was removed; 0 while none was.
    """

    name: str
    now: Snapshot
    pruned: int


class FirehosePage(NamedTuple):
    """Holds rows of one pass in order of (scope, sequence), all committed by `until`.

    `after` is the start of the pass's next page; None ends the pass. `in_order`: the pass has too many rows to sort for
    each page, and scans all rows in order.
    """

    feed: FeedState
    until: Snapshot
    changes: tuple[Change, ...]
    after: tuple[str, int] | None
    in_order: bool


# A mark that came with a dump belongs to another feed, and does not count here.
_STATE = f"""
    syncbeat_feed_identity() || '.' || {_GENERATION} AS identity, now::text AS now,
    coalesce((SELECT p.xid FROM pruned_feeds p WHERE p.app_id = $1 AND p.feed = syncbeat_feed_identity()), '0')::text
        AS pruned"""

_PAGED = f"page AS MATERIALIZED (SELECT tuple FROM news ORDER BY scope, sequence LIMIT {MAX_CHANGES})"

_MOMENTS = """
    place AS MATERIALIZED (
        SELECT pg_current_snapshot() AS now, coalesce($3::text::pg_snapshot, pg_current_snapshot()) AS until)"""

# By transaction: from the first that had not begun, and those that were running. Ordered ranges, even of one number,
# and rows by their ctid, leave the planner no other plan than the index, however common a number is.
_NEW_BY_TRANSACTION = f"""
    entries AS MATERIALIZED (
        (SELECT c.ctid AS tuple, c.scope, c.sequence, c.xid FROM changes c
         WHERE c.app_id = $1 AND c.xid >= pg_snapshot_xmax($2::text::pg_snapshot) AND c.xid > '0'
           AND c.xid < (SELECT pg_snapshot_xmax(until) FROM place)
         ORDER BY c.xid LIMIT {MAX_ENTRIES + 1})
        UNION ALL
        (SELECT f.* FROM pg_snapshot_xip($2::text::pg_snapshot) running CROSS JOIN LATERAL (
             SELECT c.ctid, c.scope, c.sequence, c.xid FROM changes c
             WHERE c.app_id = $1 AND c.xid >= running AND c.xid <= running AND c.xid > '0'
             ORDER BY c.xid LIMIT {MAX_ENTRIES + 1}) f
         LIMIT {MAX_ENTRIES + 1})),
    news AS (
        SELECT e.* FROM entries e, place
        WHERE pg_visible_in_snapshot(e.xid, until) AND (e.scope, e.sequence) > ($4, $5::bigint)),
    {_PAGED},
    ends AS (
        SELECT NULL::text AS last_scope, NULL::bigint AS last_sequence,
               (SELECT count(*) FROM entries) > {MAX_ENTRIES} AS crowded)"""

# In order of (scope, sequence), whichever transaction wrote it. Without `since` everything is new, including rows that
# came with a dump from a cluster with higher numbers: they are visible although no transaction here has such a number.
# The scan ends where the page is full; `ends` continues from the last row that was passed only where it is not.
_NEW_IN_ORDER = f"""
    entries AS NOT MATERIALIZED (
        SELECT c.ctid AS tuple, c.scope, c.sequence, c.xid FROM changes c
        WHERE c.app_id = $1 AND (c.scope, c.sequence) > ($4, $5::bigint)
        ORDER BY c.scope, c.sequence LIMIT {MAX_ENTRIES}),
    news AS NOT MATERIALIZED (
        SELECT * FROM entries
        WHERE ($2::text IS NULL OR NOT pg_visible_in_snapshot(xid, $2::text::pg_snapshot))
          AND (pg_visible_in_snapshot(xid, (SELECT until FROM place))
               OR $2::text IS NULL AND xid >= (SELECT pg_snapshot_xmax(now) FROM place))),
    {_PAGED},
    ends AS (
        SELECT scope AS last_scope, sequence AS last_sequence, true AS crowded FROM entries
        WHERE (SELECT count(*) FROM page) < {MAX_CHANGES}
        ORDER BY scope, sequence OFFSET {MAX_ENTRIES - 1})"""

_SIZED = f"""
    sized AS (
        SELECT c.scope, s.epoch, c.key, c.value, c.deleted, c.sequence, c.changed_at,
               c.source_time, c.octets AS value_octets,
               row_number() OVER w AS n, sum(c.octets) OVER w AS octets
        FROM changes c JOIN scopes s ON (s.app_id, s.scope) = (c.app_id, c.scope)
        WHERE c.ctid = ANY (ARRAY(SELECT tuple FROM page))
        WINDOW w AS (ORDER BY c.scope, c.sequence ROWS UNBOUNDED PRECEDING)),
    state AS MATERIALIZED (
        SELECT {_STATE}, until::text AS until, (SELECT count(*) FROM page) AS paged, ends.*
        FROM place LEFT JOIN ends ON true)
    SELECT state.*, z.scope, z.epoch, z.key, z.value_octets,
           CASE WHEN z.value_octets <= {MAX_READ_OCTETS} THEN z.value::text END AS value,
           z.deleted, z.sequence, z.changed_at, z.source_time
    FROM state LEFT JOIN sized z ON z.n = 1 OR z.octets <= {MAX_OCTETS} ORDER BY z.n"""

BY_TRANSACTION = f"WITH {_MOMENTS}, {_NEW_BY_TRANSACTION}, {_SIZED}"
IN_ORDER = f"WITH {_MOMENTS}, {_NEW_IN_ORDER}, {_SIZED}"


async def current_feed(conn: Connection, app_id: str) -> FeedState:
    """Return the present state of an app's feed."""
    (row,) = await conn.fetch(f"SELECT {_STATE} FROM (SELECT pg_current_snapshot() AS now) place", app_id)
    return _feed_state(row)


async def next_page(conn: Connection, app_id: str, position: FeedPosition, *, in_order: bool) -> FirehosePage:
    """Return the page after a position: the next of its pass, or the first of a new pass that goes up to now."""
    arguments = (
        app_id,
        None if position.since is None else position.since.text,
        None if position.until is None else position.until.text,
        *position.after,
    )
    if not in_order and position.since is not None:
        rows = await conn.fetch(BY_TRANSACTION, *arguments)
        if not rows[0]["crowded"]:
            return await _page(rows, in_order=False)
    return await _page(await conn.fetch(IN_ORDER, *arguments), in_order=True)


def _feed_state(row: Row) -> FeedState:
    return FeedState(feed_name(row["identity"]), parse_snapshot(row["now"]), int(row["pruned"]))


async def _page(rows: Sequence[Row], *, in_order: bool) -> FirehosePage:
    first = rows[0]
    changes = tuple([await change_of(row, row["scope"], row["epoch"]) for row in rows if row["scope"] is not None])
    after = None
    if changes and (len(changes) < first["paged"] or first["paged"] == MAX_CHANGES):
        after = (changes[-1].scope, changes[-1].sequence)
    elif first["last_scope"] is not None:
        after = (first["last_scope"], first["last_sequence"])
    return FirehosePage(_feed_state(first), parse_snapshot(first["until"]), changes, after, in_order)
