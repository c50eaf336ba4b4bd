"""Formats the results of a study of a log for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from syncbeat_devtools.simulate.report.table import align_columns, format_table

_HEAD = ("policy", "requests/day", "95 %", "mean s", "95 %", "p50", "p95", "95 %", "p99", "by the cap", "bound")


def format_log(found: dict[str, Any]) -> str:
    """Format all results."""
    lines = [_title(found), "", align_columns([_HEAD, *[_cells(row) for row in found["policies"]]])]
    lines += [f"{row['name']}: not at the target: {row['reason']}" for row in found["policies"] if row["reason"]]
    for row in found["policies"]:
        if "requests_over" in row:
            lines += ["", f"requests of {row['name']} over those of others at one mean, and by day:"]
            lines.append(align_columns([_ratio_cells(*one) for one in row["requests_over"].items()]))
    lines += ["", f"best rival: {found['best_rival']}; constants tuned on the days before: {_constants(found)}"]
    if "caps" in found:
        lines += [
            "",
            "adaptive-pull by its longest interval, at the same mean:",
            align_columns(_cap_lines(found["caps"])),
        ]
    lines += ["", "with pushes, a device's scopes taken for one feed:", format_table(found["hybrid"])]
    return "\n".join([*lines, "", f"took {found['seconds']} s"])


def _title(found: dict[str, Any]) -> str:
    days = found["days"]
    devices = sum(day["devices"] for day in days) / len(days)
    changes = sum(day["changes"] for day in days) / len(days)
    floor_s, cap_s = found["bounds_s"]
    share = found["devices_played_share"]
    played = "" if share == 1.0 else f", of which {share:.0%} were played"
    alone = ", each alone" if found["each_day_alone"] else ""
    return (
        f"log {found['log']}: {_dates([day['start'] for day in days])}{alone}, after {found['history_days']} days of "
        f"history; {devices:,.0f} devices and {changes:,.0f} changes to be seen a day{played}; intervals from "
        f"{floor_s:g} to {cap_s:g} s; intervals of figures by bootstrap over days; bound: what who knows each commit "
        f"needs, {found['clairvoyant_requests_per_day']:,} requests a day"
    )


def _dates(starts: Sequence[float]) -> str:
    told = [datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%d %H:%M") for start in starts]
    if len(told) == 1:
        return f"the day from {told[0]} UTC"
    return f"{len(told)} days from {told[0]} to {told[-1]} UTC"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    about = row["intervals"]
    return (
        row["name"],
        f"{row['requests_per_day']:,}",
        _interval(about["requests_per_day"], "{:,.0f}"),
        f"{row['mean_s']:.2f}",
        _interval(about["mean_s"], "{:.1f}"),
        f"{row['p50_s']:.1f}",
        f"{row['p95_s']:.1f}",
        _interval(about["p95_s"], "{:.0f}"),
        f"{row['p99_s']:.0f}",
        f"{row['capped_share']:.1%}",
        f"{row['bound_share']:.2%}",
    )


def _ratio_cells(name: str, ratio: dict[str, Any]) -> tuple[str, ...]:
    by_day = ratio["by_day"] if len(ratio["by_day"]) <= 7 else []
    return (
        name,
        f"{ratio['ratio']:.3f}",
        _interval(ratio["interval"], "{:.3f}"),
        " ".join(f"{one:.3f}" for one in by_day),
    )


def _cap_lines(caps: Sequence[dict[str, float]]) -> Sequence[tuple[str, ...]]:
    head = ("cap s", "requests/device", "over the last", "p95", "p99", "longest", "by the cap")
    return [
        head,
        *[
            (
                f"{cap['cap_s']:g}",
                f"{cap['requests_per_device_day']:,.0f}",
                f"{cap['requests_over']:.3f}",
                f"{cap['p95_s']:.0f}",
                f"{cap['p99_s']:.0f}",
                f"{cap['longest_s']:,.0f}",
                f"{cap['capped_share']:.1%}",
            )
            for cap in caps
        ],
    ]


def _interval(ends: Sequence[float] | None, form: str) -> str:
    return "-" if ends is None else " to ".join(form.format(end) for end in ends)


def _constants(found: dict[str, Any]) -> str:
    told = {
        f"{name} {pair[0]:g} s, {pair[1]:g}" for group in found["constants"] for name, pair in group["rivals"].items()
    }
    return "; ".join(sorted(told)) or "none, for want of days"
