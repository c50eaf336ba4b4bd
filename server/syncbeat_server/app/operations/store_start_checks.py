"""Tries the addresses of the stores at start, logs what each is used for, and warns of what is exposed or too small."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from syncbeat_server.errors import SyncbeatError
from syncbeat_server.ops.hosts import is_this_machine
from syncbeat_server.ops.settings.server import Role, Settings
from syncbeat_server.storage.postgres.address_check import AddressFacts, try_address
from syncbeat_server.storage.postgres.driver_errors import StatementRejected
from syncbeat_server.storage.redis.address import RedisAddress

_log = logging.getLogger(__name__)

_TRANSACTIONS, _SESSIONS = "SYNCBEAT_DATABASE_URL", "SYNCBEAT_DATABASE_SESSION_URL"
_USES = {
    _TRANSACTIONS: "every statement and transaction of calls, deliveries and background work",
    _SESSIONS: "LISTEN of workers, which wakes them while Redis is away; migrate",
}


@dataclass(frozen=True)
class TriedAddress:
    """An address of PostgreSQL by its setting: what was found there, or why nothing was."""

    setting: str
    facts: AddressFacts | None
    fault: str = ""


async def try_addresses(settings: Settings, database_url: str) -> list[TriedAddress]:
    """Connect to both addresses of PostgreSQL, as far as they are set."""
    urls = {_TRANSACTIONS: database_url}
    if settings.database_session_url is not None:
        urls[_SESSIONS] = settings.database_session_url.get_secret_value()
    return [await _tried(setting, url) for setting, url in urls.items()]


async def _tried(setting: str, url: str) -> TriedAddress:
    try:
        return TriedAddress(setting, await try_address(url))
    except StatementRejected as error:
        return TriedAddress(setting, None, f"{setting}: the login or database is refused (SQLSTATE {error.sqlstate})")
    except SyncbeatError as error:
        return TriedAddress(setting, None, f"{setting}: {error.message}")


def log_addresses(settings: Settings, tried: list[TriedAddress], redis: RedisAddress) -> None:
    """Log what each address is used for, and all that is to be warned of."""
    for one in tried:
        if one.facts is not None:
            _log.info(
                "database address",
                extra={
                    "setting": one.setting,
                    "place": one.facts.place,
                    "pooler": not one.facts.direct,
                    "encrypted": one.facts.encrypted,
                    "used_for": _USES[one.setting],
                },
            )
    for warning in warnings_of(settings, tried, redis):
        _log.warning("%s", warning)


def warnings_of(settings: Settings, tried: list[TriedAddress], redis: RedisAddress) -> list[str]:
    """Return what a start works with all the same, and an operator should change; a line each."""
    found = [one.fault for one in tried if one.fault]
    facts = {one.setting: one.facts for one in tried if one.facts is not None}
    for setting, there in facts.items():
        if there.exposed:
            found.append(f"{setting}: not encrypted on the way to {there.place}: add sslmode=verify-full")
    session = facts.get(_SESSIONS)
    if session is not None and not session.direct:
        found.append(f"{_SESSIONS}: leads to a pooler in transaction mode, where LISTEN and migrate do not work")
    found += _redis_warnings(redis)
    return [*found, *_limit_warnings(settings, facts)]


def connections_wanted(settings: Settings) -> tuple[int, int]:
    """Return the most connections of all processes together: those of their pools, and those that LISTEN."""
    processes = settings.database_processes or settings.workers
    listens = settings.database_session_url is not None and settings.role is not Role.RPC
    return processes * settings.database_pool_size, processes if listens else 0


def _limit_warnings(settings: Settings, facts: dict[str, AddressFacts]) -> Iterator[str]:
    pooled, listening = connections_wanted(settings)
    transactions, session = facts.get(_TRANSACTIONS), facts.get(_SESSIONS)
    if transactions is not None and transactions.direct:
        wanted, allowed = pooled + listening, transactions.most_connections
        fix = "a smaller SYNCBEAT_DATABASE_POOL_SIZE, a larger max_connections, or a pooler"
    elif session is not None and session.direct:
        wanted, allowed = listening, session.most_connections
        fix = "a larger max_connections"
    else:
        return
    if wanted > allowed:
        yield (
            f"the processes of this deployment may want {wanted} connections of PostgreSQL, which lets them have "
            f"{allowed}: calls would wait for each other. Choose {fix}"
        )


def _redis_warnings(address: RedisAddress) -> Iterator[str]:
    if address.is_tls:
        return
    hosts = [host for host, _ in address.sentinels] if address.sentinels else []
    if address.endpoint is not None:
        hosts = [address.endpoint[0]]
    exposed = [host for host in hosts if not is_this_machine(host)]
    if exposed:
        scheme = "rediss+sentinel" if address.sentinels else "rediss"
        yield f"SYNCBEAT_REDIS_URL: not encrypted on the way to {', '.join(exposed)}: write {scheme}://"
