"""Finds all faults of a configuration at once, for a start and for `check-config`, and those of the stores it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from syncbeat_server.app.app_configuration import AppConfiguration
from syncbeat_server.app.authentication import credentials_of, require_allow_lists, session_rows
from syncbeat_server.app.operations.store_start_checks import try_addresses, warnings_of
from syncbeat_server.app.operations.tracing import require_trace_variables
from syncbeat_server.app.process import Stores
from syncbeat_server.app.push.providers import providers
from syncbeat_server.app.token_issuers import ConfiguredIssuer, configured_issuer, configured_issuers
from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import ConfigurationError, SyncbeatError
from syncbeat_server.ops.settings.server import Role, Settings
from syncbeat_server.push.providers import Provider
from syncbeat_server.storage.postgres.database import open_database
from syncbeat_server.storage.postgres.roles import require_restricted_login
from syncbeat_server.storage.redis.address import parse_redis_url
from syncbeat_server.storage.redis.capability_check import describe_refusals
from syncbeat_server.storage.schema_check import require_current_schema


async def find_config_faults(settings: Settings, role: Role, known: Sequence[str] = ()) -> list[str]:
    """Return the faults that keep a process of this role from serving; empty when there are none.

    `serve` and `check-config` both go by it, so that they refuse the same. `known` are faults of the settings that
    were found before, and are not told again.
    """
    found: list[str] = []
    steps: list[Callable[[], object]] = [
        settings.store_urls,
        settings.require_shared_port,
        require_trace_variables,
        partial(AppConfiguration, settings, SystemClock()),
    ]
    for step in steps:
        found += _faults_of(step)
    issuers: dict[str, list[ConfiguredIssuer]] = {}
    if role is not Role.WORKER:
        unread = list(_read_issuers(settings, issuers))
        found += unread
        for step in _steps_of_rpc(settings, None if unread else issuers):
            found += _faults_of(step)
    if role is not Role.RPC:
        for app in settings.all_apps().values():
            try:
                await _close(providers(app, settings, SystemClock()))
            except ConfigurationError as error:
                found.append(error.message)
    if not found and not known and role is not Role.WORKER and not _lets_in_anybody(settings, issuers):
        found.append(
            "SYNCBEAT_JWT_SECRETS, JWKS_FILE, JWKS_URL, SESSION_KEYS, SERVICE_TOKENS, ADMIN_TOKENS, "
            "SERVICE_CERTIFICATES: none is set, so nobody can call"
        )
    # Of a missing file the steps say the same in other words, without its line.
    told = {fault.rpartition(": ")[2] for fault in known}
    return [fault for fault in dict.fromkeys(found) if fault.rpartition(": ")[2] not in told]


def find_config_notes(settings: Settings) -> list[str]:
    """Return what keeps no process from serving, and may not be meant. The settings have no faults."""
    notes = []
    for name, app in settings.all_apps().items():
        issuers = configured_issuers(name, app)
        notes += [f"SYNCBEAT_JWKS_FILE: a key is not used: {fault}" for one in issuers for fault in one.unused]
        if not _has_keys(issuers) and not session_rows(settings, name, app):
            notes.append(f"app {name!r}: no JWT_SECRETS, JWKS_FILE, JWKS_URL or SESSION_KEYS, so no user can call")
    return notes


async def find_store_faults(stores: Stores) -> list[str]:
    """Return the fault of each store that cannot be served from; empty when both are good."""
    return [*await _database_faults(stores), *await _redis_faults(stores)]


def _read_issuers(settings: Settings, issuers: dict[str, list[ConfiguredIssuer]]) -> Iterator[str]:
    """Add the issuers of each app that have no faults, and yield the faults of the others."""
    for name, app in settings.all_apps().items():
        issuers[name] = []
        for given in (app, *app.issuers):
            try:
                issuers[name].append(configured_issuer(name, given, app.tier_claim))
            except ConfigurationError as error:
                yield from error.message.splitlines()


def _steps_of_rpc(
    settings: Settings, issuers: Mapping[str, Sequence[ConfiguredIssuer]] | None
) -> list[Callable[[], object]]:
    """Return the steps that begin RPCs; what takes all issuers is left out where one has a fault."""
    # gRPC is loaded only where RPCs are served.
    from syncbeat_server.app.listeners import rpc_listeners
    from syncbeat_server.app.webhooks.samples import require_sources

    apps = settings.all_apps()
    steps: list[Callable[[], object]] = [partial(session_rows, settings, name, app) for name, app in apps.items()]
    steps.append(partial(require_allow_lists, settings))
    if issuers is not None:
        steps.append(partial(credentials_of, settings, apps, issuers, {}))
    return [*steps, partial(rpc_listeners, settings), partial(require_sources, settings.keep_events_days, apps)]


async def find_config_warnings(settings: Settings, stores: Stores) -> list[str]:
    """Return what this configuration serves with all the same, and should not: exposed or too many connections."""
    try:
        redis = parse_redis_url(stores.redis_url)
    except ConfigurationError:
        return []  # which is a fault
    return warnings_of(settings, await try_addresses(settings, stores.database_url), redis)


def _lets_in_anybody(settings: Settings, issuers: Mapping[str, Sequence[ConfiguredIssuer]]) -> bool:
    if settings.session_keys or settings.service_tokens or settings.admin_tokens or settings.service_certificates:
        return True
    return any(_has_keys(each) for each in issuers.values())


def _has_keys(issuers: Sequence[ConfiguredIssuer]) -> bool:
    return any(one.rows or one.jwks_url for one in issuers)


def _faults_of(step: Callable[[], object]) -> list[str]:
    """Return the faults, a line each, that a step of the start ends with."""
    try:
        step()
    except ConfigurationError as error:
        return error.message.splitlines()
    return []


async def _close(made: tuple[Provider, Provider | None, str]) -> None:
    first, fallback, _ = made
    await first.close()
    if fallback is not None:
        await fallback.close()


async def _database_faults(stores: Stores) -> list[str]:
    try:
        async with (
            open_database(stores.database_url, size=1, name="syncbeat-check") as database,
            database.connection() as conn,
        ):
            await require_restricted_login(conn)
            await require_current_schema(conn)
    except SyncbeatError as error:
        return [error.message]
    return []


async def _redis_faults(stores: Stores) -> list[str]:
    try:
        return await describe_refusals(parse_redis_url(stores.redis_url), "check")
    except ConfigurationError as error:
        return [error.message]
