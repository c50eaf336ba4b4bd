"""Computes the rows of a study of a log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from syncbeat_devtools.simulate.study.bootstrap import DayDraws, Interval
from syncbeat_devtools.simulate.study.log_solver import LogOutcome

_AT_BOUNDS = 0.9
"""The share of polls at the longest interval from which on it is what keeps a mean from its target."""


def make_log_row(
    outcome: LogOutcome,
    target_s: float,
    bound: float,
    draws: DayDraws,
    plays: float,
    others: Sequence[LogOutcome] = (),
) -> dict[str, Any]:
    """Return a policy's figures: means of a day, with 95 % intervals by bootstrap over the days.

    `bound` is the fewest requests of all days of a policy that knows each commit beforehand; each day was played so
    many times (`plays`; less than once each where a part of the devices stands for all).
    """
    whole, days = outcome.whole, len(outcome.tallies)
    tallies = list(outcome.tallies.values())
    p50, p95, p99 = whole.quantiles_s(0.5, 0.95, 0.99)
    equal = outcome.is_equal(target_s)
    capped = whole.capped / max(1, whole.polls)
    row: dict[str, Any] = {
        "name": outcome.row.value,
        "requests_per_day": round(whole.requests / days / plays),
        "mean_s": round(whole.mean_s, 2),
        "is_equal": equal,
        "reason": "" if equal else _reason(capped),
        "p50_s": round(p50, 2),
        "p95_s": round(p95, 2),
        "p99_s": round(p99, 2),
        "capped_share": round(capped, 4),
        "wakeups_per_device_day": round(whole.wakeups / whole.devices, 1),
        "bound_share": round(bound * plays / whole.requests, 4),
        "multipliers": [round(multiplier, 5) for multiplier in outcome.multipliers],
        "intervals": {
            "requests_per_day": _rounded(draws.requests(tallies, plays), 0),
            "mean_s": _rounded(draws.mean_s(tallies), 2),
            "p95_s": _rounded(draws.quantile_s(tallies, 0.95), 2),
        },
        "by_day": [
            {
                "start": start,
                "requests": round(tally.requests / plays),
                "mean_s": round(tally.mean_s, 2),
                "p95_s": round(tally.quantiles_s(0.95)[0], 2),
                "capped_share": round(tally.capped / max(1, tally.polls), 4),
            }
            for start, tally in outcome.tallies.items()
        ],
    }
    if others:
        row["requests_over"] = {
            other.row.value: {
                "ratio": round(_ratio(outcome, other), 4),
                "interval": _rounded(draws.ratio(tallies, list(other.tallies.values())), 4),
                "by_day": [
                    round(tally.requests * tally.mean_s / (one.requests * one.mean_s), 4)
                    for tally, one in zip(tallies, other.tallies.values(), strict=True)
                ],
            }
            for other in others
        }
    return row


def _ratio(outcome: LogOutcome, other: LogOutcome) -> float:
    mine, theirs = outcome.whole, other.whole
    return mine.requests * mine.mean_s / (theirs.requests * theirs.mean_s)


def _reason(capped: float) -> str:
    if capped > _AT_BOUNDS:
        return "the longest interval does not allow it"
    return "no multiplier gives it"


def _rounded(interval: Interval | None, digits: int) -> list[float] | None:
    return None if interval is None else [round(end, digits) for end in interval]
