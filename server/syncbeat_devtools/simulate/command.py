"""What `syncbeat-server simulate` does."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from syncbeat_devtools.simulate.engine.jobs import Crew, Sample, crew
from syncbeat_devtools.simulate.engine.outage import after_outage
from syncbeat_devtools.simulate.fleet.devices import DAY, FLEETS
from syncbeat_devtools.simulate.fleet.traces import read_trace
from syncbeat_devtools.simulate.policies.settings import PolicyRow, Settings
from syncbeat_devtools.simulate.report.output import printed
from syncbeat_devtools.simulate.report.plots import draw_curves, draw_sweeps
from syncbeat_devtools.simulate.report.rows import row_of, text_of
from syncbeat_devtools.simulate.request import Request, bounds_of, check
from syncbeat_devtools.simulate.study.estimate import recount
from syncbeat_devtools.simulate.study.solver import LATENESS_S, Days, Outcome, on_other_days, run, solved, solved_hybrid
from syncbeat_devtools.simulate.study.sweeps import curves, sweeps
from syncbeat_devtools.simulate.variants import variants
from syncbeat_server.sync.policy.baselines import FIXED_S
from syncbeat_server.sync.policy.belief import DEFAULT_PRIOR, Prior
from syncbeat_server.sync.policy.fit_samples import History
from syncbeat_server.sync.tuning.prior_fit import fit

COMPARED = (PolicyRow.FIXED, PolicyRow.TIERS, PolicyRow.BACKOFF, PolicyRow.EWMA, PolicyRow.PULL)
_BACKOFF_CAP_S = 300.0
_CURVE_DEVICES, _CURVE_SEEDS = 120, 2
_FITTED_FEEDS, _ANOTHER_SEED = 300, 1_000_000


def simulate(request: Request) -> int:
    """Run it and print what came of it; 0, or 1 when nobody reads it.

    Raises:
        ConfigurationError: it contradicts itself, or a file of it is no good.
    """
    started = time.monotonic()
    check(request)
    with crew(request.workers, progress(sys.stderr)) as hands:
        found = _outage(request, hands) if request.outage else _compared(request, hands)
    found["seconds"] = round(time.monotonic() - started, 1)
    return printed(json.dumps(found, indent=1) if request.as_json else text_of(found))


def _outage(request: Request, hands: Crew) -> dict[str, Any]:
    spec, seed = FLEETS[request.fleet], request.seeds[0]
    ways = after_outage(spec, seed, spec.devices, hands.executor)
    return {
        "fleet": request.fleet,
        "seed": seed,
        "after_outage": [
            {
                "moments": way.placing.value,
                "peak_per_s": way.peak_per_s,
                "mean_per_s": round(way.mean_per_s, 1),
                "peak_over_mean": round(way.peak_over_mean, 3),
                "interval_given_over_wanted": round(way.lengthened, 4),
            }
            for way in ways
        ],
    }


def _compared(request: Request, hands: Crew) -> dict[str, Any]:
    days = _days(request, request.devices)
    settings = _settings(request, days)
    found = compare(request, days, settings, hands)
    if request.variants:
        found["variants"] = variants(days, settings, request.target_s, hands)
    few = _days(replace(request, seeds=request.seeds[:_CURVE_SEEDS]), min(request.devices, _CURVE_DEVICES))
    if request.plot is not None:
        found["curves"] = curves(few, settings, hands)
        size = few.samples[0].size
        title = f"fleet {request.fleet}, {size} devices a seed" if days.known else f"log {found['log']}, {size} devices"
        draw_curves(request.plot, found["curves"], title, days.fleet)
    if request.sweep is not None:
        price = next(row["multiplier"] for row in found["policies"] if row["name"] == PolicyRow.HYBRID)
        found["sweeps"] = sweeps(few, replace(settings, multiplier=price, lateness_s=LATENESS_S), hands)
        draw_sweeps(request.sweep, found["sweeps"])
    found["original_estimate"] = recount()._asdict()
    return found


def _days(request: Request, devices: int) -> Days:
    spec, trace = FLEETS[request.fleet], request.trace
    if trace is not None:
        return Days.of([Sample(spec, request.seeds[0], len(read_trace(trace)), 0, trace)])
    return Days.of([Sample(spec, seed, devices, request.known_days) for seed in request.seeds])


def _settings(request: Request, days: Days) -> Settings:
    return Settings(1.0, bounds_of(request), fitted_prior(days.samples[0]))


def fitted_prior(sample: Sample) -> Prior:
    """What the server's nightly fit makes of a day of other feeds of the fleet; of a log, of the devices' own day."""
    few = min(sample.size, _FITTED_FEEDS)
    others = replace(sample, seed=sample.seed + _ANOTHER_SEED, size=few, history_days=0)
    histories = [History(0.0, DAY, device.changes) for device in others.devices()[:few]]
    fitted = fit(histories, DEFAULT_PRIOR)
    return DEFAULT_PRIOR if fitted is None else fitted.prior


def compare(request: Request, days: Days, settings: Settings, hands: Crew) -> dict[str, Any]:
    """All policies at the same mean staleness on the same days, and the hybrid at its own limits."""
    ceiling = solved(PolicyRow.CEILING, days, settings, request.target_s, hands) if days.known else None
    outcomes = {row: solved(row, days, settings, request.target_s, hands) for row in COMPARED}
    others = (outcomes[PolicyRow.FIXED], outcomes[PolicyRow.EWMA])
    hybrid = solved_hybrid(days, settings, hands)
    hybrid_ceiling = solved_hybrid(days, settings, hands, PolicyRow.HYBRID_CEILING) if days.known else None
    found = {
        "fleet": request.fleet if request.trace is None else request.trace.name,
        "log": None if request.trace is None else request.trace.name,
        "fleet_devices": days.fleet,
        "devices_per_seed": days.samples[0].size,
        "seeds": [sample.seed for sample in days.samples],
        "known_days": days.samples[0].history_days,
        "target_mean_s": request.target_s,
        "bounds_s": list(settings.bounds),
        "fitted_prior": settings.prior._asdict(),
        "changes_per_day": round(_changes(others[0], days)),
        "policies": [
            *(row_of(outcome, days, ceiling, others) for outcome in outcomes.values()),
            row_of(hybrid, days, hybrid_ceiling),
        ],
        "as_written": [
            row_of(Outcome(row, run(row, days, replace(settings, multiplier=scale), hands), scale), days, None)
            for row, scale in ((PolicyRow.TIERS, 1.0), (PolicyRow.BACKOFF, _BACKOFF_CAP_S / FIXED_S))
        ],
    }
    if days.known:
        elsewhere, same_price = on_other_days(hybrid, days, settings, hands)
        found["on_other_days"] = [row_of(same_price, elsewhere, None)]
    return found


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
    counts = [tally.per_day(len(tally.delays), days.fleet) for tally in outcome.tallies.values()]
    return sum(counts) / len(counts)
