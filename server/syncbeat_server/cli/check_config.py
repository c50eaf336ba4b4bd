"""Subcommand `check-config`: check or list the settings."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from syncbeat_server.cli.startup import read_checked_settings
from syncbeat_server.errors import ConfigurationError

if TYPE_CHECKING:
    from syncbeat_server.ops.settings.server import Settings


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
    settings, faults = read_checked_settings(None)
    warnings: list[str] = []
    if settings is not None:
        found, warnings = _try_stores(settings)
        faults = [*faults, *found]
    for fault in faults:
        print(f"syncbeat-server: {fault}", file=sys.stderr)
    if settings is None or faults:
        return 1
    from syncbeat_server.app import find_config_notes

    for warning in warnings:
        print(f"syncbeat-server: warning: {warning}", file=sys.stderr)
    for note in find_config_notes(settings):
        print(f"syncbeat-server: {note}")
    stores = "embedded stores" if settings.store_urls() is None else "stores answer"
    print(f"syncbeat-server: the settings are good ({stores})")
    return 0


def _try_stores(settings: Settings) -> tuple[list[str], list[str]]:
    """Return the faults of the stores, and what is to be warned of where there are none."""
    import asyncio

    from syncbeat_server.app import Stores, find_config_warnings, find_store_faults

    try:
        urls = settings.store_urls()
    except ConfigurationError:  # told before
        return [], []
    if urls is None:
        return [], []
    faults = asyncio.run(find_store_faults(Stores(*urls)))
    return faults, [] if faults else asyncio.run(find_config_warnings(settings, Stores(*urls)))
