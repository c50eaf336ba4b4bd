"""Subcommand `check-config`: check or list the settings."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from syncbeat_server.cli.startup import read_settings


def add_check_config(commands: Any) -> None:
    """Add the subcommand to the parser."""
    check = commands.add_parser("check-config", help="check the settings, and the stores they name")
    check.add_argument("--list", action="store_true", help="describe every setting, with its default")
    check.set_defaults(run=_check_config)


def _check_config(parsed: argparse.Namespace) -> int:
    if parsed.list:
        from syncbeat_server.ops.settings.descriptions import format_settings

        print(format_settings())
        return 0
    import asyncio

    settings = read_settings()
    from syncbeat_server.app import Stores, find_config_faults, find_config_warnings

    urls = settings.store_urls()
    stores = None if urls is None else Stores(*urls)
    faults = asyncio.run(find_config_faults(settings, stores))
    for fault in faults:
        print(f"syncbeat-server: {fault}", file=sys.stderr)
    if stores is not None and not faults:
        for warning in asyncio.run(find_config_warnings(settings, stores)):
            print(f"syncbeat-server: warning: {warning}", file=sys.stderr)
    if not faults:
        print(f"syncbeat-server: the settings are good ({'embedded stores' if stores is None else 'stores answer'})")
    return 1 if faults else 0
