"""Hundreds of clients share few connections, none of them is refused, and most is answered from memory.

The long form, with processes of their own, larger pools and a pooler, is tests/prove/test_connections.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from syncbeat_server.auth.tokens.verify import mint
from syncbeat_server.ops.settings.server import Role
from tests.support import client_load
from tests.support.client_load import Load
from tests.support.databases import DatabaseUrls, socket_of, url_at
from tests.support.fake_clock import wait_until
from tests.support.ports import free_port
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import KEY, running_server
from tests.support.tcp_relays import Fault, relayed

pytestmark = pytest.mark.rpc

CLIENTS = 200
LEAST_HIT_RATE = 0.7


def token(user: str) -> str:
    return mint(KEY, user, datetime.now(UTC), timedelta(hours=1))


@pytest.mark.parametrize("size", [1, 5])
async def test_clients_beyond_the_pool_are_all_answered(database_urls: DatabaseUrls, redis_url: str, size: int) -> None:
    ops, load = f"127.0.0.1:{free_port()}", Load()
    await client_load.people(database_urls.admin_url, CLIENTS)
    settings = {"DATABASE_POOL_SIZE": str(size), "OPS_LISTEN": ops}
    async with (
        running_server(database_urls, redis_url, Role.RPC, PATIENT, **settings) as server,
        client_load.clients_of([server.address], CLIENTS, token) as clients,
    ):
        async with client_load.connections_sampled(database_urls.admin_url, [ops], load):
            await client_load.fill_pools(clients, database_urls.admin_url, [ops], size, load)
            await client_load.run_load(clients, 1.0, load)
        assert not load.errors
        assert (load.connections, load.pooled) == (size, size)
        for cache in ("syncbeat_view_cache", "syncbeat_token_cache"):
            assert await client_load.hit_rate([ops], cache) >= LEAST_HIT_RATE, cache
    assert len(load.seconds) >= CLIENTS


async def test_clients_shed_by_a_slow_database_are_answered_when_they_come_again(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    load = Load()
    await client_load.people(database_urls.admin_url, CLIENTS)
    hasty = replace(PATIENT, database=replace(PATIENT.database, longest_wait_s=4.0))
    async with relayed(socket_of(database_urls.app_url)) as relay:
        slow = replace(database_urls, app_url=url_at(database_urls.app_url, relay.address))
        async with (
            running_server(slow, redis_url, Role.RPC, hasty, DATABASE_POOL_SIZE="1") as server,
            client_load.clients_of([server.address], CLIENTS, token) as clients,
        ):
            relay.begin(Fault.LATENCY)
            loading = asyncio.ensure_future(client_load.run_load(clients, 1.0, load))
            await wait_until(lambda: load.shed)
            relay.end()
            await loading
    assert not load.errors
