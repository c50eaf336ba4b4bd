"""SQL of what is learned: a row an app, and the samples of its scopes' changes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from syncbeat_server.storage.postgres.database import Connection, Row
from syncbeat_server.storage.retention import DeletedBatch, delete_oldest, delete_oldest_sql
from syncbeat_server.sync.policy.belief import Prior
from syncbeat_server.sync.policy.fit_samples import Fitted, History
from syncbeat_server.sync.policy.hint_inputs import DEFAULT_TUNING
from syncbeat_server.sync.policy.interval import Price
from syncbeat_server.sync.policy.price_controller import Target, TargetKind
from syncbeat_server.sync.policy.price_state import Sums, Tuned

_SELECT = """
    SELECT app_id, target_kind, target_value, price_staleness, price_lateness,
           extract(epoch FROM tuned_at)::float8 AS tuned_at, changes, stale_s, late, polls, capped, floored, requests,
           unit_changes, unit_stale_s, unit_requests, unit_s, mean_s, late_share, prior, sample_share,
           extract(epoch FROM syncbeat_now())::float8 AS now
    FROM app_learning"""


_DOUBT = 50.0  # tries that are taken to have gone as usual beside those that were counted


class Learned(NamedTuple):
    """The row of an app as of `now` (unix seconds). `share` of its scopes are sampled."""

    tuned: Tuned
    prior: Prior | None
    share: float
    now: float


async def all_learned(conn: Connection) -> dict[str, Learned]:
    """What was learned of each app."""
    return {row["app_id"]: _learned(row) for row in await conn.fetch(_SELECT)}


class PushHealth(NamedTuple):
    """How an app's pushes do at devices that they reach: the share of wake-ups missed after all resends, that of single
    pushes, and whether they work now."""

    misses: float
    single_misses: float
    working: bool


async def push_health(conn: Connection) -> dict[str, PushHealth]:
    """The health of the pushes of each app that has sent some; few tries say little."""
    rows = await conn.fetch(
        """SELECT app_id, coalesce(broken_until > syncbeat_now(), false) AS broken,
                  (all_missed + $1::float8 * $2::float8) / (all_answered + all_missed + $2::float8) AS misses,
                  (first_missed + $3::float8 * $2::float8) / (first_answered + first_missed + $2::float8) AS single
           FROM app_reach""",
        DEFAULT_TUNING.app_misses,
        _DOUBT,
        DEFAULT_TUNING.push_misses,
    )
    return {row["app_id"]: PushHealth(row["misses"], row["single"], not row["broken"]) for row in rows}


async def begin(conn: Connection, app_id: str, tuned: Tuned) -> None:
    """Make the row of an app that has none."""
    await conn.execute(
        """INSERT INTO app_learning (app_id, target_kind, target_value, price_staleness, price_lateness,
                                     unit_changes, unit_stale_s, tuned_at, sampled_since)
           VALUES ($1, $2, $3, $4, $5, $6, $7, syncbeat_now(), syncbeat_now()) ON CONFLICT (app_id) DO NOTHING""",
        app_id,
        *_target_and_price(tuned),
        tuned.unit_changes,
        tuned.unit_stale_s,
    )


async def locked(conn: Connection, app_id: str) -> Learned | None:
    """The row of an app, locked by this transaction."""
    row = await conn.fetchrow(_SELECT + " WHERE app_id = $1 FOR UPDATE", app_id)
    return None if row is None else _learned(row)


async def keep(conn: Connection, app_id: str, tuned: Tuned) -> None:
    """Write the price of a locked row and what was measured."""
    await conn.execute(
        """UPDATE app_learning SET target_kind = $2, target_value = $3, price_staleness = $4, price_lateness = $5,
               tuned_at = to_timestamp($6), unit_changes = $7, unit_stale_s = $8, unit_requests = $9, unit_s = $10,
               mean_s = $11, late_share = $12, changes = $13, stale_s = $14, late = $15, polls = $16, capped = $17,
               floored = $18, requests = $19
           WHERE app_id = $1""",
        app_id,
        *_target_and_price(tuned),
        tuned.tuned_at,
        tuned.unit_changes,
        tuned.unit_stale_s,
        tuned.unit_requests,
        tuned.unit_s,
        tuned.mean_s,
        tuned.late_share,
        *tuned.since,
    )


async def add_samples(conn: Connection, app_id: str, samples: Sequence[tuple[str, float]]) -> None:
    """Remember that scopes changed at these instants (unix seconds)."""
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


async def thin_out(conn: Connection, app_id: str) -> None:
    """Sample half as many scopes as before."""
    await conn.execute(
        "UPDATE app_learning SET sample_share = greatest(sample_share / 2, 1e-9) WHERE app_id = $1", app_id
    )


class Turn(NamedTuple):
    """Somebody's turn to look after an app's sample: its share, whether a fit is due, and the span it may cover."""

    share: float
    due: bool
    start_s: float
    end_s: float
    prior: Prior | None


async def take_turn(conn: Connection, app_id: str, every_s: float, fit_every_s: float, lag_s: float) -> Turn | None:
    """The turn, if nobody has had it for `every_s`: so a fit that is cut short is made by another an hour later.

    A fit is due after `fit_every_s`, or after six hours as long as it was not from a whole day. What is younger than
    `lag_s`, processes may not have written yet.
    """
    row = await conn.fetchrow(
        """UPDATE app_learning SET looked_at = syncbeat_now()
           WHERE app_id = $1 AND (looked_at IS NULL OR looked_at <= syncbeat_now() - make_interval(secs => $2))
           RETURNING sample_share, prior,
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
    return Turn(row["sample_share"], row["due"], row["start_s"], row["end_s"], _prior(row["prior"]))


async def active_scopes(conn: Connection, app_id: str, most: int) -> int:
    """How many scopes of an app changed within a day, counted up to `most`."""
    count: int = await conn.fetchval(
        """SELECT count(*) FROM (
               SELECT 1 FROM scopes WHERE app_id = $1 AND changed_at > syncbeat_now() - interval '1 day' LIMIT $2) s""",
        app_id,
        most,
    )
    return count


async def sample_from_now(conn: Connection, app_id: str, share: float) -> None:
    """Change the share of scopes that is sampled. Of those that are sampled only now nothing was known before."""
    await conn.execute(
        """UPDATE app_learning
           SET sampled_since = CASE WHEN $2 > sample_share THEN syncbeat_now() ELSE sampled_since END,
               sample_share = $2
           WHERE app_id = $1""",
        app_id,
        share,
    )


async def histories(conn: Connection, app_id: str, turn: Turn, most: int) -> list[History]:
    """The histories of sampled scopes that lived within a week, those without a change too."""
    rows = await conn.fetch(
        """SELECT greatest($2::float8, extract(epoch FROM s.created_at)::float8) AS start_s,
                  ARRAY(SELECT extract(epoch FROM c.changed_at)::float8 FROM change_samples c
                        WHERE c.app_id = s.app_id AND c.scope = s.scope
                          AND c.changed_at BETWEEN to_timestamp($2) AND to_timestamp($3)
                        ORDER BY c.changed_at) AS changes
           FROM scopes s
           WHERE s.app_id = $1 AND s.changed_at > syncbeat_now() - interval '7 days'
             AND s.created_at < to_timestamp($3) AND syncbeat_sampled(s.scope, $4)
           LIMIT $5""",
        app_id,
        turn.start_s,
        turn.end_s,
        turn.share,
        most,
    )
    return [History(row["start_s"], turn.end_s, row["changes"]) for row in rows]


async def keep_fit(conn: Connection, app_id: str, fitted: Fitted) -> None:
    """Write a fitted prior."""
    await conn.execute(
        """UPDATE app_learning
           SET prior = $2, fitted_at = syncbeat_now(), fitted_scopes = $3, fitted_changes = $4 WHERE app_id = $1""",
        app_id,
        list(fitted.prior),
        fitted.scopes,
        fitted.changes,
    )


def _target_and_price(tuned: Tuned) -> tuple[str, float, float, float]:
    return (tuned.target.kind, tuned.target.value, *tuned.price)


def _learned(row: Row) -> Learned:
    target = Target(TargetKind(row["target_kind"]), row["target_value"])
    tuned = Tuned(
        target,
        Price(row["price_staleness"], row["price_lateness"]),
        row["tuned_at"],
        Sums(*(row[name] for name in Sums._fields)),
        row["unit_changes"],
        row["unit_stale_s"],
        row["unit_requests"],
        row["unit_s"],
        row["mean_s"],
        row["late_share"],
    )
    return Learned(tuned, _prior(row["prior"]), row["sample_share"], row["now"])


def _prior(values: Sequence[float] | None) -> Prior | None:
    return None if values is None else Prior(*values)
