"""Subcommand `user`: export and erase what is stored of one user (docs/migrate/export.md)."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any

from syncbeat_server.cli.transfer.chosen_app import add_app_option, opened_app
from syncbeat_server.cli.transfer.output import add_output_option, opened_output
from syncbeat_server.cli.transfer.stored_user import UNKNOWN_USER, is_user_stored, say_unknown
from syncbeat_server.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from syncbeat_server.app import Stores


def add_user(commands: Any) -> None:
    """Add the subcommand and its actions to the parser."""
    user = commands.add_parser("user", help="export and erase what is stored of one user")
    actions = user.add_subparsers(title="actions", required=True, metavar="ACTION")
    export = actions.add_parser(
        "export",
        help="write all that is stored of a user as JSON, of one moment",
        description="Write all that is stored of a user as JSON, by table, of one moment, as the service's login. "
        "Digests, and what is of other users, are left out. Exits 2 if nothing is stored of such a user.",
    )
    export.add_argument("id", help="the user")
    add_app_option(export)
    export.add_argument(
        "--values", action="store_true", help="also the values of the scopes of which the user is a member, by anybody"
    )
    add_output_option(export)
    export.set_defaults(run=_export_user)
    erase = actions.add_parser(
        "erase",
        help="delete what is stored of a user, as DeleteUser does",
        description="Delete what is stored of a user, as DeleteUser does, and tell by table what went and what stays. "
        "Without --confirm it tells what is there. Exits 2 if nothing is stored of such a user.",
    )
    erase.add_argument("id", help="the user")
    add_app_option(erase)
    erase.add_argument("--confirm", metavar="ID", help="do it; the user's id again")
    erase.set_defaults(run=_erase_user)


def _export_user(parsed: argparse.Namespace) -> int:
    import asyncio

    with opened_app(parsed) as (stores, app_id):
        if not is_user_stored(stores, app_id, parsed.id):
            return UNKNOWN_USER
        with opened_output(parsed.output) as write:
            return asyncio.run(_export(stores, app_id, parsed, write))


def _erase_user(parsed: argparse.Namespace) -> int:
    import asyncio

    with opened_app(parsed) as (stores, app_id):
        return asyncio.run(_erase(stores, app_id, parsed))


async def _export(stores: Stores, app_id: str, parsed: argparse.Namespace, write: Callable[[str], object]) -> int:
    from syncbeat_server.app import open_export
    from syncbeat_server.transfer.users.export import export_user

    async with open_export(stores.database_url) as snapshot:
        counts = await export_user(snapshot, app_id, parsed.id, write, with_values=parsed.values)
    print(f"syncbeat-server: user {parsed.id!r}: {_told(counts)}", file=sys.stderr)
    return 0


async def _erase(stores: Stores, app_id: str, parsed: argparse.Namespace) -> int:
    from syncbeat_server.app import open_users
    from syncbeat_server.transfer.users.tables import USER_TABLES

    name = parsed.id
    async with open_users(stores) as users:
        if parsed.confirm not in (None, name):
            raise ConfigurationError(f"--confirm: the user is {name!r}; nothing was done")
        if not await users.is_known(app_id, name):
            say_unknown(app_id, name, "Nothing was done. To refuse an id that was never used, call DeleteUser")
            return UNKNOWN_USER
        if parsed.confirm is None:
            _say(f"user {name!r} of app {app_id!r}: {_told(await users.rows_of(app_id, name))}")
            again = shlex.join(["syncbeat-server", "user", "erase", name, "--app", app_id, "--confirm", name])
            print(f"syncbeat-server: nothing was done; to do it: {again}", file=sys.stderr)
            return 1
        done = await users.erase(app_id, name)
    if done is None:
        _say(f"user {name!r} is erased; the database did not answer how many rows went, and how many stay")
    else:
        for table, count in done.deleted.items():
            _say(f"{table}: {count} rows deleted")
        for table, count in done.kept.items():
            _say(f"{table}: {count} rows stay: {USER_TABLES[table].stays or 'written meanwhile; run it again'}")
    _say("values in scopes stay: no note is kept of who wrote them; a backend deletes their keys")
    if users.untold:
        _say("Redis does not answer: the servers refuse the user's tokens within a minute")
    return 0


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{table} {count}" for table, count in counts.items() if count) or "no rows"


def _say(text: str) -> None:
    print(f"syncbeat-server: {text}", flush=True)
