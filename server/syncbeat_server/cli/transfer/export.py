"""Subcommand `export`: write an app, a scope or what one user sees as JSON (docs/migrate/export.md)."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from syncbeat_server.cli.transfer.chosen_app import add_app_option, opened_app
from syncbeat_server.cli.transfer.output import add_output_option, opened_output

if TYPE_CHECKING:
    from collections.abc import Callable


def add_export(commands: Any) -> None:
    """Add the subcommand to the parser."""
    command = commands.add_parser(
        "export",
        help="write an app, a scope or a user's scopes as JSON, of one moment",
        description="Write what is stored of an app as JSON, of one moment, as the service's login. It has the "
        "registration tokens of devices: keep the file as you keep a backup.",
    )
    add_app_option(command)
    only = command.add_mutually_exclusive_group()
    only.add_argument("--scope", metavar="NAME", help="one scope only")
    only.add_argument("--user", metavar="ID", help="the account of this user and the scopes that it is a member of")
    add_output_option(command)
    command.set_defaults(run=_export)


def _export(parsed: argparse.Namespace) -> int:
    import asyncio

    with opened_app(parsed) as (stores, app_id), opened_output(parsed.output) as write:
        return asyncio.run(_write(stores.database_url, app_id, parsed, write))


async def _write(database_url: str, app_id: str, parsed: argparse.Namespace, write: Callable[[str], object]) -> int:
    from syncbeat_server.app import open_export
    from syncbeat_server.transfer.export.app_document import AppSelection, export_app

    async with open_export(database_url) as snapshot:
        done = await export_app(snapshot, AppSelection(app_id, parsed.scope, parsed.user), write)
    print(
        f"syncbeat-server: {done.scopes} scopes, {done.values} values, {done.tombstones} tombstones, "
        f"{done.members} members, {done.users} users",
        file=sys.stderr,
    )
    return 0
