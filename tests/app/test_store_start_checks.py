"""A start tries the addresses of the stores, says what each is used for, and warns of what is exposed or too small."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from syncbeat_server.app import Stores, find_config_warnings
from syncbeat_server.app.operations.store_start_checks import TriedAddress, warnings_of
from syncbeat_server.ops.settings.load import load_settings
from syncbeat_server.ops.settings.server import Role, Settings
from syncbeat_server.storage.postgres.address_check import AddressFacts, is_private, place_of, try_address
from syncbeat_server.storage.redis.address import parse_redis_url
from tests.storage.test_prepared_statements import pooler
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import running_server

pytestmark = pytest.mark.rpc

TRANSACTIONS, SESSIONS = "SYNCBEAT_DATABASE_URL", "SYNCBEAT_DATABASE_SESSION_URL"
LOCAL = parse_redis_url("redis://127.0.0.1")


def settings(**values: str) -> Settings:
    return load_settings({f"SYNCBEAT_{name}": text for name, text in values.items()}, env_file=None)


def facts(*, direct: bool = True, private: bool = True, encrypted: bool = False, most: int = 97) -> AddressFacts:
    return AddressFacts("db.example:5432", direct, private, encrypted, most)


@pytest.mark.parametrize(
    ("peer", "private"),
    [
        (("127.0.0.1", 5432), True),
        (("127.1.2.3", 5432), True),
        (("::1", 5432, 0, 0), True),
        (("10.0.0.7", 5432), False),
        (("fe80::1%eth0", 5432, 0, 2), False),
        (("203.0.113.9", 6543), False),
        ("/var/run/postgresql/.s.PGSQL.5432", True),
        ("", True),
    ],
)
def test_connection_is_private_on_this_machine_alone(peer: object, *, private: bool) -> None:
    assert is_private(peer) is private
    assert place_of(peer) == (f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "socket")


def test_exposed_store_is_warned_of() -> None:
    tried = [TriedAddress(TRANSACTIONS, facts(private=False)), TriedAddress(SESSIONS, facts(encrypted=True))]
    (warning,) = warnings_of(settings(), tried, LOCAL)
    assert warning.startswith(f"{TRANSACTIONS}: not encrypted on the way to db.example:5432")
    assert not warnings_of(settings(), [TriedAddress(TRANSACTIONS, facts(private=False, encrypted=True))], LOCAL)


@pytest.mark.parametrize(
    ("url", "exposed"),
    [
        ("redis://127.0.0.1:6379", ""),
        ("redis://[::1]:6379", ""),
        ("redis://localhost", ""),
        ("unix:///run/redis.sock", ""),
        ("rediss://cache.example", ""),
        ("rediss+sentinel://a.example,b.example/main", ""),
        ("redis://cache.example", "cache.example: write rediss://"),
        ("redis://10.0.0.7", "10.0.0.7: write rediss://"),
        ("redis+sentinel://127.0.0.1,b.example/main", "b.example: write rediss+sentinel://"),
    ],
)
def test_exposed_redis_is_warned_of(url: str, exposed: str) -> None:
    found = warnings_of(settings(), [], parse_redis_url(url))
    assert found == ([f"SYNCBEAT_REDIS_URL: not encrypted on the way to {exposed}"] if exposed else [])


LIMITS = {
    "within": ({"DATABASE_POOL_SIZE": "48", "WORKERS": "2"}, [(TRANSACTIONS, facts())], ""),
    "above": ({"DATABASE_POOL_SIZE": "49", "WORKERS": "2"}, [(TRANSACTIONS, facts())], "98 connections"),
    "processes elsewhere": (
        {"DATABASE_POOL_SIZE": "8", "DATABASE_PROCESSES": "20"},
        [(TRANSACTIONS, facts())],
        "160 connections",
    ),
    "sessions count too": (
        {"DATABASE_POOL_SIZE": "48", "WORKERS": "2", "DATABASE_SESSION_URL": "postgresql://db"},
        [(TRANSACTIONS, facts()), (SESSIONS, facts())],
        "98 connections",
    ),
    "servers of RPCs alone have no session": (
        {"DATABASE_POOL_SIZE": "48", "WORKERS": "2", "ROLE": "rpc", "DATABASE_SESSION_URL": "postgresql://db"},
        [(TRANSACTIONS, facts()), (SESSIONS, facts())],
        "",
    ),
    "a pooler takes more than PostgreSQL": (
        {"DATABASE_POOL_SIZE": "400", "WORKERS": "2"},
        [(TRANSACTIONS, facts(direct=False))],
        "",
    ),
    "sessions beside a pooler": (
        {"WORKERS": "20", "DATABASE_SESSION_URL": "postgresql://db"},
        [(TRANSACTIONS, facts(direct=False)), (SESSIONS, facts(most=10))],
        "20 connections",
    ),
}


@pytest.mark.parametrize(("given", "found", "warned"), LIMITS.values(), ids=LIMITS)
def test_pools_are_held_against_the_connections_that_there_are(
    given: dict[str, str], found: list[tuple[str, AddressFacts]], warned: str
) -> None:
    tried = [TriedAddress(setting, one) for setting, one in found]
    warnings = warnings_of(settings(**given), tried, LOCAL)
    assert [warned in warning for warning in warnings] == ([True] if warned else [])


async def test_address_tells_its_limits_and_whether_a_pooler_is_between(
    database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    direct = await try_address(database_urls.app_url)
    assert direct == AddressFacts("socket", direct=True, private=True, encrypted=False, most_connections=197)
    await run_sql(database_urls.admin_url, f"ALTER DATABASE {database_urls.name} CONNECTION LIMIT 12")
    assert (await try_address(database_urls.app_url)).most_connections == 12
    async with pooler(database_urls.app_url, tmp_path) as url:
        assert not (await try_address(url)).direct


async def test_start_tries_both_addresses_and_says_what_they_are_for(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="syncbeat_server.app.operations.store_start_checks")
    async with pooler(database_urls.app_url, tmp_path) as url:
        given = {"DATABASE_SESSION_URL": url, "DATABASE_POOL_SIZE": "8", "DATABASE_PROCESSES": "50"}
        async with running_server(database_urls, redis_url, Role.RPC, PATIENT, **given):
            pass
        warnings = await find_config_warnings(settings(**given), Stores(database_urls.app_url, redis_url))
    told = {str(vars(one)["setting"]): vars(one) for one in caplog.records if one.getMessage() == "database address"}
    assert told.keys() == {TRANSACTIONS, SESSIONS}
    assert [told[name]["pooler"] for name in (TRANSACTIONS, SESSIONS)] == [False, True]
    assert "LISTEN" in told[SESSIONS]["used_for"]
    logged = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert logged[0] == warnings[0]
    assert "leads to a pooler in transaction mode" in logged[0]
    assert "may want 450 connections" in logged[1]


async def test_session_address_that_is_away_is_warned_of_and_no_more(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    away = {"DATABASE_SESSION_URL": f"postgresql://me@/it?host={tmp_path}"}
    async with running_server(database_urls, redis_url, Role.RPC, PATIENT, **away):
        pass
    (warning,) = await find_config_warnings(settings(**away), Stores(database_urls.app_url, redis_url))
    assert warning == f"{SESSIONS}: the database does not answer"
