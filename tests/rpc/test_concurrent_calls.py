"""Calls at once on a connection: floods of resets are refused at a small number, honest clients never."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from syncbeat_server.rpc.connection_limits import MAX_CONCURRENT_CALLS
from tests.support.databases import DatabaseUrls
from tests.support.raw_http2 import BlockingConnection
from tests.support.rpc_server import Server, running_server

pytestmark = pytest.mark.rpc

CHECK = "/grpc.health.v1.Health/Check"
ROUNDS = 5


@pytest.fixture
async def server(database_urls: DatabaseUrls, redis_url: str) -> AsyncIterator[Server]:
    """A server of the test's own."""
    async with running_server(database_urls, redis_url) as running:
        yield running


async def test_rapid_resets_are_refused_above_the_calls_not_freed(server: Server) -> None:
    host, _, port = server.address.rpartition(":")
    refused = []
    with socket.create_connection((host, int(port)), timeout=30) as opened:
        # It blocks the loop, so that the server frees none of these calls meanwhile.
        connection = BlockingConnection(opened)
        for _ in range(8):
            streams = [connection.start(CHECK) for _ in range(MAX_CONCURRENT_CALLS)]
            refused.append(connection.count_refused())
            connection.reset(streams)
    assert refused[0] == 0
    # Not exactly after twice as many: grpc-core may free some by itself meanwhile.
    assert refused[-1] == MAX_CONCURRENT_CALLS, refused
    answer = await health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("at_once", [3 * MAX_CONCURRENT_CALLS // 2, 10 * MAX_CONCURRENT_CALLS])
async def test_no_call_of_an_honest_client_is_refused(server: Server, at_once: int) -> None:
    codes: Counter[str] = Counter()
    # Without retries, with which gRPC hides the first refusal of a call.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check

        async def call() -> None:
            for _ in range(ROUNDS):
                try:
                    await check(health_pb2.HealthCheckRequest())
                except grpc.aio.AioRpcError as error:
                    codes[error.code().name] += 1
                else:
                    codes["OK"] += 1

        await asyncio.gather(*(call() for _ in range(at_once)))
    assert codes == {"OK": at_once * ROUNDS}
