"""Subcommand `app`: list the apps that have rows in the database, and erase one that is configured no more."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from syncbeat_server.cli.audit_log.operator import operator_name
from syncbeat_server.cli.startup import open_stores, read_settings
from syncbeat_server.errors import ConfigurationError

if TYPE_CHECKING:
    from syncbeat_server.app import AppRows, Stores

_REPORT_EVERY = 50_000  # rows


def add_app(commands: Any) -> None:
    """Add the subcommand and its actions to the parser."""
    app = commands.add_parser("app", help="list the apps of the database, and erase what a removed one left")
    actions = app.add_subparsers(title="actions", required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list",
        help="the apps that have rows, which of them are not configured, and their rows by table",
        description="List the apps that have rows in the database, as the service's login.",
    )
    listing.set_defaults(run=_list_apps)
    erase = actions.add_parser(
        "erase",
        help="delete all rows of an app that is not configured any more",
        description="Delete all rows of an app that left the apps file, in batches, as the service's login. It can be "
        "stopped at any time, and run again. Without --confirm it tells what it would do.",
    )
    erase.add_argument("name", help="the app")
    erase.add_argument("--confirm", metavar="NAME", help="do it; the app's name again")
    erase.set_defaults(run=_erase_app)


def _list_apps(parsed: argparse.Namespace) -> int:
    return _with_stores(parsed, _list)


def _erase_app(parsed: argparse.Namespace) -> int:
    return _with_stores(parsed, _erase)


def _with_stores(parsed: argparse.Namespace, work: Any) -> int:
    import asyncio

    from syncbeat_server.audit.origin import Origin, origin

    settings = read_settings()
    if settings.store_urls() is None and settings.embedded_dir is None:
        raise ConfigurationError("SYNCBEAT_DATABASE_URL and SYNCBEAT_REDIS_URL: name the stores of the deployment")
    configured = frozenset(settings.all_apps())
    if work is _erase and parsed.name in configured:
        raise ConfigurationError(
            f"app erase: {parsed.name!r} is configured: take it out of the apps file of every process first; "
            "nothing was done"
        )
    with open_stores(settings) as (stores, _):
        origin.set(Origin(operator_name()))
        status: int = asyncio.run(work(stores, configured, parsed))
    return status


async def _list(stores: Stores, configured: frozenset[str], _parsed: argparse.Namespace) -> int:
    from syncbeat_server.app import open_stored_apps

    async with open_stored_apps(stores.database_url, configured) as apps:
        for one in await apps.list():
            print(f"{one.app_id} ({'configured' if one.configured else 'not configured'}): {_rows(one)}")
    return 0


async def _erase(stores: Stores, configured: frozenset[str], parsed: argparse.Namespace) -> int:
    from syncbeat_server.app import open_stored_apps

    name = parsed.name
    async with open_stored_apps(stores.database_url, configured) as apps:
        if parsed.confirm != name:
            found = await apps.rows_of(name)
            _say(f"app {name!r}: {_rows(found)}")
            told = f"nothing was done; to do it: syncbeat-server app erase {name} --confirm {name}"
            print(f"syncbeat-server: {told}", file=sys.stderr)
            return 1
        done = await apps.erase(name, _Progress().report)
    for table, count in sorted(done.rows.items()):
        _say(f"{table}: {count} rows deleted")
    if done.held:
        print(
            f"syncbeat-server: rows of {', '.join(done.held)} are left: others hold or write them; run it again once "
            "no process has the app",
            file=sys.stderr,
        )
        return 1
    _say(f"app {name!r}: nothing is left" if done.rows else f"app {name!r}: it had no rows")
    _say("its entries in the audit log stay for SYNCBEAT_KEEP_AUDIT_DAYS")
    return 0


class _Progress:
    """Reports the rows of a table that are deleted so far, once each `_REPORT_EVERY`."""

    def __init__(self) -> None:
        self._reported: dict[str, int] = {}

    def report(self, table: str, rows: int) -> None:
        if rows // _REPORT_EVERY > self._reported.get(table, 0):
            self._reported[table] = rows // _REPORT_EVERY
            _say(f"{table}: {rows} rows so far")


def _rows(found: AppRows) -> str:
    from syncbeat_server.app import MOST_COUNTED

    told = [
        f"{table} {count if count <= MOST_COUNTED else f'over {MOST_COUNTED}'}" for table, count in found.rows.items()
    ]
    return ", ".join(told) or "no rows"


def _say(text: str) -> None:
    print(f"syncbeat-server: {text}", flush=True)
