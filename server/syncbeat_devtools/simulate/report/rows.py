"""What a study found: as JSON for programs, as a table for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from syncbeat_devtools.simulate.engine.tally import Tally, half_width, summed
from syncbeat_devtools.simulate.policies.bounds import merged
from syncbeat_devtools.simulate.study.solver import Days, Outcome

_MILLION = 1e6


def row_of(
    outcome: Outcome, days: Days, ceiling: Outcome | None, others: Sequence[Outcome] = (), name: str = ""
) -> dict[str, Any]:
    """A policy's figures, of the whole fleet and a day. Error bars are halves of 95 % intervals over the seeds."""
    fleet = days.fleet
    whole = summed(outcome.tallies.values())
    seeds = sorted(outcome.tallies)
    per_seed = [outcome.tallies[seed] for seed in seeds]
    p50, p95, p99 = whole.quantiles_s(0.5, 0.95, 0.99)
    bounds = (outcome.bounds or days.bounds).values()
    bound = merged(bounds).least_requests(whole.mean_s) if days.known else None
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
        "causal_ceiling": None if ceiling is None else round(_optimality(ceiling, days), 4),
        "plus_minus": {
            "requests_per_day": _half([tally.per_day(tally.requests, fleet) for tally in per_seed], 0),
            "mean_s": _half([tally.mean_s for tally in per_seed], 3),
            "p95_s": _half([tally.quantiles_s(0.95)[0] for tally in per_seed], 2),
            "optimality": _half([_optimality_of(outcome, days, seed) for seed in seeds], 4) if days.known else None,
        },
        "by_seed": [_of_seed(seed, outcome.tallies[seed], fleet) for seed in seeds],
        "empirical_mean_s": round(whole.empirical_mean_s, 2),
        "bytes_per_day": round(whole.per_day(whole.traffic_bytes, fleet)),
        "multiplier": round(outcome.multiplier, 4),
        "made_of": {name: round(whole.per_day(count, fleet)) for name, count in _made_of(whole).items() if count},
    }
    if others:
        row["requests_over"] = {other.row.value: paired(outcome, other) for other in others}
    if whole.predictions:
        row["estimator"] = {
            "expected_over_true_changes": round(whole.predicted_changes / whole.expected, 3),
            "expected_over_true_staleness": round(whole.predicted_stale_s / whole.stale_s, 3),
            "rms_log_rate_error": round(math.sqrt(whole.log_error_squares / whole.predictions), 3),
        }
    return row


def paired(outcome: Outcome, reference: Outcome) -> dict[str, float | None]:
    """Requests of one policy over those of another at the same mean staleness, seed by seed on the same days."""
    ratios = []
    for seed, tally in outcome.tallies.items():
        other = reference.tallies[seed]
        # The small difference of means is taken out by how this policy's requests go with its mean.
        ratios.append(tally.requests * (other.mean_s / tally.mean_s) ** outcome.slope / other.requests)
    return {"ratio": round(math.fsum(ratios) / len(ratios), 4), "plus_minus": _half(ratios, 4)}


def text_of(found: dict[str, Any]) -> str:
    """What was found, for a terminal."""
    if "after_outage" in found:
        ways = [
            (
                f"  moments {way['moments']:<9} peak {way['peak_per_s']:>6,}  mean {way['mean_per_s']:>6,}  "
                f"peak/mean {way['peak_over_mean']:.2f}  intervals {way['interval_given_over_wanted']:.3f} of wanted"
            )
            for way in found["after_outage"]
        ]
        head = "20,000 devices ask in the same second; requests a second from ten minutes later on:"
        return "\n".join([head, *ways, "", f"took {found['seconds']} s"])
    lines = [_title(found), "", table(found["policies"])]
    for row in found["policies"]:
        if "estimator" in row:
            said = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row["estimator"].items())
            lines += ["", f"{row['name']}: {said}"]
        if row["name"] == "adaptive-pull":
            lines += [
                f"{row['name']}: {_with_bar(ratio['ratio'], ratio['plus_minus'], 3)} of {other}'s requests"
                + (", paired by seed" if len(found["seeds"]) > 1 else "")
                for other, ratio in row["requests_over"].items()
            ]
        if row["name"] == "adaptive-hybrid":
            parts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in row["made_of"].items())
            lines.append(f"{row['name']}: {parts}")
    lines += ["", "as they are written, at their own staleness:", table(found["as_written"])]
    if "on_other_days" in found:
        seeds = ", ".join(str(day["seed"]) for day in found["on_other_days"][0]["by_seed"])
        lines += [
            "",
            f"at the same price on days that it was not solved on (seeds {seeds}):",
            table(found["on_other_days"]),
        ]
    if "variants" in found:
        lines += ["", "variants:", table(found["variants"])]
    return "\n".join([*lines, "", f"took {found['seconds']} s"])


def _title(found: dict[str, Any]) -> str:
    changes = f"{found['changes_per_day']:,} changes a day to be seen"
    if found["log"] is not None:
        devices = f"{found['fleet_devices']:,} devices"
        return f"log {found['log']}: its first 24 hours, {devices}; {changes}; nothing is known from before"
    seeds = ", ".join(map(str, found["seeds"]))
    bars = "; ± is half of a 95 % interval" if len(found["seeds"]) > 1 else ""
    return (
        f"fleet {found['fleet']}: {found['fleet_devices']:,} devices, of which {found['devices_per_seed']} simulated "
        f"for each seed ({seeds}); {changes}; feeds known for {found['known_days']} days{bars}"
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a terminal."""
    head = ("policy", "M requests/day", "mean s", "p50", "p95", "p99", "wake-ups", "peak/mean", "GB/day", "bound M",
            "of bound", "ceiling")  # fmt: skip
    lines = [head]
    for row in rows:
        bars = row["plus_minus"]
        requests = row["requests_per_day"] / _MILLION
        lines.append(
            (
                row["name"],
                # A log may be of a few devices.
                _with_bar(requests, (bars["requests_per_day"] or 0) / _MILLION, 2 if requests >= 1.0 else 4),
                f"{row['mean_s']:.1f}",
                f"{row['p50_s']:.1f}",
                _with_bar(row["p95_s"], bars["p95_s"] or 0, 1),
                f"{row['p99_s']:.1f}",
                f"{row['wakeups_per_device_day']:.0f}",
                f"{row['peak_over_mean']:.2f}",
                f"{row['bytes_per_day'] / 1e9:.1f}",
                "-" if row["bound_requests_per_day"] is None else f"{row['bound_requests_per_day'] / _MILLION:.2f}",
                "-" if row["optimality"] is None else _percent(row["optimality"], bars["optimality"]),
                "-" if row["causal_ceiling"] is None else f"{row['causal_ceiling']:.1%}",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _optimality(outcome: Outcome, days: Days) -> float:
    values = [_optimality_of(outcome, days, seed) for seed in outcome.tallies]
    return math.fsum(values) / len(values)


def _optimality_of(outcome: Outcome, days: Days, seed: int) -> float:
    tally = outcome.tallies[seed]
    return (outcome.bounds or days.bounds)[seed].least_requests(tally.mean_s) / tally.requests


def _of_seed(seed: int, tally: Tally, fleet: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "requests_per_day": round(tally.per_day(tally.requests, fleet)),
        "mean_s": round(tally.mean_s, 2),
        "p95_s": round(tally.quantiles_s(0.95)[0], 2),
    }


def _made_of(tally: Tally) -> dict[str, int]:
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


def _half(values: list[float], digits: int) -> float | None:
    half = half_width(values)
    return None if half is None else round(half, digits)


def _with_bar(value: float, bar: float | None, digits: int) -> str:
    return f"{value:.{digits}f} ±{bar:.{digits}f}" if bar else f"{value:.{digits}f}"


def _percent(value: float, bar: float | None) -> str:
    return f"{value:.1%}" if bar is None else f"{value:.1%} ±{100 * bar:.1f}"
