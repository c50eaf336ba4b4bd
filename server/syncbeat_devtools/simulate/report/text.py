"""Formats the results of a study for a terminal."""

from __future__ import annotations

from typing import Any

from syncbeat_devtools.simulate.report.log_text import format_log
from syncbeat_devtools.simulate.report.table import format_table, with_error


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
    if "log" in found:
        return format_log(found)
    lines = [_title(found), "", format_table(found["policies"])]
    for row in found["policies"]:
        if "estimator" in row:
            said = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row["estimator"].items())
            lines += ["", f"{row['name']}: {said}"]
        if row["name"] == "adaptive-pull":
            lines += [
                f"{row['name']}: {with_error(ratio['ratio'], ratio['plus_minus'], 3)} of {other}'s requests"
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
    seeds = ", ".join(map(str, found["seeds"]))
    bars = "; ± is half of a 95 % interval" if len(found["seeds"]) > 1 else ""
    return (
        f"fleet {found['fleet']}: {found['fleet_devices']:,} devices, of which {found['devices_per_seed']} simulated "
        f"for each seed ({seeds}); {changes}; feeds known for {found['known_days']} days{bars}"
    )
