"""SQL of the counts that objectives are held against: each process adds its own to buckets that all share."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from syncbeat_server.status.model import Series, Sums
from syncbeat_server.status.policy.slo_windows import SloTimes, Window
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import DeletedBatch, delete_oldest, delete_oldest_sql

_DEADLOCKS = "pg_stat_get_db_deadlocks((SELECT oid FROM pg_database WHERE datname = current_database()))"
_DELETE_OLD = delete_oldest_sql("slo_counts", "width_s, starts_at, series", "expires_at", "0 seconds")


async def add(conn: Connection, counts: Sums, age_s: float, times: SloTimes) -> None:
    """Add counts of `age_s` seconds ago to the buckets of that moment.

    The rows are locked in one order by all processes, which therefore never wait for each other in a circle.
    """
    series = sorted(counts)
    widths, kept = zip(*times.kept_s, strict=True)
    if widths[0] == widths[1]:
        widths, kept = widths[1:], kept[1:]
    await conn.execute(
        """INSERT INTO slo_counts (series, width_s, starts_at, amounts, expires_at)
           SELECT k.series, w.width_s, b.starts_at, k.amounts::float8[], b.starts_at + make_interval(secs => w.kept_s)
           FROM unnest($1::text[], $2::text[]) AS k (series, amounts)
                CROSS JOIN unnest($3::integer[], $4::float8[]) AS w (width_s, kept_s)
                CROSS JOIN LATERAL (SELECT to_timestamp(w.width_s * floor(
                    extract(epoch FROM syncbeat_now() - make_interval(secs => $5)) / w.width_s)) AS starts_at) b
           ORDER BY k.series, w.width_s
           ON CONFLICT (width_s, starts_at, series) DO UPDATE SET amounts = ARRAY(
               SELECT coalesce(s.known, 0) + coalesce(s.new, 0)
               FROM unnest(slo_counts.amounts, excluded.amounts) WITH ORDINALITY AS s (known, new, n) ORDER BY s.n)""",
        series,
        ["{" + ",".join(map(repr, counts[one])) + "}" for one in series],
        widths,
        kept,
        age_s,
    )


async def sums(conn: Connection, windows: Sequence[Window]) -> list[dict[str, tuple[float, ...]]]:
    """Return the sums over windows that end now, one for each."""
    rows = await conn.fetch(
        """SELECT s.i, s.series, array_agg(s.amount ORDER BY s.n) AS amounts
           FROM (SELECT w.i, c.series, e.n, sum(e.amount) AS amount
                 FROM unnest($1::float8[], $2::integer[]) WITH ORDINALITY AS w (window_s, width_s, i)
                      JOIN slo_counts c ON c.width_s = w.width_s
                           AND c.starts_at > syncbeat_now() - make_interval(secs => w.window_s + w.width_s)
                      CROSS JOIN unnest(c.amounts) WITH ORDINALITY AS e (amount, n)
                 GROUP BY w.i, c.series, e.n) s
           GROUP BY s.i, s.series""",
        [one.seconds for one in windows],
        [one.width_s for one in windows],
    )
    found: list[dict[str, tuple[float, ...]]] = [{} for _ in windows]
    for row in rows:
        found[row["i"] - 1][row["series"]] = tuple(row["amounts"])
    return found


async def counted_since_s(conn: Connection, width_s: int) -> float:
    """Return for how many seconds there have been buckets of a width; 0 if there are none."""
    age = await conn.fetchval(
        "SELECT extract(epoch FROM syncbeat_now() - min(starts_at))::float8 FROM slo_counts WHERE width_s = $1", width_s
    )
    return max(0.0, float(age or 0.0))


async def has_new_deadlocks(conn: Connection) -> bool:
    """Return False if PostgreSQL counts as many deadlocks as when some process last took them."""
    same = await conn.fetchval(
        f"SELECT value = {_DEADLOCKS} FROM slo_marks WHERE name = $1",  # noqa: S608  # a constant
        Series.DEADLOCKS,
    )
    return not same


async def take_deadlocks(conn: Connection) -> float:
    """Return by how many deadlocks PostgreSQL's count grew since some process last took them, in a transaction.

    That count begins anew when PostgreSQL crashes. It is read under the lock of its mark, so that it never seems to
    have fallen because another process was quicker, and anew: a transaction that read it keeps what it read first
    (https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-STATS-VIEWS). The first time there is
    nothing to compare it with.
    """
    await conn.execute(
        f"INSERT INTO slo_marks (name, value) VALUES ($1, {_DEADLOCKS}) ON CONFLICT DO NOTHING",  # noqa: S608  # a constant
        Series.DEADLOCKS,
    )
    known = await conn.fetchval("SELECT value FROM slo_marks WHERE name = $1 FOR UPDATE", Series.DEADLOCKS)
    await conn.execute("SELECT pg_stat_clear_snapshot()")
    now = float(await conn.fetchval(f"SELECT {_DEADLOCKS}"))
    await conn.execute("UPDATE slo_marks SET value = $2 WHERE name = $1", Series.DEADLOCKS, now)
    return now - float(known or 0.0) if now >= (known or 0.0) else now


async def delete_old(conn: Connection, limit: int, since: datetime | None) -> DeletedBatch:
    """Delete up to `limit` buckets that no window reaches any more."""
    return await delete_oldest(conn, _DELETE_OLD, limit, since)
