"""Subcommand `smoke`: send one made-up user through a deployment, and say if each step came out right."""

from __future__ import annotations

import argparse
import os
from typing import Any

from syncbeat_server.cli.deployment.target import add_target, read_target

_TIMEOUT_S, _LEAST_S, _MOST_S = 60.0, 1.0, 600.0


def add_smoke(commands: Any) -> None:
    """Add the subcommand to the parser."""
    smoke = commands.add_parser(
        "smoke",
        help="try a deployment with one made-up user, after it was deployed",
        description="Create a user, a device and a scope, publish, get a hint, see the changes in a stream, send a "
        "push, and take everything back, also after a step that failed. Exits 1 if a step fails or something is left "
        "behind. The token is a service's, with the methods that docs/soak.md lists.",
    )
    add_target(smoke)
    smoke.add_argument("--app", default="", help="the app to try (default: the token's only one)")
    smoke.add_argument(
        "--timeout",
        type=_seconds,
        default=_TIMEOUT_S,
        metavar="SECONDS",
        help="for all steps; taking back has 20 s more (default: %(default)g)",
    )
    smoke.add_argument("--json", action="store_true", help="print one JSON object at the end")
    smoke.set_defaults(run=_smoke)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _LEAST_S <= seconds <= _MOST_S:
        raise argparse.ArgumentTypeError(f"want a number from {_LEAST_S:g} to {_MOST_S:g}")
    return seconds


def _smoke(parsed: argparse.Namespace) -> int:
    from syncbeat_devtools.smoke.run import smoke

    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else its core logs a line for each failed handshake
    return smoke(read_target(parsed), parsed.app, timeout_s=parsed.timeout, as_json=parsed.json)
