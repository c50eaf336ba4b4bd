"""Puts the records of a run into one document, which is written as JSON, drawn as a page, and compared later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from syncbeat_devtools.soak.load.server_verdict import ServerVerdict
from syncbeat_devtools.soak.measure.histogram import Histogram
from syncbeat_devtools.soak.measure.recorder import Recorder
from syncbeat_devtools.soak.measure.series import Point
from syncbeat_devtools.soak.verdict.compare import compare
from syncbeat_devtools.soak.verdict.judge import (
    judge_run,
    judge_window,
    push_accepted,
    rss_samples,
    rss_slope,
    window_s,
    worst,
)
from syncbeat_devtools.soak.verdict.objectives import Objectives, Trigger, Verdict

FORMAT = 1


@dataclass(frozen=True)
class Circumstances:
    """Holds what a report says beside the records."""

    version: str
    target: str
    run: Mapping[str, Any]
    started: str
    ended: str
    elapsed_s: float
    lives: int
    scrape_failures: int = 0
    left_behind: int = 0


def make_document(
    recorder: Recorder,
    objectives: Objectives,
    about: Circumstances,
    server: ServerVerdict,
    *,
    earlier: Mapping[str, Any] | None = None,
    heed_server: bool = True,
) -> dict[str, Any]:
    """Return the report of a run: its verdict is the worst of its own, of the comparison, and of the server's."""
    duration_s = float(about.run["duration_s"])
    series, totals = recorder.series, recorder.totals
    found: dict[str, Any] = {
        "format": FORMAT,
        "version": about.version,
        "target": about.target,
        "run": dict(about.run),
        "started": about.started,
        "ended": about.ended,
        "elapsed_s": round(about.elapsed_s, 1),
        "lives": about.lives,
        "left_behind_users": about.left_behind,
        "window_s": window_s(duration_s),
        "objectives": vars(objectives),
        "operations": {
            str(name): {
                "calls": one.calls,
                "errors": one.errors,
                "server_faults": one.faults,
                "per_second": round(one.calls / max(about.elapsed_s, 1e-9), 3),
                **_quantiles(one.times),
            }
            for name, one in sorted(totals.tallies.items())
        },
        "staleness": {"poll": _ages(totals.poll_staleness), "stream": _ages(totals.stream_staleness)},
        "push": {"states": dict(sorted(totals.push_states.items())), "accepted": push_accepted(totals)},
        "causes": dict(totals.causes.most_common()),
        "sent_late": _quantiles(totals.lateness),
        "server": _server(recorder, about, server, duration_s),
        "verdict_changes": [[round(at_s, 1), verdict] for at_s, verdict in recorder.verdicts],
        "series": {
            "width_s": series.width_s,
            "points": [_point(at_s, point, series.width_s) for at_s, point in series.timed()],
        },
    }
    triggers = [
        *judge_window(series, objectives, duration_s),
        *judge_run(series, totals, objectives, duration_s),
        *(compare(found, earlier, objectives) if earlier is not None else ()),
    ]
    own = worst(triggers)
    counts_server = heed_server and server.verdict is not None
    found["triggers"] = _as_json(triggers)
    found["own_verdict"] = own.name
    found["verdict"] = max(own, server.verdict or Verdict.OK).name if counts_server else own.name
    found["error_budget_remaining"] = _budget(
        sum(one.calls for one in totals.tallies.values()),
        sum(one.faults for one in totals.tallies.values()),
        objectives,
    )
    _add_budgets(found["series"]["points"], series.points, objectives)
    return found


def _server(recorder: Recorder, about: Circumstances, server: ServerVerdict, duration_s: float) -> dict[str, Any]:
    points = recorder.series.points
    cpu_s, calls = sum(point.cpu_s for point in points), sum(point.counts[0] for point in points)
    memory = rss_samples(recorder.series, duration_s)
    return {
        "verdict": None if server.verdict is None else server.verdict.name,
        "why_no_verdict": server.why,
        "triggers": list(server.triggers),
        "cpu_s_per_call": cpu_s / calls if cpu_s and calls else None,
        "rss_mib_after_warm_up": round(memory[0][1], 1) if memory else None,
        "rss_mib_at_end": round(memory[-1][1], 1) if memory else None,
        "rss_mib_per_hour": rss_slope(recorder.series, duration_s),
        "scrape_failures": about.scrape_failures,
    }


def _point(at_s: float, point: Point, width_s: float) -> dict[str, Any]:
    calls, errors, faults = point.counts
    return {
        "at_s": at_s,
        "calls": calls,
        "errors": errors,
        "server_faults": faults,
        "p95_s": {str(name): _round(one.times.quantile(0.95)) for name, one in sorted(point.tallies.items())},
        "poll_staleness_mean_s": _round(point.poll_staleness.mean()),
        "stream_staleness_mean_s": _round(point.stream_staleness.mean()),
        "rss_mib": None if point.rss_octets is None else round(point.rss_octets / (1 << 20), 2),
        "cpu_cores": round(point.cpu_s / width_s, 4) if point.cpu_s else None,
    }


def _add_budgets(found: Sequence[dict[str, Any]], points: Sequence[Point], objectives: Objectives) -> None:
    """Add to each point what was left after it of the failures that the whole run so far may have."""
    calls = faults = 0
    for one, point in zip(found, points, strict=True):
        calls, faults = calls + point.counts[0], faults + point.counts[2]
        one["error_budget_remaining"] = _budget(calls, faults, objectives)


def _budget(calls: int, faults: int, objectives: Objectives) -> float | None:
    allowed = (1 - objectives.availability) * calls
    return round(1 - faults / allowed, 4) if allowed > 0 else None


def _quantiles(times: Histogram) -> dict[str, float | None]:
    shares = (("p50_s", 0.5), ("p95_s", 0.95), ("p99_s", 0.99), ("max_s", 1.0))
    return {name: _round(times.quantile(share)) for name, share in shares}


def _ages(times: Histogram) -> dict[str, float | int | None]:
    return {"changes": times.count, "mean_s": _round(times.mean()), **_quantiles(times)}


def _as_json(triggers: Sequence[Trigger]) -> list[dict[str, Any]]:
    return [{**vars(one), "value": _round(one.value), "verdict": one.verdict.name} for one in triggers]


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
