"""Subcommand `healthcheck`: ask a server for its health."""

from __future__ import annotations

import argparse
from typing import Any

from syncbeat_server.cli.startup import read_settings
from syncbeat_server.errors import ConfigurationError

_PROBE_S = 3.0


def add_healthcheck(commands: Any) -> None:
    """Add the subcommand to the parser."""
    health = commands.add_parser("healthcheck", help="exit 0 when the server at SYNCBEAT_LISTEN serves")
    health.add_argument("--address", help="host:port to ask instead")
    health.set_defaults(run=_healthcheck)


def _healthcheck(parsed: argparse.Namespace) -> int:
    from syncbeat_server.rpc.health_probe import SERVING, local_addresses, probe_until_serving

    settings = read_settings()
    if parsed.address is None and settings.listen.endswith(":0"):
        raise ConfigurationError("SYNCBEAT_LISTEN: nobody knows the port it takes: name one, or use --address")
    addresses = local_addresses(settings.listen) if parsed.address is None else [parsed.address]
    status = ""
    for address, status in probe_until_serving(addresses, _PROBE_S, settings.tls_certificate):
        print(f"syncbeat-server: {address} is {status}")
    return 0 if status == SERVING else 1
