"""Subcommand `smoke`: send one made-up user through a deployment, and say if each step came out right."""

from __future__ import annotations

import argparse
from typing import Any

from syncbeat_server.cli.deployment.target import add_target, number_between, read_target
from syncbeat_server.rpc.grpc_logs import silence_failed_handshakes

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
        type=number_between(_LEAST_S, _MOST_S),
        default=_TIMEOUT_S,
        metavar="SECONDS",
        help="for all steps; taking back has 20 s more (default: %(default)g)",
    )
    smoke.add_argument("--json", action="store_true", help="print one JSON object at the end")
    smoke.set_defaults(run=_smoke)


def _smoke(parsed: argparse.Namespace) -> int:
    silence_failed_handshakes()  # before grpc is imported
    from syncbeat_devtools.smoke.run import smoke

    return smoke(read_target(parsed), parsed.app, timeout_s=parsed.timeout, as_json=parsed.json)
