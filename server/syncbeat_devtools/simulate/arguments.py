"""Arguments of `syncbeat-server simulate`. Every command imports this module to parse, so it imports nothing slow."""

from __future__ import annotations

import argparse
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from syncbeat_server.defaults import LONGEST_POLL_S, TARGET_STALENESS_S

_FLEET, _SIMULATED = 20_000, 800
_MAX_MEAN_S = 600.0
_MAX_KNOWN_DAYS = 30
_MAX_LOG_DAYS = 400
_MAX_DIGITS = 9


def add_simulate(commands: Any) -> None:
    """Add the command to the parser."""
    simulate = commands.add_parser(
        "simulate", help="a day of a fleet through the real policy code, policies side by side"
    )
    fleets = ("default", "constant", "bursty", "heavy")
    simulate.add_argument("--fleet", choices=fleets, default="default", help="default: %(default)s")
    simulate.add_argument("--devices", type=_devices, help="simulated a seed (default: 800; of a log: all)")
    simulate.add_argument("--full", action="store_true", help="simulate all 20,000 devices")
    simulate.add_argument("--seed", type=int, action="append", help="may be repeated (default: 11, 12 and 13)")
    simulate.add_argument("--mean", type=_mean, default=TARGET_STALENESS_S, help="seconds (default: %(default)g)")
    simulate.add_argument("--cap", type=_cap, help="the longest interval, seconds (default: the server's)")
    simulate.add_argument("--known-days", type=_days, default=3, help="feeds are known so long (default: %(default)s)")
    _add_log(simulate)
    simulate.add_argument("--variants", action="store_true", help="also what presence, caps and wake-ups change")
    simulate.add_argument("--outage", action="store_true", help="instead: 20,000 devices after an outage")
    simulate.add_argument("--plot", type=Path, metavar="FILE", help="draw staleness against requests (.png, .svg)")
    simulate.add_argument("--sweep", type=Path, metavar="FILE", help="draw the hybrid as pushes and systems get worse")
    simulate.add_argument("--processes", type=_processes, default=os.cpu_count() or 1, help="default: one a core")
    simulate.add_argument("--json", action="store_true", help="print JSON")
    simulate.set_defaults(run=_simulate)


def _add_log(simulate: argparse.ArgumentParser) -> None:
    simulate.add_argument("--trace", type=Path, help="replay a log: CSV with time, scope, device, kind")
    simulate.add_argument(
        "--trace-format",
        choices=("events", "messages"),
        default="events",
        help="messages: lines of a sender, a receiver and unix seconds (default: %(default)s)",
    )
    simulate.add_argument(
        "--history-days", type=_history, default=7, help="of a log, before each measured day (default: %(default)s)"
    )
    simulate.add_argument("--caps", action="store_true", help="of a log: also what other longest intervals cost")
    simulate.add_argument("--measure-days", type=_measured, help="days of a log, measured together (default: the last)")
    simulate.add_argument("--measure-from", type=_date, metavar="DATE", help="the first of them (default: the last)")
    simulate.add_argument(
        "--measure-day", type=_date, action="append", metavar="DATE", help="measure it alone; may be repeated"
    )


def _simulate(parsed: argparse.Namespace) -> int:
    from syncbeat_devtools.simulate.command import simulate
    from syncbeat_devtools.simulate.fleet.log_lines import LogFormat
    from syncbeat_devtools.simulate.request import Request

    return simulate(
        Request(
            fleet=parsed.fleet,
            devices=_FLEET if parsed.full else parsed.devices or _SIMULATED,
            log_devices=None if parsed.full else parsed.devices,
            seeds=tuple(parsed.seed or ((11, 12, 13) if parsed.trace is None else (11,))),
            target_s=parsed.mean,
            cap_s=parsed.cap,
            known_days=parsed.known_days,
            trace=parsed.trace,
            form=LogFormat(parsed.trace_format),
            caps=parsed.caps,
            history_days=parsed.history_days,
            measure_days=parsed.measure_days,
            measure_from=parsed.measure_from,
            measure_each=tuple(parsed.measure_day or ()),
            variants=parsed.variants,
            outage=parsed.outage,
            plot=parsed.plot,
            sweep=parsed.sweep,
            workers=parsed.processes,
            as_json=parsed.json,
        )
    )


def _devices(text: str) -> int:
    return _whole_number(text, 1, _FLEET)


def _days(text: str) -> int:
    return _whole_number(text, 0, _MAX_KNOWN_DAYS)


def _history(text: str) -> int:
    return _whole_number(text, 0, _MAX_LOG_DAYS)


def _measured(text: str) -> int:
    return _whole_number(text, 1, _MAX_LOG_DAYS)


def _date(text: str) -> float:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError("want a date, as 2004-05-27: its day begins at midnight UTC") from None


def _processes(text: str) -> int:
    return _whole_number(text, 1, 256)


def _whole_number(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"want a whole number from {least} to {most}")
    return int(text)


def _mean(text: str) -> float:
    return _seconds(text, _MAX_MEAN_S)


def _cap(text: str) -> float:
    return _seconds(text, LONGEST_POLL_S)


def _seconds(text: str, most: float) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1.0 <= seconds <= most:
        raise argparse.ArgumentTypeError(f"want seconds from 1 to {most:.0f}")
    return seconds
