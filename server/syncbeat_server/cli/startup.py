"""Prepares what several subcommands need: settings with logging, open stores, an event loop that signals stop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from syncbeat_server.errors import ConfigurationError

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


def read_checked_settings(role: Role | None, *, to_serve: bool = False) -> LoadedSettings:
    """Return the settings with all that keeps a process of this role from serving; None stands for SYNCBEAT_ROLE.

    With `to_serve` what needs the service's code is left to the copies, if there are several, since their parent is to
    stay small; or to `open_stores`, if stores are embedded, so that it is loaded while they start.
    """
    from syncbeat_server.ops.settings.load import LoadedSettings, load_with_faults

    settings, faults = load_with_faults()
    if settings is None:
        return LoadedSettings(None, faults)
    _configure_logging(settings)
    if to_serve and (settings.workers > 1 or (not faults and _are_stores_embedded(settings))):
        return LoadedSettings(settings, faults)
    return LoadedSettings(settings, [*faults, *_faults_of_service(settings, role, faults)])


def _faults_of_service(settings: Settings, role: Role | None, known: Sequence[str] = ()) -> list[str]:
    import asyncio

    from syncbeat_server.app import find_config_faults

    return asyncio.run(find_config_faults(settings, role or settings.role, known))


def _are_stores_embedded(settings: Settings) -> bool:
    return settings.database_url is None and settings.redis_url is None


def _configure_logging(settings: Settings) -> None:
    from syncbeat_server.ops import logs
    from syncbeat_server.ops.settings.server import LogFormat

    logs.configure_logging(as_json=settings.log_format is LogFormat.JSON, level=settings.log_level)


@contextlib.contextmanager
def open_stores(settings: Settings, checked_as: Role | None = None) -> Iterator[tuple[Stores, EmbeddedStores | None]]:
    """Yield the stores that the settings name; without any, embedded ones, migrated, with the servers that run them.

    With `checked_as` and embedded stores the settings are checked, for this role, while those start.

    Raises:
        ConfigurationError: they are at fault.
    """
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

        if checked_as and settings.workers == 1 and (faults := _faults_of_service(settings, checked_as)):
            raise ConfigurationError("\n".join(faults))
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
