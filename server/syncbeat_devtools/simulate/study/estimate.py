"""Recomputes the estimate that users started from, from its own figures. No simulation."""

from __future__ import annotations

from typing import NamedTuple

from syncbeat_devtools.simulate.fleet.devices import DAY

DEVICES, FIXED_S = 20_000, 30.0
POLLS, PUSHES, HINT_CALLS = 34_560_000, 400_000, 28_800
CLAIMED_TOTAL, CLAIMED_SAVING = 35_023_200, 0.393
SYNC_BYTES = 2_048
_REVIEW_S = 300.0


class RecomputedEstimate(NamedTuple):
    """The consequences of the estimate's own figures; the staleness of even polling is half of its interval."""

    fixed_requests_per_day: int
    sum_of_its_parts: int
    claimed_total: int
    saving: float
    claimed_saving: float
    interval_s: float
    mean_staleness_s: float
    p95_staleness_s: float
    hint_calls_every_5_min: int
    fixed_gb_per_day: float
    smart_gb_per_day: float
    fixed_gb_per_month: float


def recompute_estimate() -> RecomputedEstimate:
    """Add up the estimate's figures."""
    fixed = round(DEVICES * DAY / FIXED_S)
    total = POLLS + PUSHES + HINT_CALLS
    interval = DEVICES * DAY / POLLS
    return RecomputedEstimate(
        fixed_requests_per_day=fixed,
        sum_of_its_parts=total,
        claimed_total=CLAIMED_TOTAL,
        saving=round(1.0 - total / fixed, 4),
        claimed_saving=CLAIMED_SAVING,
        interval_s=interval,
        mean_staleness_s=interval / 2.0,
        p95_staleness_s=0.95 * interval,
        hint_calls_every_5_min=round(DEVICES * DAY / _REVIEW_S),
        fixed_gb_per_day=round(fixed * SYNC_BYTES / 1e9, 1),
        smart_gb_per_day=round(POLLS * SYNC_BYTES / 1e9, 1),
        fixed_gb_per_month=round(30 * fixed * SYNC_BYTES / 1e9),
    )
