"""Half-open connections: whoever hears nothing ends them in the time that is configured, on either side."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from syncbeat import ClientRule, explain
from syncbeat.client_options import CHANNEL_OPTIONS
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_server.rpc.connection_limits import ServerRule
from tests.support.client_servers import Hold, client_of, scripted_server, user_token
from tests.support.databases import DatabaseUrls
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import Watch, running_server
from tests.support.tcp_relays import relayed

pytestmark = pytest.mark.rpc

# What is shipped, so many times as fast. Without one that works, the default of a minute stays as it is.
FASTER = 20
SHIPPED = ServerRule()
QUICK = replace(PATIENT, server=ServerRule(silence_s=SHIPPED.silence_s / FASTER, answer_s=SHIPPED.answer_s / FASTER))
TIMES = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
BOUND_S = 25.0  # 4 s are configured then; a busy machine takes longer, and the default of gRPC a minute more


def faster(options: tuple[tuple[str, int | str], ...]) -> tuple[tuple[str, int | str], ...]:
    return tuple((name, value // FASTER if name in TIMES else value) for name, value in options)  # type: ignore[operator]  # these are numbers


def configured_s(options: tuple[tuple[str, int | str], ...]) -> float:
    """After which time of silence a connection is to end."""
    found = dict(options)
    return (int(found["grpc.keepalive_time_ms"]) + int(found["grpc.http2.ping_timeout_ms"])) / 1000


def test_keepalive_detects_a_dead_peer_within_80_s() -> None:
    assert configured_s(tuple(CHANNEL_OPTIONS.items())) <= 40
    assert configured_s(SHIPPED.options()) <= 80


async def test_keepalive_of_the_client_ends_a_half_open_connection() -> None:
    rule = ClientRule(channel_options=dict(faster(tuple(CHANNEL_OPTIONS.items()))))
    async with (
        scripted_server() as (script, address),
        relayed(address) as relay,
        client_of(relay.address, rule=rule) as client,
    ):
        script.prepare("WatchHints", [pb.WatchHintsResponse(checkpoint=pb.Checkpoint()), Hold()])
        stream = Watch(client.sync.WatchHints(pb.WatchHintsRequest()))
        await stream.opened()
        (path,) = relay.swallow()
        async with asyncio.timeout(BOUND_S):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            await path.client_left.wait()
    assert explain(caught.value).code is grpc.StatusCode.UNAVAILABLE


async def test_keepalive_of_the_server_ends_a_half_open_connection(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with (
        running_server(database_urls, redis_url, rules=QUICK) as server,
        relayed(server.address) as relay,
        client_of(relay.address, token=user_token("ann")) as client,
    ):
        stream = Watch(client.sync.WatchHints(pb.WatchHintsRequest()))
        await stream.opened()
        (path,) = relay.swallow()
        async with asyncio.timeout(BOUND_S):
            await path.server_left.wait()
        assert not path.client_left.is_set()
        stream.call.cancel()
