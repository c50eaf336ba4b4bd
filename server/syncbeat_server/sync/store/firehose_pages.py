"""SQL of the streams of a whole app: what was committed between two snapshots, a page at a time.

Every row names the transaction that wrote it last. A sequence is given out under the lock of the scope's row, which is
let go only after the transaction has ended for everybody: so of a scope, what a snapshot does not hold is what has the
highest sequences, and going from snapshot to snapshot, and within by (scope, sequence), keeps the order of each scope.
By the number of the transaction it would not be: one may be numbered long before it comes to the lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from syncbeat_server.storage.postgres.database import Connection, Row
from syncbeat_server.sync.content.firehose_token import Place, Snapshot, feed_of, snapshot_of
from syncbeat_server.sync.model import Change
from syncbeat_server.sync.store.change_rows import MOST_READ_OCTETS, change_of

MAX_CHANGES = 500
MAX_OCTETS = 1 << 20
MOST_ENTRIES = 20_000
"""How many rows a statement looks at: some 20 ms. Up to so many are found by their transactions and sorted for each
page; where there are more, all rows of the app are passed in order, so many a page, which is less work then."""

# What an operator begins anew to end all tokens (storage/postgres/restore_detection.py).
_GENERATION = "(SELECT feed_generation FROM deployment)"


class Look(NamedTuple):
    """What one statement saw: which feed it was, as of when, and the last transaction whose tombstones were removed (0:
    none was)."""

    feed: str
    now: Snapshot
    pruned: int


class Page(NamedTuple):
    """Rows of one round, in order of (scope, sequence), none of which ended after `until`. `after`: where the next page
    of the round begins; None: it is over. `crowded`: the round has too many rows to be sorted for each page."""

    look: Look
    until: Snapshot
    changes: tuple[Change, ...]
    after: tuple[str, int] | None
    crowded: bool


# A mark that came with a dump is of another feed, and says nothing here.
_LOOK = f"""
    syncbeat_feed_identity() || '.' || {_GENERATION} AS identity, now::text AS now,
    coalesce((SELECT p.xid FROM pruned_feeds p WHERE p.app_id = $1 AND p.feed = syncbeat_feed_identity()), '0')::text
        AS pruned"""

_PAGED = f"page AS MATERIALIZED (SELECT tuple FROM news ORDER BY scope, sequence LIMIT {MAX_CHANGES})"

_PLACE = """
    place AS MATERIALIZED (
        SELECT pg_current_snapshot() AS now, coalesce($3::text::pg_snapshot, pg_current_snapshot()) AS until)"""

# By transaction: from the first that had not begun, and those that were running. Ranges in order, also of one number,
# and rows by their places, since that leaves no other plan than the index, however often the numbers come.
_FEW = f"""
    entries AS MATERIALIZED (
        (SELECT c.ctid AS tuple, c.scope, c.sequence, c.xid FROM changes c
         WHERE c.app_id = $1 AND c.xid >= pg_snapshot_xmax($2::text::pg_snapshot) AND c.xid > '0'
           AND c.xid < (SELECT pg_snapshot_xmax(until) FROM place)
         ORDER BY c.xid LIMIT {MOST_ENTRIES + 1})
        UNION ALL
        (SELECT f.* FROM pg_snapshot_xip($2::text::pg_snapshot) running CROSS JOIN LATERAL (
             SELECT c.ctid, c.scope, c.sequence, c.xid FROM changes c
             WHERE c.app_id = $1 AND c.xid >= running AND c.xid <= running AND c.xid > '0'
             ORDER BY c.xid LIMIT {MOST_ENTRIES + 1}) f
         LIMIT {MOST_ENTRIES + 1})),
    news AS (
        SELECT e.* FROM entries e, place
        WHERE pg_visible_in_snapshot(e.xid, until) AND (e.scope, e.sequence) > ($4, $5::bigint)),
    {_PAGED},
    ends AS (
        SELECT NULL::text AS last_scope, NULL::bigint AS last_sequence,
               (SELECT count(*) FROM entries) > {MOST_ENTRIES} AS crowded)"""

# In order of (scope, sequence), whoever wrote it. Without `since` everything is news, rows included that came with a
# dump from a cluster with higher numbers: this statement sees them although no transaction here has such a number.
# The walk ends where the page is full; `ends` goes on from the last that was passed only where it is not.
_ALL = f"""
    entries AS NOT MATERIALIZED (
        SELECT c.ctid AS tuple, c.scope, c.sequence, c.xid FROM changes c
        WHERE c.app_id = $1 AND (c.scope, c.sequence) > ($4, $5::bigint)
        ORDER BY c.scope, c.sequence LIMIT {MOST_ENTRIES}),
    news AS NOT MATERIALIZED (
        SELECT * FROM entries
        WHERE ($2::text IS NULL OR NOT pg_visible_in_snapshot(xid, $2::text::pg_snapshot))
          AND (pg_visible_in_snapshot(xid, (SELECT until FROM place))
               OR $2::text IS NULL AND xid >= (SELECT pg_snapshot_xmax(now) FROM place))),
    {_PAGED},
    ends AS (
        SELECT scope AS last_scope, sequence AS last_sequence, true AS crowded FROM entries
        WHERE (SELECT count(*) FROM page) < {MAX_CHANGES}
        ORDER BY scope, sequence OFFSET {MOST_ENTRIES - 1})"""

_PAGE = f"""
    sized AS (
        SELECT c.scope, s.epoch, c.key, c.value, c.deleted, c.sequence, c.changed_at,
               c.octets AS value_octets,
               row_number() OVER w AS n, sum(c.octets) OVER w AS octets
        FROM changes c JOIN scopes s ON (s.app_id, s.scope) = (c.app_id, c.scope)
        WHERE c.ctid = ANY (ARRAY(SELECT tuple FROM page))
        WINDOW w AS (ORDER BY c.scope, c.sequence ROWS UNBOUNDED PRECEDING)),
    seen AS MATERIALIZED (
        SELECT {_LOOK}, until::text AS until, (SELECT count(*) FROM page) AS paged, ends.*
        FROM place LEFT JOIN ends ON true)
    SELECT seen.*, z.scope, z.epoch, z.key, z.value_octets,
           CASE WHEN z.value_octets <= {MOST_READ_OCTETS} THEN z.value::text END AS value,
           z.deleted, z.sequence, z.changed_at
    FROM seen LEFT JOIN sized z ON z.n = 1 OR z.octets <= {MAX_OCTETS} ORDER BY z.n"""

BY_TRANSACTION = f"WITH {_PLACE}, {_FEW}, {_PAGE}"
IN_ORDER = f"WITH {_PLACE}, {_ALL}, {_PAGE}"


async def look(conn: Connection, app_id: str) -> Look:
    """Returns the present moment of an app's feed."""
    (row,) = await conn.fetch(f"SELECT {_LOOK} FROM (SELECT pg_current_snapshot() AS now) place", app_id)
    return _look(row)


async def next_page(conn: Connection, app_id: str, place: Place, *, crowded: bool) -> Page:
    """Returns what follows a place: the next page of its round, or the first of a new one that goes up to now."""
    arguments = (
        app_id,
        None if place.since is None else place.since.text,
        None if place.until is None else place.until.text,
        *place.after,
    )
    if not crowded and place.since is not None:
        rows = await conn.fetch(BY_TRANSACTION, *arguments)
        if not rows[0]["crowded"]:
            return await _page(rows, crowded=False)
    return await _page(await conn.fetch(IN_ORDER, *arguments), crowded=True)


def _look(row: Row) -> Look:
    return Look(feed_of(row["identity"]), snapshot_of(row["now"]), int(row["pruned"]))


async def _page(rows: Sequence[Row], *, crowded: bool) -> Page:
    seen = rows[0]
    changes = tuple([await change_of(row, row["scope"], row["epoch"]) for row in rows if row["scope"] is not None])
    after = None
    if changes and (len(changes) < seen["paged"] or seen["paged"] == MAX_CHANGES):
        after = (changes[-1].scope, changes[-1].sequence)
    elif seen["last_scope"] is not None:
        after = (seen["last_scope"], seen["last_sequence"])
    return Page(_look(seen), snapshot_of(seen["until"]), changes, after, crowded)
