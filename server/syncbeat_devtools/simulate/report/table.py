"""Formats rows of figures as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MILLION = 1e6


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
                with_error(requests, (bars["requests_per_day"] or 0) / _MILLION, 2 if requests >= 1.0 else 4),
                f"{row['mean_s']:.1f}",
                f"{row['p50_s']:.1f}",
                with_error(row["p95_s"], bars["p95_s"] or 0, 1),
                f"{row['p99_s']:.1f}",
                f"{row['wakeups_per_device_day']:.0f}",
                f"{row['peak_over_mean']:.2f}",
                f"{row['bytes_per_day'] / 1e9:.1f}",
                "-" if row["bound_requests_per_day"] is None else f"{row['bound_requests_per_day'] / _MILLION:.2f}",
                "-" if row["optimality"] is None else _percent(row["optimality"], bars["optimality"]),
                "-" if row["causal_ceiling"] is None else f"{row['causal_ceiling']:.1%}",
            )
        )
    return align_columns(lines)


def align_columns(lines: Sequence[Sequence[str]]) -> str:
    """Format lines of cells as a table: the first column to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def with_error(value: float, bar: float | None, digits: int) -> str:
    """Format a value with half of its confidence interval, if there is one."""
    return f"{value:.{digits}f} ±{bar:.{digits}f}" if bar else f"{value:.{digits}f}"


def _percent(value: float, bar: float | None) -> str:
    return f"{value:.1%}" if bar is None else f"{value:.1%} ±{100 * bar:.1f}"
