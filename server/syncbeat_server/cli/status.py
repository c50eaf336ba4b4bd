"""Subcommand `status`: print how the processes of a deployment do, by asking one of them."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncbeat_server.defaults import LISTEN
from syncbeat_server.errors import ConfigurationError

if TYPE_CHECKING:
    from syncbeat_server.rpc.status_client import StatusTarget

_EVERY_S = 2.0
_LEAST_EVERY_S, _MOST_EVERY_S = 0.5, 3_600.0
_LONGEST_TOKEN = 8_192
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
    status.add_argument("--target", metavar="HOST:PORT", help="the server (default: SYNCBEAT_LISTEN, on this machine)")
    status.add_argument("--token-file", required=True, metavar="FILE", help="a file with the token; - reads one line")
    status.add_argument("--app", default="", help="the app whose push queue is told (default: the token's only one)")
    status.add_argument("--tls-ca", type=Path, metavar="FILE", help="trust these authorities (PEM), not the system's")
    status.add_argument(
        "--plaintext", action="store_true", help="show the token without TLS to another machine than this one"
    )
    status.add_argument("--json", action="store_true", help="print GetStatusResponse as JSON, one line an answer")
    status.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=_EVERY_S,
        metavar="SECONDS",
        help=f"ask again every so many seconds (default: {_EVERY_S:g}) until Ctrl-C",
    )
    status.set_defaults(run=_status)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _LEAST_EVERY_S <= seconds <= _MOST_EVERY_S:
        raise argparse.ArgumentTypeError(f"want a number from {_LEAST_EVERY_S:g} to {_MOST_EVERY_S:g}")
    return seconds


def _status(parsed: argparse.Namespace) -> int:
    import asyncio

    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else its core logs a line for each failed handshake
    asyncio.run(_print_status(_target(parsed), parsed))
    return 0


async def _print_status(target: StatusTarget, parsed: argparse.Namespace) -> None:
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


def _target(parsed: argparse.Namespace) -> StatusTarget:
    from syncbeat_server.rpc.status_client import StatusTarget

    address = parsed.target or _local_address()
    tls = parsed.tls_ca is not None or not (parsed.plaintext or _is_local(address))
    authorities = None if parsed.tls_ca is None else _read(parsed.tls_ca, "--tls-ca")
    return StatusTarget(address, _token(parsed.token_file), tls, authorities)


def _local_address() -> str:
    from syncbeat_server.ops.settings.sources import read_values
    from syncbeat_server.rpc.health_probe import local_addresses

    given = read_values(os.environ, Path(".env"), ("listen",), ignore_others=True)
    listen = given.texts["listen"].text if "listen" in given.texts else LISTEN
    if listen.endswith(":0"):
        raise ConfigurationError("SYNCBEAT_LISTEN: nobody knows the port it takes: name one by --target")
    return local_addresses(listen)[-1]


def _is_local(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token(file: str) -> str:
    text = (
        sys.stdin.readline(_LONGEST_TOKEN)
        if file == "-"
        else _read(Path(file), "--token-file").decode("ascii", "replace")
    )
    token = text.strip()
    if not token or len(token) > _LONGEST_TOKEN or not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigurationError("status: --token-file: want a token, alone in the file")
    return token


def _read(path: Path, option: str) -> bytes:
    from syncbeat_server.ops.files import FileFault, read_file

    try:
        return read_file(path)
    except FileFault as fault:
        raise ConfigurationError(f"status: {option}: {fault}") from None
