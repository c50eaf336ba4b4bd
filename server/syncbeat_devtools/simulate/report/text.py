"""Formats the results of a study for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MILLION = 1e6


def format_results(found: dict[str, Any]) -> str:
    """Format all results."""
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
    lines = [_title(found), "", format_table(found["policies"])]
    for row in found["policies"]:
        if "estimator" in row:
            said = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row["estimator"].items())
            lines += ["", f"{row['name']}: {said}"]
        if row["name"] == "adaptive-pull":
            lines += [
                f"{row['name']}: {_with_error(ratio['ratio'], ratio['plus_minus'], 3)} of {other}'s requests"
                + (", paired by seed" if len(found["seeds"]) > 1 else "")
                for other, ratio in row["requests_over"].items()
            ]
        if row["name"] == "adaptive-hybrid":
            parts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in row["made_of"].items())
            lines.append(f"{row['name']}: {parts}")
    lines += ["", "as they are written, at their own staleness:", format_table(found["as_written"])]
    if "on_other_days" in found:
        seeds = ", ".join(str(day["seed"]) for day in found["on_other_days"][0]["by_seed"])
        lines += [
            "",
            f"at the same price on days that it was not solved on (seeds {seeds}):",
            format_table(found["on_other_days"]),
        ]
    if "variants" in found:
        lines += ["", "variants:", format_table(found["variants"])]
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


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format rows as a table."""
    head = (
        "policy",
        "M requests/day",
        "mean s",
        "p50",
        "p95",
        "p99",
        "wake-ups",
        "peak/mean",
        "GB/day",
        "bound M",
        "of bound",
        "ceiling",
    )
    lines = [head]
    for row in rows:
        bars = row["plus_minus"]
        requests = row["requests_per_day"] / _MILLION
        lines.append(
            (
                row["name"],
                # A log may have only a few devices.
                _with_error(requests, (bars["requests_per_day"] or 0) / _MILLION, 2 if requests >= 1.0 else 4),
                f"{row['mean_s']:.1f}",
                f"{row['p50_s']:.1f}",
                _with_error(row["p95_s"], bars["p95_s"] or 0, 1),
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


def _with_error(value: float, bar: float | None, digits: int) -> str:
    return f"{value:.{digits}f} ±{bar:.{digits}f}" if bar else f"{value:.{digits}f}"


def _percent(value: float, bar: float | None) -> str:
    return f"{value:.1%}" if bar is None else f"{value:.1%} ±{100 * bar:.1f}"
