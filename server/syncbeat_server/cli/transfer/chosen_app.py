"""Option `--app` of commands that work on one app, and the stores that they open."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from syncbeat_server.cli.audit_log.operator import operator_name
from syncbeat_server.cli.startup import open_stores, read_settings
from syncbeat_server.errors import ConfigurationError

if TYPE_CHECKING:
    from syncbeat_server.app import Stores
    from syncbeat_server.ops.settings.server import Settings


def add_app_option(command: argparse.ArgumentParser) -> None:
    """Add the option to a command."""
    command.add_argument("--app", metavar="NAME", help="the app (default: the only one)")


@contextlib.contextmanager
def opened_app(parsed: argparse.Namespace) -> Iterator[tuple[Stores, str]]:
    """Yield the stores of the settings and the app of the options, with the operator as origin of what is recorded.

    Raises:
        ConfigurationError: no stores are named; there are several apps and none is named; or there is no such app.
    """
    from syncbeat_server.audit.origin import Origin, origin

    settings = read_settings()
    app_id = chosen_app(settings, parsed.app)
    with open_stores(settings) as (stores, _):
        origin.set(Origin(operator_name()))
        yield stores, app_id


def chosen_app(settings: Settings, name: str | None) -> str:
    """Return the app of this name; None: the only one. Raises ConfigurationError as `opened_app`."""
    named = [settings.database_url is not None, settings.redis_url is not None]
    if not all(named) and (any(named) or settings.embedded_dir is None):
        raise ConfigurationError("SYNCBEAT_DATABASE_URL and SYNCBEAT_REDIS_URL: name both stores of the deployment")
    configured = sorted(settings.all_apps())
    if name is None and len(configured) != 1:
        raise ConfigurationError(f"--app: name one of {', '.join(configured)}")
    app_id = configured[0] if name is None else name
    if app_id not in configured:
        raise ConfigurationError(f"--app: {app_id!r} is not configured: one of {', '.join(configured)}")
    return app_id
