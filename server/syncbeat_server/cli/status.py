"""Subcommand `status`: print how the processes of a deployment do, by asking one of them."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from syncbeat_server.cli.deployment.target import add_target, number_between, read_target
from syncbeat_server.rpc.grpc_logs import silence_failed_handshakes

if TYPE_CHECKING:
    from syncbeat_server.rpc.deployment import Deployment

_EVERY_S = 2.0
_LEAST_EVERY_S, _MOST_EVERY_S = 0.5, 3_600.0
_CLEAR = "\x1b[H\x1b[2J"


def add_status(commands: Any) -> None:
    """Add the subcommand to the parser."""
    status = commands.add_parser(
        "status",
        help="how the processes of a deployment do, by GetStatus",
        description="Ask a server for its status and print it: methods, processes, pool, breakers, caches, limits, "
        "push queue, streams and migrations. The token is one of SYNCBEAT_ADMIN_TOKENS or SYNCBEAT_SERVICE_TOKENS "
        "that may call GetStatus.",
    )
    add_target(status)
    status.add_argument("--app", default="", help="the app whose push queue is told (default: the token's only one)")
    status.add_argument("--json", action="store_true", help="print GetStatusResponse as JSON, one line an answer")
    status.add_argument(
        "--watch",
        nargs="?",
        type=number_between(_LEAST_EVERY_S, _MOST_EVERY_S),
        const=_EVERY_S,
        metavar="SECONDS",
        help=f"ask again every so many seconds (default: {_EVERY_S:g}) until Ctrl-C",
    )
    status.set_defaults(run=_status)


def _status(parsed: argparse.Namespace) -> int:
    silence_failed_handshakes()  # before grpc is imported
    import asyncio

    asyncio.run(_print_status(read_target(parsed), parsed))
    return 0


async def _print_status(target: Deployment, parsed: argparse.Namespace) -> None:
    from syncbeat_server.cli.status_table import status_table
    from syncbeat_server.clock import SystemClock
    from syncbeat_server.rpc.status_client import asking_status

    clock = SystemClock()
    async with asking_status(target) as ask:
        while True:
            answer = await ask(parsed.app)
            text = json.dumps(answer, ensure_ascii=False) if parsed.json else status_table(answer)
            clear = _CLEAR if parsed.watch and not parsed.json and sys.stdout.isatty() else ""
            print(f"{clear}{text}", flush=True)
            if parsed.watch is None:
                return
            await clock.sleep(parsed.watch)
