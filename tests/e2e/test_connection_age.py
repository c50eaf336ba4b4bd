"""Connections have an age: load spreads again after a restart, and no stream is cut when its connection ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from syncbeat import SyncbeatClient
from syncbeat.v1 import directory_service_pb2, push_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_devtools.demo.processes import start_process
from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.ports import free_port
from tests.support.tcp_relays import Relay, relayed

pytestmark = [pytest.mark.process, pytest.mark.slow]

AGE_S = 2.0  # streams end after 1.7 to 2.0 s then, connections take calls for 1.8 to 2.2 s
CHANNELS, STREAMS, GENERATIONS = 4, 5, 3
CLIENTS = 8
WAIT_S = 60.0


@pytest.fixture
async def stage(stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_stage(stores, tmp_path, database_url=database_urls.app_url) as staging:
        staging.settings["SYNCBEAT_CONNECTION_AGE_S"] = f"{AGE_S:g}"
        yield staging


async def endings(client: SyncbeatClient, *, all_scopes: bool = False) -> list[str]:
    """Open one stream after the other: the last event of each, or the error that cut it."""
    found = []
    for _ in range(GENERATIONS):
        call, last = client.sync.WatchHints(pb.WatchHintsRequest(all_scopes=all_scopes)), "nothing"
        try:
            async for event in call:
                last = str(event.WhichOneof("event"))
        except grpc.aio.AioRpcError as error:
            last = error.code().name
        found.append(last)
    return found


async def test_connection_age_drains_streams_before_the_connection_ends(stage: Stage) -> None:
    server = await stage.start_server()
    async with relayed(server.address) as relay, asyncio.timeout(WAIT_S):
        clients = [SyncbeatClient(relay.address, token=stage.user_token("ann"), tls=False) for _ in range(CHANNELS)]
        backend = SyncbeatClient(relay.address, token=stage.identity.service_token, tls=False)
        found = await asyncio.gather(
            *(endings(client) for client in clients for _ in range(STREAMS)),
            *(endings(backend, all_scopes=True) for _ in range(STREAMS)),
        )
        assert Counter(last for one in found for last in one) == {"drain": (CHANNELS + 1) * STREAMS * GENERATIONS}
        # Each had several connections, and those that are too old are closed by the server.
        assert len(relay.paths) > CHANNELS + 1
        await wait_until(lambda: sum(path.server_left.is_set() for path in relay.paths) >= CHANNELS)
        await asyncio.gather(*(client.close() for client in (*clients, backend)))


async def test_connection_age_ends_watch_deliveries_with_ok(stage: Stage) -> None:
    server = await stage.start_server()
    async with stage.client(stage.identity.service_token, server) as backend, asyncio.timeout(WAIT_S):
        call = backend.push.WatchDeliveries(push_service_pb2.WatchDeliveriesRequest(user_id="ann"))
        assert [event async for event in call] == []
        assert await call.code() is grpc.StatusCode.OK


class Load:
    """Clients that ask all the time until they are ended."""

    def __init__(self, clients: list[SyncbeatClient]) -> None:
        self.failures: list[str] = []
        self.answers = 0
        self._clients = clients
        self._callers = [asyncio.ensure_future(self._call(client)) for client in clients]

    async def _call(self, client: SyncbeatClient) -> None:
        while True:
            try:
                await client.directory.ListScopes(directory_service_pb2.ListScopesRequest())
                self.answers += 1
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")

    async def end(self) -> None:
        for caller in self._callers:
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self._clients))


def connected(relay: Relay) -> Counter[str]:
    """Return how many connections each server has."""
    return Counter(path.target for path in relay.paths if path.is_open)


async def test_connection_age_spreads_load_again_after_a_restart(stage: Stage) -> None:
    ports = free_port(), free_port()
    first, second = [
        await start_process(
            ["serve"], {**stage.settings, "SYNCBEAT_ROLE": "rpc", "SYNCBEAT_LISTEN": f"127.0.0.1:{port}"}, log
        )
        for port, log in zip(ports, (stage.folder / "one.log", stage.folder / "two.log"), strict=True)
    ]
    again = None
    async with relayed(first.address, second.address) as relay:
        load = Load([SyncbeatClient(relay.address, token=stage.user_token("ann"), tls=False) for _ in range(CLIENTS)])
        try:
            await wait_until(lambda: len(connected(relay)) == 2, what="both have connections")
            await first.stop()
            await wait_until(lambda: connected(relay) == {second.address: CLIENTS}, what="all went to the second")
            settings = {**stage.settings, "SYNCBEAT_ROLE": "rpc", "SYNCBEAT_LISTEN": first.address}
            again = await start_process(["serve"], settings, stage.folder / "again.log")
            # By turns, so half of them each, but for those that move just then.
            fair = CLIENTS // 4
            await wait_until(
                lambda: min(connected(relay)[one.address] for one in (first, second)) >= fair,
                what="the load is spread again",
            )
            assert load.answers > CLIENTS
        finally:
            await load.end()
            await asyncio.gather(*(server.stop() for server in (second, again) if server is not None))
    assert load.failures == []
