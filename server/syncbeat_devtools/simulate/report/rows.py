"""Computes the rows of a result from outcomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from syncbeat_devtools.simulate.engine.tally import Tally, half_width, sum_tallies
from syncbeat_devtools.simulate.policies.bounds import merge_bounds
from syncbeat_devtools.simulate.study.solver import Days, Outcome


def make_row(
    outcome: Outcome, days: Days, ceiling: Outcome | None, others: Sequence[Outcome] = (), name: str = ""
) -> dict[str, Any]:
    """Return a policy's figures, scaled to the whole fleet and a day.

    Errors (`plus_minus`) are half-widths of 95 % confidence intervals over the seeds.
    """
    fleet = days.fleet
    whole = sum_tallies(outcome.tallies.values())
    seeds = sorted(outcome.tallies)
    per_seed = [outcome.tallies[seed] for seed in seeds]
    p50, p95, p99 = whole.quantiles_s(0.5, 0.95, 0.99)
    bounds = (outcome.bounds or days.bounds).values()
    bound = merge_bounds(bounds).least_requests(whole.mean_s) if days.has_true_rates else None
    row: dict[str, Any] = {
        "name": name or outcome.row.value,
        "requests_per_day": round(whole.per_day(whole.requests, fleet)),
        "mean_s": round(whole.mean_s, 2),
        "p50_s": round(p50, 2),
        "p95_s": round(p95, 2),
        "p99_s": round(p99, 2),
        "wakeups_per_device_day": round(whole.wakeups / whole.devices, 1),
        "peak_over_mean": round(whole.peak_over_mean, 3),
        "bound_requests_per_day": None if bound is None else round(whole.per_day(bound, fleet)),
        "optimality": None if bound is None else round(bound / whole.requests, 4),
        "causal_ceiling": None if ceiling is None else round(_mean_optimality(ceiling, days), 4),
        "plus_minus": {
            "requests_per_day": _half_width([tally.per_day(tally.requests, fleet) for tally in per_seed], 0),
            "mean_s": _half_width([tally.mean_s for tally in per_seed], 3),
            "p95_s": _half_width([tally.quantiles_s(0.95)[0] for tally in per_seed], 2),
            "optimality": _half_width([_optimality(outcome, days, seed) for seed in seeds], 4)
            if days.has_true_rates
            else None,
        },
        "by_seed": [_seed_row(seed, outcome.tallies[seed], fleet) for seed in seeds],
        "empirical_mean_s": round(whole.empirical_mean_s, 2),
        "bytes_per_day": round(whole.per_day(whole.traffic_bytes, fleet)),
        "multiplier": round(outcome.multiplier, 4),
        "made_of": {name: round(whole.per_day(count, fleet)) for name, count in _components(whole).items() if count},
    }
    if others:
        row["requests_over"] = {other.row.value: paired_ratio(outcome, other) for other in others}
    if whole.predictions:
        row["estimator"] = {
            "expected_over_true_changes": round(whole.predicted_changes / whole.expected, 3),
            "expected_over_true_staleness": round(whole.predicted_stale_s / whole.stale_s, 3),
            "rms_log_rate_error": round(math.sqrt(whole.log_error_squares / whole.predictions), 3),
        }
    return row


def paired_ratio(outcome: Outcome, reference: Outcome) -> dict[str, float | None]:
    """Return the requests of one policy over those of another at the same mean staleness, paired by seed."""
    ratios = []
    for seed, tally in outcome.tallies.items():
        other = reference.tallies[seed]
        # Corrected for the small difference of the means by the slope of this policy's requests over its mean.
        ratios.append(tally.requests * (other.mean_s / tally.mean_s) ** outcome.slope / other.requests)
    return {"ratio": round(math.fsum(ratios) / len(ratios), 4), "plus_minus": _half_width(ratios, 4)}


def _mean_optimality(outcome: Outcome, days: Days) -> float:
    values = [_optimality(outcome, days, seed) for seed in outcome.tallies]
    return math.fsum(values) / len(values)


def _optimality(outcome: Outcome, days: Days, seed: int) -> float:
    tally = outcome.tallies[seed]
    return (outcome.bounds or days.bounds)[seed].least_requests(tally.mean_s) / tally.requests


def _seed_row(seed: int, tally: Tally, fleet: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "requests_per_day": round(tally.per_day(tally.requests, fleet)),
        "mean_s": round(tally.mean_s, 2),
        "p95_s": round(tally.quantiles_s(0.95)[0], 2),
    }


def _components(tally: Tally) -> dict[str, int]:
    return {
        "polls": tally.polls,
        "safety_polls": tally.safety_polls,
        "fetches": tally.fetches,
        "stream_messages": tally.stream_messages,
        "stream_opens": tally.stream_opens,
        "pushes_beside": tally.pushes,
        "resends_beside": tally.resends,
        "needless_resends_beside": tally.needless_resends,
    }


def _half_width(values: list[float], digits: int) -> float | None:
    half = half_width(values)
    return None if half is None else round(half, digits)
