"""What `syncbeat-server simulate` does."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncbeat_server.devtools.simulate.fleet import FLEETS
from syncbeat_server.devtools.simulate.jobs import Crew, Sample, crew
from syncbeat_server.devtools.simulate.report import row_of, table
from syncbeat_server.devtools.simulate.schedules import PolicyRow, Settings
from syncbeat_server.devtools.simulate.study import Days, Outcome, solved
from syncbeat_server.sync.policy.interval import Bounds

_FLOOR_S, _CAP_OVER_TARGET = 5.0, 4.0
COMPARED = (PolicyRow.FIXED, PolicyRow.TIERS, PolicyRow.BACKOFF, PolicyRow.EWMA, PolicyRow.PULL)


@dataclass(frozen=True, slots=True)
class Request:
    """What the command was asked for."""

    fleet: str = "default"
    devices: int = 800
    seeds: tuple[int, ...] = (11, 12, 13)
    target_s: float = 15.0
    known_days: int = 3
    trace: Path | None = None
    workers: int = os.cpu_count() or 1
    as_json: bool = False


def simulate(request: Request) -> int:
    """Run it and print what came of it; 0."""
    started = time.monotonic()
    with crew(request.workers, progress(sys.stderr)) as hands:
        found = compare(request, hands)
    found["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(found, indent=1) if request.as_json else _text(found))
    return 0


def compare(request: Request, hands: Crew) -> dict[str, Any]:
    """All policies at the same mean staleness on the same days."""
    seeds = request.seeds if request.trace is None else request.seeds[:1]
    spec = FLEETS[request.fleet]
    days = Days.of([Sample(spec, seed, request.devices, request.known_days, request.trace) for seed in seeds])
    settings = Settings(1.0, Bounds(_FLOOR_S, _CAP_OVER_TARGET * request.target_s))
    ceiling = solved(PolicyRow.CEILING, days, settings, request.target_s, hands) if days.known else None
    outcomes = {row: solved(row, days, settings, request.target_s, hands) for row in COMPARED}
    reference = outcomes[PolicyRow.EWMA]
    return {
        "fleet": request.fleet,
        "devices": request.devices,
        "seeds": list(seeds),
        "known_days": request.known_days,
        "target_mean_s": request.target_s,
        "changes_per_day": round(_changes(reference, days)),
        "policies": [row_of(outcome, days, ceiling, reference) for outcome in outcomes.values()],
    }


def progress(stream: Any) -> Callable[[float, str], None]:
    """A bar on a terminal; nothing where nobody looks."""
    if not stream.isatty():
        return lambda _share, _what: None

    def show(share: float, what: str) -> None:
        filled = round(share * 30)
        stream.write(f"\r[{'#' * filled}{'.' * (30 - filled)}] {share:4.0%} {what:<32}")
        stream.flush()
        if share >= 1.0:
            stream.write("\r\x1b[K")

    return show


def _changes(outcome: Outcome, days: Days) -> float:
    counts = [tally.per_day(len(tally.delays), days.samples[0].spec.devices) for tally in outcome.tallies.values()]
    return sum(counts) / len(counts)


def _text(found: dict[str, Any]) -> str:
    seeds = ", ".join(map(str, found["seeds"]))
    title = (
        f"fleet {found['fleet']}: 20,000 devices, of which {found['devices']} simulated for each of the seeds {seeds}; "
        f"{found['changes_per_day']:,} changes a day to be seen; feeds known for {found['known_days']} days; "
        "± is half of a 95 % interval"
    )
    lines = [title, "", table(found["policies"])]
    for row in found["policies"]:
        if "estimator" in row:
            lines += ["", f"{row['name']}: " + ", ".join(f"{key} {value}" for key, value in row["estimator"].items())]
        if row["name"] == "adaptive-pull":
            ratio = row["requests_over_sqrt_ewma"]
            lines += [f"{row['name']}: {ratio['ratio']:.3f} ±{ratio['plus_minus']} of sqrt-ewma's requests, paired"]
    return "\n".join([*lines, "", f"took {found['seconds']} s"])
