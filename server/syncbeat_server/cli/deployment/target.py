"""Options of every command that calls a deployment: its address, the token to show, and how to encrypt."""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from syncbeat_server.defaults import LISTEN
from syncbeat_server.errors import ConfigurationError

if TYPE_CHECKING:
    from syncbeat_server.rpc.deployment import Deployment

_LONGEST_TOKEN = 8_192


def add_target(command: argparse.ArgumentParser) -> None:
    """Add the options to a command."""
    command.add_argument("--target", metavar="HOST:PORT", help="the server (default: SYNCBEAT_LISTEN, on this machine)")
    command.add_argument("--token-file", required=True, metavar="FILE", help="a file with the token; - reads one line")
    command.add_argument("--tls-ca", type=Path, metavar="FILE", help="trust these authorities (PEM), not the system's")
    command.add_argument(
        "--plaintext", action="store_true", help="show the token without TLS to another machine than this one"
    )


def number_between(least: float, most: float) -> Callable[[str], float]:
    """Return what reads an option's number, and refuses one outside these bounds."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"want a number from {least:g} to {most:g}")
        return number

    return read


def read_target(parsed: argparse.Namespace) -> Deployment:
    """Return the deployment that the options name, with the token.

    Raises:
        ConfigurationError: a file cannot be read or holds no token, or the address is not known.
    """
    from syncbeat_server.rpc.deployment import Deployment

    address = parsed.target or _local_address()
    tls = parsed.tls_ca is not None or not (parsed.plaintext or _is_local(address))
    authorities = None if parsed.tls_ca is None else _read(parsed.tls_ca, "--tls-ca")
    return Deployment(address, read_token(parsed.token_file), tls, authorities)


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


def read_token(file: str) -> str:
    """Return the token that a file holds, or the first line of standard input for `-`."""
    text = (
        sys.stdin.readline(_LONGEST_TOKEN)
        if file == "-"
        else _read(Path(file), "--token-file").decode("ascii", "replace")
    )
    token = text.strip()
    if not token or len(token) > _LONGEST_TOKEN or not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigurationError("--token-file: want a token, alone in the file")
    return token


def _read(path: Path, option: str) -> bytes:
    from syncbeat_server.ops.files import FileFault, read_file

    try:
        return read_file(path)
    except FileFault as fault:
        raise ConfigurationError(f"{option}: {fault}") from None
