"""Prepares what several subcommands need: settings with logging, open stores, an event loop that signals stop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from syncbeat_devtools.embedded import EmbeddedStores
    from syncbeat_server.app import Stores
    from syncbeat_server.ops.settings.load import LoadedSettings
    from syncbeat_server.ops.settings.server import Role, Settings

APP_LOGIN = "syncbeat_app"
"""The database login that serves, unless `migrate --app-login` names another."""


def read_settings() -> Settings:
    """Return the settings of the environment, with logging configured by them.

    Raises:
        ConfigurationError: a setting is unknown, malformed or unsafe.
    """
    from syncbeat_server.ops.settings.load import load_settings

    settings = load_settings()
    _configure_logging(settings)
    return settings


def read_checked_settings(role: Role | None, *, for_copies: bool = False) -> LoadedSettings:
    """Return the settings with all that keeps a process of this role from serving; None stands for SYNCBEAT_ROLE.

    With `for_copies` the parent of several processes, which is to stay small, leaves to them what needs the service.
    """
    import asyncio

    from syncbeat_server.ops.settings.load import LoadedSettings, load_with_faults

    settings, faults = load_with_faults()
    if settings is None:
        return LoadedSettings(None, faults)
    _configure_logging(settings)
    if for_copies and settings.workers > 1:
        return LoadedSettings(settings, faults)
    from syncbeat_server.app import find_config_faults

    more = asyncio.run(find_config_faults(settings, role or settings.role, faults))
    return LoadedSettings(settings, [*faults, *more])


def _configure_logging(settings: Settings) -> None:
    from syncbeat_server.ops import logs
    from syncbeat_server.ops.settings.server import LogFormat

    logs.configure_logging(as_json=settings.log_format is LogFormat.JSON, level=settings.log_level)


@contextlib.contextmanager
def open_stores(settings: Settings) -> Iterator[tuple[Stores, EmbeddedStores | None]]:
    """Yield the stores that the settings name; without any, embedded ones, migrated, with the servers that run them."""
    urls = settings.store_urls()
    if urls is not None:
        from syncbeat_server.app import Stores

        yield Stores(*urls), None
        return
    import asyncio

    from syncbeat_devtools.embedded import running_stores

    with running_stores(settings.embedded_dir) as embedded:
        # Imported while the servers start, so that the two waits overlap.
        from syncbeat_server.app import Stores
        from syncbeat_server.storage.migrate import migrate

        asyncio.run(migrate(embedded.owner_url, app_login=APP_LOGIN))
        yield Stores(embedded.app_url, embedded.redis_url), embedded


def run_until_stopped(
    work: Callable[[asyncio.Event], Coroutine[Any, Any, None]],
    embedded: EmbeddedStores | None = None,
    drain_s: float | None = None,
) -> None:
    """Run `work(stop)` on uvloop; signals and the end of an embedded store set `stop`.

    With `drain_s`, and no embedded stores to end in order, a process that hangs after a signal is ended by force.
    """
    import asyncio

    import uvloop

    from syncbeat_server.ops.shutdown_budget import stop_on_signals

    async def until_stopped() -> None:
        stop = asyncio.Event()
        stop_on_signals(stop, drain_s if embedded is None else None)
        coroutine = work(stop)
        await (coroutine if embedded is None else embedded.supervise(coroutine, stop.set))

    uvloop.run(until_stopped())
