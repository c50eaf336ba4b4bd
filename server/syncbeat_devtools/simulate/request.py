"""The options of `syncbeat-server simulate`, and their validation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from syncbeat_devtools.simulate.fleet.log_lines import LogFormat
from syncbeat_devtools.simulate.report.plots import check_plot
from syncbeat_server.defaults import TARGET_STALENESS_S
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.sync.policy import DEFAULT_TUNING
from syncbeat_server.sync.policy.interval import Bounds


@dataclass(frozen=True, slots=True)
class Request:
    """The options of one run."""

    fleet: str = "default"
    devices: int = 800
    seeds: tuple[int, ...] = (11, 12, 13)
    target_s: float = TARGET_STALENESS_S
    cap_s: float | None = None
    known_days: int = 3
    trace: Path | None = None
    form: LogFormat = LogFormat.EVENTS
    log_devices: int | None = None
    """The devices of a day of a log that are played at the most; None: all."""
    caps: bool = False
    history_days: int = 7
    measure_days: int | None = None
    measure_from: float | None = None
    measure_each: tuple[float, ...] = ()
    """Starts of days (unix seconds): of the first of `measure_days`, and of days that are each measured alone."""
    variants: bool = False
    outage: bool = False
    plot: Path | None = None
    sweep: Path | None = None
    workers: int = os.cpu_count() or 1
    as_json: bool = False


def interval_bounds(request: Request) -> Bounds:
    """Return the shortest and the longest interval of the policies that have such bounds."""
    floor_s, cap_s = DEFAULT_TUNING.bounds
    return Bounds(floor_s, request.cap_s or cap_s * request.target_s / TARGET_STALENESS_S)


def check_request(request: Request) -> None:
    """Raise ConfigurationError if the options cannot be met, before hours of work."""
    if request.trace is not None and request.variants:
        raise ConfigurationError("--variants: needs the true rates of a fleet, which no log tells: not with --trace")
    if request.trace is None and (request.measure_days or request.measure_each or request.measure_from is not None):
        raise ConfigurationError("--measure-days, --measure-from, --measure-day: choose days of a log: want --trace")
    if request.trace is None and request.caps:
        raise ConfigurationError(
            "--caps: compares longest intervals on a log: wants --trace; for a fleet see --variants"
        )
    if request.measure_each and (request.measure_days or request.measure_from is not None):
        raise ConfigurationError("--measure-day: measures each day alone: not with --measure-days or --measure-from")
    if request.trace is not None and request.sweep is not None:
        raise ConfigurationError("--sweep: changes the pushes of a fleet: not with --trace")
    if request.outage and (request.trace or request.variants or request.plot or request.sweep):
        raise ConfigurationError("--outage: is a study of its own: not with --trace, --variants, --plot, --sweep")
    if len(set(request.seeds)) < len(request.seeds):
        raise ConfigurationError("--seed: the same one twice tells no more than once")
    floor_s, cap_s = interval_bounds(request)
    # Polling at even intervals leaves half of an interval in the mean, whatever the policy.
    if not floor_s / 2.0 < request.target_s < cap_s / 2.0:
        raise ConfigurationError(
            f"--mean, --cap: intervals from {floor_s:g} to {cap_s:g} s give means between {floor_s / 2.0:g} and "
            f"{cap_s / 2.0:g} s, so {request.target_s:g} s cannot be met"
        )
    if request.plot is not None and request.plot == request.sweep:
        raise ConfigurationError("--plot, --sweep: want two files")
    for path in (request.plot, request.sweep):
        if path is not None:
            check_plot(path)
