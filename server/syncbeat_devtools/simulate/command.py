"""The command `syncbeat-server simulate`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from syncbeat_devtools.simulate.engine.jobs import JobRunner, Sample, job_runner
from syncbeat_devtools.simulate.engine.outage import simulate_outage
from syncbeat_devtools.simulate.fleet.devices import DAY, FLEETS
from syncbeat_devtools.simulate.log_command import compare_on_log
from syncbeat_devtools.simulate.policies.settings import PolicyRow, Settings
from syncbeat_devtools.simulate.report.output import print_result
from syncbeat_devtools.simulate.report.plots import draw_curves, draw_sweeps
from syncbeat_devtools.simulate.report.rows import make_row
from syncbeat_devtools.simulate.report.text import format_results
from syncbeat_devtools.simulate.request import Request, check_request, interval_bounds
from syncbeat_devtools.simulate.study.estimate import recompute_estimate
from syncbeat_devtools.simulate.study.solver import (
    LATENESS_S,
    Days,
    Outcome,
    run,
    run_on_other_days,
    solve,
    solve_hybrid,
)
from syncbeat_devtools.simulate.study.sweeps import sweep_assumptions, tradeoff_curves
from syncbeat_devtools.simulate.variants import run_variants
from syncbeat_server.sync.policy.comparison_policies import FIXED_S
from syncbeat_server.sync.policy.fit_samples import History
from syncbeat_server.sync.policy.rhythm import NO_RHYTHM, Rhythm, rhythm_of
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR, Prior
from syncbeat_server.sync.tuning.prior_fit import fit
from syncbeat_server.sync.tuning.rhythm_fit import learn_rhythm

COMPARED = (PolicyRow.FIXED, PolicyRow.TIERS, PolicyRow.BACKOFF, PolicyRow.EWMA, PolicyRow.PULL)
_BACKOFF_CAP_S = 300.0
_CURVE_DEVICES, _CURVE_SEEDS = 120, 2
_FITTED_FEEDS, _ANOTHER_SEED = 300, 1_000_000


def simulate(request: Request) -> int:
    """Run a study and print its results. Returns the exit status: 0, or 1 if the output is closed.

    Raises:
        ConfigurationError: the request contradicts itself, or one of its files cannot be used.
    """
    started = time.monotonic()
    check_request(request)
    with job_runner(request.workers, progress_bar(sys.stderr)) as runner:
        if request.outage:
            found = _outage(request, runner)
        elif request.trace is not None:
            found = compare_on_log(request, runner)
        else:
            found = _compare(request, runner)
    found["seconds"] = round(time.monotonic() - started, 1)
    return print_result(json.dumps(found, indent=1) if request.as_json else format_results(found))


def _outage(request: Request, runner: JobRunner) -> dict[str, Any]:
    spec, seed = FLEETS[request.fleet], request.seeds[0]
    ways = simulate_outage(spec, seed, spec.devices, runner.executor)
    return {
        "fleet": request.fleet,
        "seed": seed,
        "after_outage": [
            {
                "moments": way.placement.value,
                "peak_per_s": way.peak_per_s,
                "mean_per_s": round(way.mean_per_s, 1),
                "peak_over_mean": round(way.peak_over_mean, 3),
                "interval_given_over_wanted": round(way.lengthened, 4),
            }
            for way in ways
        ],
    }


def _compare(request: Request, runner: JobRunner) -> dict[str, Any]:
    days = _days(request, request.devices)
    settings = _settings(request, days)
    found = compare_policies(request, days, settings, runner)
    if request.variants:
        found["variants"] = run_variants(days, settings, request.target_s, runner)
    few = _days(replace(request, seeds=request.seeds[:_CURVE_SEEDS]), min(request.devices, _CURVE_DEVICES))
    if request.plot is not None:
        found["curves"] = tradeoff_curves(few, settings, runner)
        size = few.samples[0].size
        draw_curves(request.plot, found["curves"], f"fleet {request.fleet}, {size} devices a seed", days.fleet)
    if request.sweep is not None:
        price = next(row["multiplier"] for row in found["policies"] if row["name"] == PolicyRow.HYBRID)
        found["sweeps"] = sweep_assumptions(few, replace(settings, multiplier=price, lateness_s=LATENESS_S), runner)
        draw_sweeps(request.sweep, found["sweeps"])
    found["original_estimate"] = recompute_estimate()._asdict()
    return found


def _days(request: Request, devices: int) -> Days:
    spec = FLEETS[request.fleet]
    return Days.of([Sample(spec, seed, devices, request.known_days) for seed in request.seeds])


def _settings(request: Request, days: Days) -> Settings:
    prior, rhythm = learn_from_others(days.samples[0])
    return Settings(1.0, interval_bounds(request), prior, rhythm=rhythm)


def learn_from_others(sample: Sample) -> tuple[Prior, Rhythm]:
    """Return the prior and the rhythm that the server's nightly fit derives from a day of other feeds of the fleet."""
    few = min(sample.size, _FITTED_FEEDS)
    others = replace(sample, seed=sample.seed + _ANOTHER_SEED, size=few, history_days=0)
    histories = [History(0.0, DAY, device.changes) for device in others.devices()[:few]]
    fitted = fit(histories, DEFAULT_PRIOR)
    if fitted is None:
        return DEFAULT_PRIOR, NO_RHYTHM
    return fitted.prior, rhythm_of(learn_rhythm(histories, fitted.prior))


def compare_policies(request: Request, days: Days, settings: Settings, runner: JobRunner) -> dict[str, Any]:
    """Compare all policies at the same mean staleness on the same days, and the hybrid at its own limits."""
    ceiling = solve(PolicyRow.CEILING, days, settings, request.target_s, runner)
    outcomes = {row: solve(row, days, settings, request.target_s, runner) for row in COMPARED}
    others = (outcomes[PolicyRow.FIXED], outcomes[PolicyRow.EWMA])
    hybrid = solve_hybrid(days, settings, runner)
    hybrid_ceiling = solve_hybrid(days, settings, runner, PolicyRow.HYBRID_CEILING)
    found = {
        "fleet": request.fleet,
        "fleet_devices": days.fleet,
        "devices_per_seed": days.samples[0].size,
        "seeds": [sample.seed for sample in days.samples],
        "known_days": days.samples[0].history_days,
        "target_mean_s": request.target_s,
        "bounds_s": list(settings.bounds),
        "fitted_prior": settings.prior._asdict(),
        "changes_per_day": round(_changes(others[0], days)),
        "policies": [
            *(make_row(outcome, days, ceiling, others) for outcome in outcomes.values()),
            make_row(hybrid, days, hybrid_ceiling),
        ],
        "as_written": [
            make_row(Outcome(row, run(row, days, replace(settings, multiplier=scale), runner), scale), days, None)
            for row, scale in ((PolicyRow.TIERS, 1.0), (PolicyRow.BACKOFF, _BACKOFF_CAP_S / FIXED_S))
        ],
    }
    elsewhere, same_price = run_on_other_days(hybrid, days, settings, runner)
    found["on_other_days"] = [make_row(same_price, elsewhere, None)]
    return found


def progress_bar(stream: Any) -> Callable[[float, str], None]:
    """Return a function that draws a progress bar on a terminal, or does nothing elsewhere."""
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
