"""Words of a run while it goes on, and of its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from syncbeat_devtools.soak.measure.recorder import Recorder
from syncbeat_devtools.soak.plan import Operation


def progress_line(recorder: Recorder, elapsed_s: float, duration_s: float, in_flight: int, open_streams: int) -> str:
    """Return a line about the run so far."""
    tallies = recorder.totals.tallies
    calls = sum(one.calls for one in tallies.values())
    errors = sum(one.errors for one in tallies.values())
    poll = tallies.get(Operation.POLL)
    p95 = None if poll is None else poll.times.quantile(0.95)
    verdict = recorder.verdicts[-1][1] if recorder.verdicts else "OK"
    return (
        f"soak: {span(elapsed_s)} of {span(duration_s)}  {verdict}  {calls:,} calls, {errors:,} failed, "
        f"hint p95 {milliseconds(p95)}, {in_flight} in flight, {open_streams} streams"
    )


def summary(document: Mapping[str, Any]) -> str:
    """Return the verdict, the figures by operation, and what the verdict comes from."""
    lines = [f"{'operation':<10}{'calls':>10}{'failed':>8}{'p50':>10}{'p95':>10}{'p99':>10}"]
    for name, one in document["operations"].items():
        times = "".join(f"{milliseconds(one[key]):>10}" for key in ("p50_s", "p95_s", "p99_s"))
        lines.append(f"{name:<10}{one['calls']:>10,}{one['errors']:>8,}{times}")
    lines += [
        f"{one['verdict']}: {one['name']} is {figure(one['value'], one['unit'])}, want "
        f"{figure(one['warn_threshold'], one['unit'])} at most"
        for one in document["triggers"]
        if one["verdict"] != "OK"
    ]
    lines += [f"failed: {name}: {count:,}" for name, count in list(document["causes"].items())[:10]]
    server = document["server"]
    lines.append(f"the server says of itself: {server['verdict'] or 'nothing, ' + server['why_no_verdict']}")
    if document["left_behind_users"]:
        lines.append(f"left behind: {document['left_behind_users']:,} users could not be deleted")
    lines.append(f"{document['verdict']} after {span(document['elapsed_s'])}")
    return "\n".join(lines)


def span(seconds: float) -> str:
    """Return a span as `1:02:03`."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def milliseconds(seconds: float | None) -> str:
    """Return a time as `12.3 ms`."""
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def figure(value: float | None, unit: str) -> str:
    """Return a figure with its unit, shares in percent."""
    if value is None:
        return "-"
    if unit == "s":
        return milliseconds(value) if value < 1 else f"{value:.1f} s"
    if unit == "ratio" and value <= 1:
        return f"{100 * value:.3g} %"
    return f"{value:.3g} {'' if unit == 'ratio' else unit}".strip()
