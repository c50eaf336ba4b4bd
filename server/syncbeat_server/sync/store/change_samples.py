"""Samples the changes of some scopes, and claims turns to fit an app's prior to them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import DeletedBatch, delete_oldest, delete_oldest_sql
from syncbeat_server.sync.policy.fit_samples import Fitted, History
from syncbeat_server.sync.policy.rhythm import NO_EVIDENCE, WeekEvidence
from syncbeat_server.sync.policy.scope_prior import Prior
from syncbeat_server.sync.store.app_tuning import prior_of, stored_week, week_of


async def add_samples(conn: Connection, app_id: str, samples: Sequence[tuple[str, float]]) -> None:
    """Add changes of scopes at instants in unix seconds."""
    await conn.execute(
        """INSERT INTO change_samples (app_id, scope, changed_at)
           SELECT $1, k.scope, to_timestamp(k.at) FROM unnest($2::text[], $3::float8[]) AS k (scope, at)
           ON CONFLICT DO NOTHING""",
        app_id,
        [scope for scope, _ in samples],
        [at for _, at in samples],
    )


FORGET_SAMPLES = delete_oldest_sql("change_samples", "app_id, scope, changed_at", "changed_at", "2 days")


async def forget_samples(conn: Connection, limit: int, since: datetime | None = None) -> DeletedBatch:
    """Delete up to `limit` samples that are older than two days."""
    return await delete_oldest(conn, FORGET_SAMPLES, limit, since)


async def halve_sample_share(conn: Connection, app_id: str) -> None:
    """Sample half as many scopes of an app as before."""
    await conn.execute(
        "UPDATE app_learning SET sample_share = greatest(sample_share / 2, 1e-9) WHERE app_id = $1", app_id
    )


class FitTurn(NamedTuple):
    """Grants a turn to maintain an app's sample: its share, if a fit is due, and the span that a fit may cover.

    `prior` and `week` are what the fits before it have learned.
    """

    share: float
    due: bool
    start_s: float
    end_s: float
    prior: Prior | None
    week: WeekEvidence = NO_EVIDENCE


async def claim_fit_turn(
    conn: Connection, app_id: str, every_s: float, fit_every_s: float, lag_s: float
) -> FitTurn | None:
    """Claim the turn; None if another process had it within `every_s`, so that a fit cut short is soon repeated.

    A fit is due after `fit_every_s`, or after six hours as long as the last was not made from a whole day. Samples
    younger than `lag_s` may not be written by all processes yet.
    """
    row = await conn.fetchrow(
        """UPDATE app_learning SET looked_at = syncbeat_now()
           WHERE app_id = $1 AND (looked_at IS NULL OR looked_at <= syncbeat_now() - make_interval(secs => $2))
           RETURNING sample_share, prior, rhythm,
               fitted_at IS NULL OR fitted_at <= syncbeat_now() - make_interval(secs => $3)
                   OR fitted_at < least(sampled_since + interval '1 day', syncbeat_now() - interval '6 hours') AS due,
               extract(epoch FROM greatest(sampled_since + make_interval(secs => $4),
                                           syncbeat_now() - interval '1 day'))::float8 AS start_s,
               extract(epoch FROM syncbeat_now() - make_interval(secs => $4))::float8 AS end_s""",
        app_id,
        every_s,
        fit_every_s,
        lag_s,
    )
    if row is None:
        return None
    return FitTurn(
        row["sample_share"], row["due"], row["start_s"], row["end_s"], prior_of(row["prior"]), week_of(row["rhythm"])
    )


async def count_active_scopes(conn: Connection, app_id: str, limit: int) -> int:
    """Count the scopes of an app that changed within a day, up to `limit`."""
    count: int = await conn.fetchval(
        """SELECT count(*) FROM (
               SELECT 1 FROM scopes WHERE app_id = $1 AND changed_at > syncbeat_now() - interval '1 day' LIMIT $2) s""",
        app_id,
        limit,
    )
    return count


async def set_sample_share(conn: Connection, app_id: str, share: float) -> None:
    """Set the share of scopes that is sampled.

    A larger share begins anew: of the added scopes nothing was recorded before now.
    """
    await conn.execute(
        """UPDATE app_learning
           SET sampled_since = CASE WHEN $2 > sample_share THEN syncbeat_now() ELSE sampled_since END,
               sample_share = $2
           WHERE app_id = $1""",
        app_id,
        share,
    )


async def read_histories(conn: Connection, app_id: str, turn: FitTurn, limit: int) -> list[History]:
    """Return the histories of sampled scopes that changed within a week, including those without a sample.

    Where there are more, they are chosen by a hash: the first found would be those that have been silent for longest.
    """
    rows = await conn.fetch(
        """SELECT greatest($2::float8, extract(epoch FROM s.created_at)::float8) AS start_s,
                  ARRAY(SELECT extract(epoch FROM c.changed_at)::float8 FROM change_samples c
                        WHERE c.app_id = s.app_id AND c.scope = s.scope
                          AND c.changed_at BETWEEN to_timestamp($2) AND to_timestamp($3)
                        ORDER BY c.changed_at) AS changes
           FROM scopes s
           WHERE s.app_id = $1 AND s.changed_at > syncbeat_now() - interval '7 days'
             AND s.created_at < to_timestamp($3) AND syncbeat_sampled(s.scope, $4)
           ORDER BY md5(s.scope), s.scope LIMIT $5""",
        app_id,
        turn.start_s,
        turn.end_s,
        turn.share,
        limit,
    )
    return [History(row["start_s"], turn.end_s, row["changes"]) for row in rows]


async def save_fit(conn: Connection, app_id: str, fitted: Fitted) -> None:
    """Write a fitted prior and rhythm."""
    await conn.execute(
        """UPDATE app_learning
           SET prior = $2, fitted_at = syncbeat_now(), fitted_scopes = $3, fitted_changes = $4, rhythm = $5
           WHERE app_id = $1""",
        app_id,
        list(fitted.prior),
        fitted.scopes,
        fitted.changes,
        stored_week(fitted.week),
    )
