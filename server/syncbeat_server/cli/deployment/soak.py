"""Subcommand `soak`: load a deployment for hours by a plan, judge it, and write a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from syncbeat_server.cli.deployment.target import add_target, number_between, read_target
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.rpc.grpc_logs import silence_failed_handshakes

_MOST_RATE, _MOST_DEVICES, _MOST_IN_FLIGHT, _MOST_CONNECTIONS = 10_000.0, 50_000.0, 100_000.0, 64.0


def add_soak(commands: Any) -> None:
    """Add the subcommand to the parser."""
    soak = commands.add_parser(
        "soak",
        help="load a deployment for hours by a plan, judge it, and write a report",
        description="Simulate a fleet that polls as its hints say, and call beside it by a plan: publishes, events, "
        "pushes, refreshed tokens and streams, each timed from the moment it was planned for. Writes report.json and "
        "report.html. Exits 0 for OK, 3 for WARN, 4 for ROLLBACK. The token is a service's, with the methods that "
        "docs/soak.md lists.",
    )
    add_target(soak)
    _add_load(soak)
    soak.add_argument(
        "--objective",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another threshold, as hint_p95_s=0.1; may be repeated",
    )
    soak.add_argument(
        "--metrics", action="append", default=[], metavar="URL", help="read memory and CPU there; may be repeated"
    )
    soak.add_argument(
        "--compare", type=Path, metavar="EARLIER.json", help="warn if p95 or CPU is 25 %% over this report"
    )
    soak.add_argument(
        "--ignore-server", action="store_true", help="leave the server's own verdict out (it is reported)"
    )
    soak.add_argument("--out", type=Path, default=Path("soak"), metavar="FOLDER", help="default: %(default)s")
    soak.add_argument("--resume", action="store_true", help="go on with the run that was not finished in --out")
    soak.add_argument("--keep-users", action="store_true", help="do not delete the simulated users at the end")
    soak.add_argument(
        "--save-every", type=number_between(1, 3_600), default=30.0, metavar="SECONDS", help="default: 30"
    )
    soak.add_argument("--progress", type=number_between(1, 3_600), default=10.0, metavar="SECONDS", help="default: 10")
    soak.set_defaults(run=_soak)


def _add_load(soak: argparse.ArgumentParser) -> None:
    soak.add_argument("--app", default="", help="the app to load (default: the token's only one)")
    soak.add_argument("--duration", default="48h", metavar="TIME", help="as 90m or 60s (default: %(default)s)")
    soak.add_argument(
        "--rate",
        type=number_between(0.01, _MOST_RATE),
        default=50.0,
        help="calls a second, polls included (default: 50)",
    )
    soak.add_argument("--mix", default="", metavar="NAME=SHARE,...", help="shares of the rate, as poll=70,publish=15")
    soak.add_argument(
        "--devices",
        type=number_between(1, _MOST_DEVICES),
        help="that poll, when their hints say (default: by the rate)",
    )
    soak.add_argument(
        "--stream-hold", type=number_between(1, 3_600), default=30.0, metavar="SECONDS", help="default: 30"
    )
    soak.add_argument("--max-in-flight", type=number_between(1, _MOST_IN_FLIGHT), default=1_000.0, help="default: 1000")
    soak.add_argument("--connections", type=number_between(1, _MOST_CONNECTIONS), default=4.0, help="default: 4")
    soak.add_argument("--seed", type=number_between(0, 2**31), default=1.0, help="of the plan (default: 1)")


def _soak(parsed: argparse.Namespace) -> int:
    silence_failed_handshakes()  # before grpc is imported
    from syncbeat_devtools.soak.plan import fleet_size
    from syncbeat_devtools.soak.request import SoakRequest, read_duration, read_objectives, read_shares
    from syncbeat_devtools.soak.run import soak

    try:
        duration_s = read_duration(parsed.duration)
        shares = read_shares(parsed.mix)
        objectives = read_objectives(parsed.objective)
    except ValueError as error:
        raise ConfigurationError(f"soak: {error}") from None
    devices = fleet_size(parsed.rate, shares) if parsed.devices is None else int(parsed.devices)
    request = SoakRequest(
        duration_s=duration_s,
        rate=parsed.rate,
        shares=shares,
        devices=devices,
        stream_hold_s=parsed.stream_hold,
        max_in_flight=int(parsed.max_in_flight),
        connections=int(parsed.connections),
        seed=int(parsed.seed),
        objectives=objectives,
        out=parsed.out,
        app_id=parsed.app,
        metrics=tuple(parsed.metrics),
        compare=parsed.compare,
        resume=parsed.resume,
        keep_users=parsed.keep_users,
        heed_server=not parsed.ignore_server,
        save_every_s=parsed.save_every,
        progress_s=parsed.progress,
    )
    return soak(read_target(parsed), request)
