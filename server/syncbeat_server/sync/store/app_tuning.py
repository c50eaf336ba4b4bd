"""Reads and writes what is learned for each app: its price of staleness, its prior, and the health of its pushes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from syncbeat_server.storage.postgres.database import Connection, Row
from syncbeat_server.sync.policy.hint_inputs import DEFAULT_TUNING
from syncbeat_server.sync.policy.interval import Price
from syncbeat_server.sync.policy.price_controller import Target, TargetKind
from syncbeat_server.sync.policy.price_state import PriceState, Sums
from syncbeat_server.sync.policy.rhythm import HOURS, NO_EVIDENCE, WeekEvidence
from syncbeat_server.sync.policy.scope_prior import Prior

_SELECT = """
    SELECT app_id, target_kind, target_value, price_staleness, price_lateness,
           extract(epoch FROM tuned_at)::float8 AS tuned_at, changes, stale_s, late, polls, capped, floored, requests,
           unit_changes, unit_stale_s, unit_requests, unit_s, mean_s, late_share, prior, sample_share, rhythm,
           extract(epoch FROM syncbeat_now())::float8 AS now
    FROM app_learning"""


_ASSUMED_TRIES = 50.0  # with the usual result, added to the counted ones: few tries say little


class AppTuning(NamedTuple):
    """Holds the row of an app as of `now` (unix seconds). `share` of its scopes are sampled."""

    state: PriceState
    prior: Prior | None
    share: float
    now: float
    week: WeekEvidence = NO_EVIDENCE


async def read_app_tunings(conn: Connection) -> dict[str, AppTuning]:
    """Return the row of each app."""
    return {row["app_id"]: _app_tuning(row) for row in await conn.fetch(_SELECT)}


class PushHealth(NamedTuple):
    """Describes the pushes of an app to devices that pushes reach.

    `misses` is the share of wake-ups missed after all resends, `single_misses` that of single pushes; `working` is
    False while the app's pushes do not get through.
    """

    misses: float
    single_misses: float
    working: bool


async def read_push_health(conn: Connection) -> dict[str, PushHealth]:
    """Return the push health of each app that has sent some, close to the defaults where few were sent."""
    rows = await conn.fetch(
        """SELECT app_id, coalesce(broken_until > syncbeat_now(), false) AS broken,
                  (all_missed + $1::float8 * $2::float8) / (all_answered + all_missed + $2::float8) AS misses,
                  (first_missed + $3::float8 * $2::float8) / (first_answered + first_missed + $2::float8) AS single
           FROM app_reach""",
        DEFAULT_TUNING.app_misses,
        _ASSUMED_TRIES,
        DEFAULT_TUNING.push_misses,
    )
    return {row["app_id"]: PushHealth(row["misses"], row["single"], not row["broken"]) for row in rows}


async def insert_app_tuning(conn: Connection, app_id: str, state: PriceState) -> None:
    """Insert the row of an app that has none."""
    await conn.execute(
        """INSERT INTO app_learning (app_id, target_kind, target_value, price_staleness, price_lateness,
                                     unit_changes, unit_stale_s, tuned_at, sampled_since)
           VALUES ($1, $2, $3, $4, $5, $6, $7, syncbeat_now(), syncbeat_now()) ON CONFLICT (app_id) DO NOTHING""",
        app_id,
        *_target_and_price(state),
        state.unit_changes,
        state.unit_stale_s,
    )


async def lock_app_tuning(conn: Connection, app_id: str) -> AppTuning | None:
    """Lock and return the row of an app; None if it has none."""
    row = await conn.fetchrow(_SELECT + " WHERE app_id = $1 FOR UPDATE", app_id)
    return None if row is None else _app_tuning(row)


async def update_app_tuning(conn: Connection, app_id: str, state: PriceState) -> None:
    """Write the price and the measurements of a locked row."""
    await conn.execute(
        """UPDATE app_learning SET target_kind = $2, target_value = $3, price_staleness = $4, price_lateness = $5,
               tuned_at = to_timestamp($6), unit_changes = $7, unit_stale_s = $8, unit_requests = $9, unit_s = $10,
               mean_s = $11, late_share = $12, changes = $13, stale_s = $14, late = $15, polls = $16, capped = $17,
               floored = $18, requests = $19
           WHERE app_id = $1""",
        app_id,
        *_target_and_price(state),
        state.tuned_at,
        state.unit_changes,
        state.unit_stale_s,
        state.unit_requests,
        state.unit_s,
        state.mean_s,
        state.late_share,
        *state.since,
    )


def _target_and_price(state: PriceState) -> tuple[str, float, float, float]:
    return (state.target.kind, state.target.value, *state.price)


def _app_tuning(row: Row) -> AppTuning:
    target = Target(TargetKind(row["target_kind"]), row["target_value"])
    state = PriceState(
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
    return AppTuning(state, prior_of(row["prior"]), row["sample_share"], row["now"], week_of(row["rhythm"]))


def prior_of(values: Sequence[float] | None) -> Prior | None:
    """Return the prior stored in a row; None before the first fit."""
    return None if values is None else Prior(*values)


def week_of(values: Sequence[float] | None) -> WeekEvidence:
    """Return the evidence stored in a row; nothing is known before the first fit."""
    if values is None:
        return NO_EVIDENCE
    return WeekEvidence(tuple(values[:HOURS]), tuple(values[HOURS:-1]), values[-1])


def stored_week(week: WeekEvidence) -> list[float]:
    """Return the evidence as a row stores it."""
    return [*week.changes, *week.seconds, week.echo]
