"""Metadata at the limits: a token at its own limit reaches our answer, one above it is refused with a reason."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from syncbeat import SyncbeatClient, explain
from syncbeat.v1 import auth_service_pb2
from syncbeat_server.auth.tokens.verify import MAX_TOKEN_BYTES
from syncbeat_server.rpc.connection_limits import MAX_METADATA_BYTES
from tests.support.client_servers import client_of
from tests.support.databases import DatabaseUrls
from tests.support.rpc_server import Caller, Server, entry, running_server

pytestmark = pytest.mark.rpc

ASKED = auth_service_pb2.GetTokenCacheStatsRequest()
LONGEST = "t" * MAX_TOKEN_BYTES
# gRPC refuses by chance between a soft and a hard limit: what holds, holds each time.
TIMES = 20
# As much as proxies and tracing add, and a request id of ours.
OTHERS = (("x-request-id", "r" * 128), ("traceparent", "0" * 55), ("baggage", "b" * 4_096), ("t-bin", b"\xff" * 512))


@pytest.fixture
async def server(database_urls: DatabaseUrls, redis_url: str) -> AsyncIterator[Server]:
    """A server that knows a service by the longest token there may be."""
    async with running_server(database_urls, redis_url, SERVICE_TOKENS=entry("backend", LONGEST)) as running:
        yield running


def shown(server: Server, token: str, *others: tuple[str, str | bytes]) -> Caller:
    return Caller(server.channel, (("authorization", f"Bearer {token}"), *others))


@pytest.mark.parametrize("others", [(), OTHERS], ids=["alone", "beside others"])
async def test_metadata_with_the_longest_token_is_accepted(
    server: Server, others: tuple[tuple[str, str | bytes], ...]
) -> None:
    for _ in range(TIMES):
        assert (await shown(server, LONGEST, *others)(ASKED)).processes


async def test_metadata_with_the_longest_token_is_accepted_from_the_python_client(server: Server) -> None:
    async with client_of(server.address, token=LONGEST) as client:
        for _ in range(TIMES):
            assert (await client.auth.GetTokenCacheStats(ASKED)).processes


@pytest.mark.parametrize("extra", [1, 100, 4_096])
async def test_metadata_with_a_token_above_the_limit_is_refused_with_a_reason(server: Server, extra: int) -> None:
    for _ in range(TIMES):
        refusal = await shown(server, LONGEST + "t" * extra).refusal(ASKED)
        assert refusal.told == ("UNAUTHENTICATED", "TOKEN_INVALID")


async def test_metadata_above_the_limit_is_refused_by_grpc_alone(server: Server) -> None:
    caller = shown(server, LONGEST)
    for _ in range(TIMES):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await shown(server, "t" * MAX_METADATA_BYTES)(ASKED)
        problem = explain(caught.value)
        assert (problem.code, problem.told, problem.may_pass) == (grpc.StatusCode.RESOURCE_EXHAUSTED, False, False)
        assert (await caller(ASKED)).processes


async def test_metadata_refused_is_not_retried_by_the_python_client(server: Server) -> None:
    async with SyncbeatClient(server.address, token="t" * MAX_METADATA_BYTES, tls=False) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.auth.GetTokenCacheStats(ASKED)
    assert not explain(caught.value).may_pass
