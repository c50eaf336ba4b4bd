"""Limits of gRPC's own at the Python client: what is too large stays so, and nobody tries again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest

from syncbeat import ClientRule, explain
from syncbeat.client_options import CHANNEL_OPTIONS
from syncbeat.v1 import auth_service_pb2, core_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from tests.support.client_servers import WAIT_S, Hold, Refusal, Stream, client_of, real_server, scripted_server
from tests.support.databases import DatabaseUrls
from tests.support.phones import at, page, phone, reported, row

pytestmark = pytest.mark.rpc

LIMIT = 100_000
TOO_LARGE = "x" * LIMIT


SMALL = ClientRule(channel_options={**CHANNEL_OPTIONS, "grpc.max_receive_message_length": LIMIT})


def large_page() -> pb.ListChangesResponse:
    return pb.ListChangesResponse(changes=[pb.Change(key="k", value_json=TOO_LARGE)], next_cursor=at(1))


async def test_response_above_client_limit_is_requested_once() -> None:
    async with scripted_server() as (script, address), client_of(address, rule=SMALL) as client:
        script.prepare("ListChanges", large_page(), pb.ListChangesResponse())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.sync.ListChanges(pb.ListChangesRequest(cursor=at(0)))
    problem = explain(caught.value)
    assert (problem.code, problem.told, problem.may_pass) == (grpc.StatusCode.RESOURCE_EXHAUSTED, False, False)
    assert len(script.attempts["ListChanges"]) == 1


@pytest.mark.parametrize("reason", ["OVERLOADED", "RATE_LIMITED", "A_NEWER_ONE"])
async def test_resource_exhausted_by_the_server_is_retried(reason: str) -> None:
    async with scripted_server() as (script, address), client_of(address) as client:
        script.prepare("RefreshSession", Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, reason))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.auth.RefreshSession(auth_service_pb2.RefreshSessionRequest(refresh_token="r"))
    assert explain(caught.value).may_pass


async def test_page_above_client_limit_ends_smart_sync(caplog: pytest.LogCaptureFixture) -> None:
    async with phone(reported(30, at(1)), rule=SMALL) as device:
        device.script.prepare("ListChanges", *[large_page()] * 9)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with device.sync, asyncio.timeout(WAIT_S):
                await device.sync.wait()
    assert explain(caught.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert device.count("ListChanges") == 1
    assert "has ended" in caplog.text


async def test_smart_sync_continues_when_the_server_sheds_a_fetch() -> None:
    async with phone(reported(30, at(1))) as device:
        shed = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry_after_s=0.05)
        device.script.prepare("ListChanges", *[shed] * 4, page(1))
        async with device.sync:
            await device.clock.travel(20)
        assert device.sequences == [1]


async def test_event_above_client_limit_ends_a_watch() -> None:
    eager = replace(SMALL, first_delay_s=0.0)
    large = pb.WatchHintsResponse(change=pb.Change(scope="s", epoch="e", key="k", sequence=2, value_json=TOO_LARGE))
    async with scripted_server() as (script, address), client_of(address, rule=eager) as client:
        stream: Stream = [pb.WatchHintsResponse(change=row(1)), large, Hold()]
        script.prepare("WatchHints", *[stream] * 9)
        async with client.watch() as watch, asyncio.timeout(WAIT_S):
            assert isinstance(await anext(watch), pb.Change)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(watch)
    assert explain(caught.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(script.attempts["WatchHints"]) == 1


@asynccontextmanager
async def counted(address: str) -> AsyncIterator[tuple[str, list[int]]]:
    """The address of a relay to a server, and the octets of each piece that clients sent through it."""
    sent: list[int] = []
    relays: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: bool) -> None:
        try:
            while data := await reader.read(1 << 16):
                if count:
                    sent.append(len(data))
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass  # one of the two has gone
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = address.rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
        for task in (relay(reader, back, True), relay(there, writer, False)):
            relays.add(asyncio.ensure_future(task))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", sent
    finally:
        server.close()
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)


@pytest.mark.parametrize("extra", [-200_000, 1_000, 100_000], ids=["taken", "just above", "above"])
async def test_request_above_server_limit_is_sent_once(database_urls: DatabaseUrls, redis_url: str, extra: int) -> None:
    size = 1_310_720 + extra
    change = core_pb2.NewChange(scope="s", key="k", merge_patch_json='"' + "x" * (size - 40) + '"')
    async with (
        real_server(database_urls, redis_url) as address,
        counted(address) as (there, sent),
        client_of(there) as client,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.sync.PublishChanges(pb.PublishChangesRequest(changes=[change], request_id="r"))
    problem = explain(caught.value)
    told = (grpc.StatusCode.INVALID_ARGUMENT, True) if extra < 0 else (grpc.StatusCode.RESOURCE_EXHAUSTED, False)
    assert (problem.code, problem.told, problem.may_pass) == (*told, False)
    assert sum(sent) < 1.9 * size
