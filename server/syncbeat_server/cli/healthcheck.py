"""Subcommand `healthcheck`: ask a server for its health.

It reads its two settings and no others, and loads as little as it can: orchestrators run it every few seconds.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from syncbeat_server.defaults import LISTEN
from syncbeat_server.errors import ConfigurationError

HEALTHCHECK = "healthcheck"
"""The subcommand's name."""
_PROBE_S = 3.0


def add_healthcheck(commands: Any) -> None:
    """Add the subcommand to the parser."""
    health = commands.add_parser(HEALTHCHECK, help="exit 0 when the server at SYNCBEAT_LISTEN serves")
    health.add_argument("--address", help="host:port to ask instead")
    health.set_defaults(run=_healthcheck)


def _healthcheck(parsed: argparse.Namespace) -> int:
    from syncbeat_server.ops.settings.sources import read_values
    from syncbeat_server.rpc.health_probe import SERVING, local_addresses, probe_until_serving

    given = read_values(os.environ, Path(".env"), ("listen", "tls_certificate"), ignore_others=True)
    if given.faults:
        raise ConfigurationError("\n".join(given.faults))
    values = {name: one.text for name, one in given.texts.items()}
    listen, certificate = values.get("listen") or LISTEN, values.get("tls_certificate")
    if parsed.address is None and listen.endswith(":0"):
        raise ConfigurationError("SYNCBEAT_LISTEN: nobody knows the port it takes: name one, or use --address")
    addresses = local_addresses(listen) if parsed.address is None else [parsed.address]
    status = ""
    for address, status in probe_until_serving(addresses, _PROBE_S, Path(certificate) if certificate else None):
        print(f"syncbeat-server: {address} is {status}")
    return 0 if status == SERVING else 1
