"""Subcommand `export`: write an app, a scope or what one user sees as JSON (docs/migrate/export.md)."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from syncbeat_server.cli.transfer.chosen_app import add_app_option, opened_app
from syncbeat_server.cli.transfer.map_option import add_map_option
from syncbeat_server.cli.transfer.output import add_output_option, opened_output
from syncbeat_server.cli.transfer.stored_user import UNKNOWN_USER, is_user_stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncbeat_server.transfer.mapping.rules import TransferMap


def add_export(commands: Any) -> None:
    """Add the subcommand to the parser."""
    command = commands.add_parser(
        "export",
        help="write an app, a scope or a user's scopes as JSON, of one moment",
        description="Write what is stored of an app as JSON, of one moment, as the service's login. It has the "
        "registration tokens of devices: keep the file as you keep a backup. Exits 2 if nothing is stored of the user "
        "of --user.",
    )
    add_app_option(command)
    only = command.add_mutually_exclusive_group()
    only.add_argument("--scope", metavar="NAME", help="one scope only")
    only.add_argument("--user", metavar="ID", help="the account of this user and the scopes that it is a member of")
    add_map_option(command, required=False)
    add_output_option(command)
    command.set_defaults(run=_export)


def _export(parsed: argparse.Namespace) -> int:
    import asyncio

    from syncbeat_server.app.transfer.rtdb_import import read_map

    transfer_map = None if parsed.map is None else read_map(parsed.map)
    with opened_app(parsed) as (stores, app_id):
        if parsed.user is not None and not is_user_stored(stores, app_id, parsed.user):
            return UNKNOWN_USER
        with opened_output(parsed.output) as write:
            if transfer_map is None:
                return asyncio.run(_write_document(stores.database_url, app_id, parsed, write))
            return asyncio.run(_write_tree(stores.database_url, app_id, parsed, transfer_map, write))


async def _write_document(
    database_url: str, app_id: str, parsed: argparse.Namespace, write: Callable[[str], object]
) -> int:
    from syncbeat_server.app import open_export
    from syncbeat_server.transfer.export.app_document import AppSelection, export_app

    async with open_export(database_url) as snapshot:
        done = await export_app(snapshot, AppSelection(app_id, parsed.scope, parsed.user), write)
    _say(
        f"{done.scopes} scopes, {done.values} values, {done.tombstones} tombstones, {done.members} members, "
        f"{done.users} users"
    )
    return 0


async def _write_tree(
    database_url: str,
    app_id: str,
    parsed: argparse.Namespace,
    transfer_map: TransferMap,
    write: Callable[[str], object],
) -> int:
    from syncbeat_server.app import open_export
    from syncbeat_server.transfer.export.app_document import AppSelection
    from syncbeat_server.transfer.export.tree_document import spool_tree, write_tree
    from syncbeat_server.transfer.export.tree_spool import open_tree_spool

    with open_tree_spool(parsed.tmp) as spool:
        async with open_export(database_url) as snapshot:
            done = await spool_tree(snapshot, AppSelection(app_id, parsed.scope, parsed.user), transfer_map, spool)
        write_tree(spool, write)
    _say(
        f"{done.entries} entries; {done.outside} are outside of the map, {done.empty} empty values have no place in "
        "such a tree"
    )
    return 0


def _say(text: str) -> None:
    print(f"syncbeat-server: {text}", file=sys.stderr)
