"""Subcommand `migrate`: bring the database up to date, as its owner."""

from __future__ import annotations

import argparse
from typing import Any

from syncbeat_server.cli.startup import APP_LOGIN, read_settings
from syncbeat_server.errors import ConfigurationError, DependencyDown


def add_migrate(commands: Any) -> None:
    """Add the subcommand to the parser."""
    migrate = commands.add_parser("migrate", help="bring the database up to date")
    migrate.add_argument("--app-login", default=APP_LOGIN, help="the login that serves (default: %(default)s)")
    migrate.set_defaults(run=_migrate)


def _migrate(parsed: argparse.Namespace) -> int:
    settings = read_settings()
    url = settings.database_session_url or settings.database_url
    if url is None:
        raise ConfigurationError(
            "SYNCBEAT_DATABASE_SESSION_URL or SYNCBEAT_DATABASE_URL: name the database to migrate, by its owner's login"
        )
    import asyncio

    from syncbeat_server.storage.migrate import migrate

    try:
        applied = asyncio.run(migrate(url.get_secret_value(), app_login=parsed.app_login))
    except DependencyDown as error:
        name = "DATABASE_URL" if settings.database_session_url is None else "DATABASE_SESSION_URL"
        raise ConfigurationError(f"{error.message}: check SYNCBEAT_{name}, and that it runs there") from error
    print(f"syncbeat-server: applied {', '.join(applied)}" if applied else "syncbeat-server: nothing to do")
    return 0
