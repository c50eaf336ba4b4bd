"""Hundreds of clients share few connections, none of them is refused, and most is answered from memory.

The long form, with processes of their own, larger pools and a pooler, is tests/prove/test_connections.py.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from syncbeat_server.auth.tokens.verify import mint
from syncbeat_server.ops.settings.server import Role
from tests.support import client_load
from tests.support.client_load import Load
from tests.support.databases import DatabaseUrls
from tests.support.ports import free_port
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import KEY, running_server

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
            await client_load.run_load(clients, 1.0, load)
        assert not load.errors
        assert (load.connections, load.pooled) == (size, size)
        for cache in ("syncbeat_view_cache", "syncbeat_token_cache"):
            assert await client_load.hit_rate([ops], cache) >= LEAST_HIT_RATE, cache
    assert len(load.seconds) >= CLIENTS
