"""Checks a configuration as a start would, and the stores it names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from syncbeat_server.app.app_configuration import AppConfiguration
from syncbeat_server.app.authentication import configured_credentials, session_rows
from syncbeat_server.app.operations.store_addresses import try_addresses, warnings_of
from syncbeat_server.app.process import Stores
from syncbeat_server.app.push.providers import providers
from syncbeat_server.app.token_issuers import configured_issuers
from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import ConfigurationError, SyncbeatError
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.push.providers import Provider
from syncbeat_server.storage.migrate import require_current_schema, require_restricted_login
from syncbeat_server.storage.postgres.database import open_database
from syncbeat_server.storage.redis.address import parse_redis_url
from syncbeat_server.storage.redis.capability_check import describe_refusals


async def find_config_faults(settings: Settings, stores: Stores | None) -> list[str]:
    """Return the faults that would keep this configuration from serving, or make it unsafe; empty when it is good."""
    # gRPC is loaded only where listeners are checked or served.
    from syncbeat_server.app.listeners import rpc_listeners

    found = _faults_of(lambda: AppConfiguration(settings, SystemClock()), [])
    for name, app in settings.all_apps().items():
        try:
            keys = any(one.rows or one.jwks_url for one in configured_issuers(name, app))
            if not keys and not session_rows(settings, name, app):
                found.append(f"app {name!r}: no JWT_SECRETS, JWKS_FILE, JWKS_URL or SESSION_KEYS, so no user can call")
            await _close(providers(app, settings, SystemClock()))
        except ConfigurationError as error:
            found.append(error.message)
    found += _faults_of(lambda: configured_credentials(settings, SystemClock()), found)
    found += _faults_of(lambda: rpc_listeners(settings), found)
    found += _faults_of(settings.require_shared_port, found)
    if stores is not None:
        found += await _store_faults(stores)
    return found


async def find_config_warnings(settings: Settings, stores: Stores) -> list[str]:
    """Return what this configuration serves with all the same, and should not: exposed or too many connections."""
    try:
        redis = parse_redis_url(stores.redis_url)
    except ConfigurationError:
        return []  # which is a fault
    return warnings_of(settings, await try_addresses(settings, stores.database_url), redis)


def _faults_of(step: Callable[[], object], known: Sequence[str]) -> list[str]:
    """Return the faults, a line each, that a step of the start ends with, but for those that are known."""
    try:
        step()
    except ConfigurationError as error:
        return [line for line in error.message.splitlines() if line not in known]
    return []


async def _close(made: tuple[Provider, Provider | None, str]) -> None:
    first, fallback, _ = made
    await first.close()
    if fallback is not None:
        await fallback.close()


async def _store_faults(stores: Stores) -> list[str]:
    try:
        async with (
            open_database(stores.database_url, size=1, name="syncbeat-check") as database,
            database.connection() as conn,
        ):
            await require_restricted_login(conn)
            await require_current_schema(conn)
    except SyncbeatError as error:
        return [error.message]
    try:
        return await describe_refusals(parse_redis_url(stores.redis_url), "check")
    except ConfigurationError as error:
        return [error.message]
