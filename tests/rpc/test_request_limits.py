"""Bounds the cost of unknown callers: bytes, fields, requests that do not arrive."""

from __future__ import annotations

import asyncio
import gzip
import logging
import zlib
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from syncbeat.v1 import auth_service_pb2, core_pb2, push_service_pb2, sync_service_pb2
from syncbeat_server.rpc.pipeline import request_body
from syncbeat_server.rpc.validation.compression import MAX_REQUEST_BYTES
from syncbeat_server.rpc.validation.wire_format import (
    MAX_PUBLIC_BYTES,
    MAX_PUBLIC_FIELDS,
    public_request_fault,
    undecodable_strings,
)
from tests.support.cpu_time import least_cpu_s
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import ahead, settle, wait_until
from tests.support.ports import free_port
from tests.support.raw_http2 import RawConnection, grpc_message, raw_connection
from tests.support.rpc_server import BACKEND, METHODS, Caller, Server, path_of, running_server

pytestmark = pytest.mark.rpc

REFRESH, ACKNOWLEDGE = METHODS["RefreshSessionRequest"], METHODS["AcknowledgeDeliveryRequest"]
PUBLISH = METHODS["PublishChangesRequest"]
NOT_UTF8 = b"\x0a\x01\xff"
VARINT = b"\x78\x01"  # a field that no message has, of two bytes
GROUP = b"\x7b"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"

MANY_FIELDS = {
    "not UTF-8 and varints": NOT_UTF8 + VARINT * 650_000,
    "varints": VARINT * 8_000,
    "empty texts": b"\x0a\x00" * 8_000,
    "unknown texts": b"\x7a\x00" * 8_000,
    "fixed": b"\x7d0000" * 3_000,
    "deep groups": GROUP * 8_000,
    "no end": b"\x80" * 8_000,
    "one text": b"\x0a\x80\x80\x04" + b"x" * 65_536,
}


@pytest.mark.parametrize("data", MANY_FIELDS.values(), ids=MANY_FIELDS)
def test_request_limit_of_public_rpcs_applies_before_parsing(data: bytes) -> None:
    assert public_request_fault(data)
    assert least_cpu_s(lambda: public_request_fault(data)) < 0.001


def test_request_limit_of_public_rpcs_accepts_the_contract() -> None:
    longest = auth_service_pb2.RefreshSessionRequest(refresh_token="t" * 4_096)
    acknowledged = push_service_pb2.AcknowledgeDeliveryRequest(
        ack_token="t" * 4_096, kind=push_service_pb2.ACKNOWLEDGE_KIND_OPENED
    )
    for message in (longest, acknowledged, auth_service_pb2.RefreshSessionRequest()):
        assert not public_request_fault(message.SerializeToString())
    assert not public_request_fault(VARINT * MAX_PUBLIC_FIELDS)
    assert not public_request_fault(b"\x0a\xfd\x7f" + b"x" * (MAX_PUBLIC_BYTES - 3))


@pytest.mark.parametrize("data", [NOT_UTF8 + VARINT * 650_000, b"\x0a\x00" * 650_000], ids=["varints", "changes"])
def test_request_limit_utf8_scan_terminates(data: bytes) -> None:
    assert undecodable_strings(PUBLISH.input_type, data) == []
    assert least_cpu_s(lambda: undecodable_strings(PUBLISH.input_type, data)) < 0.05


@pytest.mark.parametrize("data", MANY_FIELDS.values(), ids=MANY_FIELDS)
async def test_request_limit_of_public_rpcs_on_size(server: Server, data: bytes) -> None:
    for method in (REFRESH, ACKNOWLEDGE):
        refusal = await Caller(server.channel, ()).raw_refusal(method, data)
        assert refusal.told == ("INVALID_ARGUMENT", "INVALID_FIELD")


@pytest.mark.parametrize("data", MANY_FIELDS.values(), ids=MANY_FIELDS)
async def test_request_limit_of_public_rpcs_on_decompressed_size(server: Server, data: bytes) -> None:
    async with raw_connection(server.address) as raw:
        body = grpc_message(gzip.compress(data), compressed=True)
        stream = raw.start(path_of(REFRESH), body, [("grpc-encoding", "gzip")])
        await wait_until(lambda: raw.answers[stream].is_over)
        assert raw.answers[stream].status == "3"


def is_over(raw: RawConnection, stream: int) -> bool:
    return raw.answers[stream].is_over


def bombs() -> dict[str, tuple[str, bytes, list[tuple[str, str]]]]:
    known = [("authorization", f"Bearer {BACKEND}")]
    gzipped = gzip.compress(b"\0" * (MAX_REQUEST_BYTES + 1))
    return {
        "too large for a public method": (path_of(REFRESH), gzip.compress(b"\0" * 100_000), []),
        "too large for any": (path_of(PUBLISH), gzipped, known),
        "cut short": (path_of(PUBLISH), gzipped[:-5], known),
        "damaged": (path_of(PUBLISH), gzipped[:20] + b"x" * 9, known),
        "followed by another": (path_of(PUBLISH), gzip.compress(b"") * 2, known),
    }


async def test_request_limit_on_decompressed_size_is_that_of_the_method(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw_connection(server.address) as raw:
        for name, (path, body, headers) in bombs().items():
            stream = raw.start(path, grpc_message(body, compressed=True), [("grpc-encoding", "gzip"), *headers])
            await wait_until(partial(is_over, raw, stream))
            assert raw.answers[stream].status == "3", name
        deflated = grpc_message(zlib.compress(b""), compressed=True)
        stream = raw.start(path_of(REFRESH), deflated, [("grpc-encoding", "deflate")])
        await wait_until(lambda: raw.answers[stream].is_over)
        assert raw.answers[stream].status == "12"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_compressed_requests_are_served(server: Server) -> None:
    change = core_pb2.NewChange(scope="couple", key="k", merge_patch_json='{"text": "' + "a" * 100_000 + '"}')
    request = sync_service_pb2.PublishChangesRequest(changes=[change])
    async with grpc.aio.insecure_channel(server.address, compression=grpc.Compression.Gzip) as channel:
        asked: Any = health_pb2_grpc.HealthStub(channel)
        answer = await asked.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        caller = Caller(channel, (("authorization", f"Bearer {BACKEND}"),))
        assert len((await caller(request)).results) == 1


GARBAGE = [b"\xff", NOT_UTF8, b"\x0a\x05x", b"\x08", VARINT * 100, b"x" * 20_000]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
async def test_health_refuses_garbage_and_logs_nothing(
    server: Server, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    channel: Any = server.channel
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(CHECK)(data, timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    watched = channel.unary_stream(WATCH)(data, timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watched.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


async def test_request_missing_is_refused(server: Server) -> None:
    async with raw_connection(server.address) as raw:
        streams = [raw.start(path) for path in (path_of(REFRESH), path_of(PUBLISH), CHECK, WATCH)]
        await wait_until(lambda: all(raw.answers[stream].is_over for stream in streams))
        assert {raw.answers[stream].status for stream in streams} == {"3"}


def half(path: str, raw: RawConnection, token: str = "") -> int:
    headers = [("authorization", f"Bearer {token}")] if token else []
    return raw.start(path, grpc_message(b"\x0a\x90\x4e" + b"x" * 10_000)[:5_000], headers, end=False)


@pytest.mark.parametrize(
    "path", [path_of(REFRESH), path_of(PUBLISH), path_of(METHODS["WatchHintsRequest"]), CHECK, WATCH]
)
async def test_request_timeout_of_half_a_request_is_ten_seconds(server: Server, path: str) -> None:
    async with raw_connection(server.address) as raw:
        stream = half(path, raw)
        await health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert not raw.answers[stream].is_over
        with ahead(request_body.READ_TIMEOUT_S):
            await wait_until(lambda: raw.answers[stream].is_over)
        assert raw.answers[stream].status == "4"


class Arriving:
    """The context of a call whose request arrives when the test says."""

    def __init__(self) -> None:
        self.request: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def read(self) -> bytes:
        return await self.request


async def test_request_timeout_spares_requests_that_came_while_the_process_stalled() -> None:
    arriving: Any = Arriving()
    reading = asyncio.ensure_future(request_body.RequestReader().read(arriving, lambda _: False))
    await settle()
    with ahead(request_body.READ_TIMEOUT_S + 1):
        await settle()  # the loop has timers to run that are overdue, before it reads what has arrived
        arriving.request.set_result(b"request")
        assert await reading == b"request"


async def test_request_that_is_slow_is_answered(server: Server) -> None:
    await server.add("s", "alice")
    change = core_pb2.NewChange(scope="s", key="k", merge_patch_json='"' + "x" * 100_000 + '"')
    body = grpc_message(sync_service_pb2.PublishChangesRequest(changes=[change]).SerializeToString())
    async with raw_connection(server.address) as raw:
        stream = raw.start(path_of(PUBLISH), body[:60_000], [("authorization", f"Bearer {BACKEND}")], end=False)
        with ahead(request_body.STALLED_S + 1):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(raw.closed.wait(), 1.5)
            raw.send(stream, body[60_000:])
            await wait_until(lambda: raw.answers[stream].is_over)
        assert raw.answers[stream].status == "0"


@pytest.mark.parametrize(
    ("token", "many", "most"),
    [
        ("", 3 * request_body.MAX_STALLED_PER_CONNECTION, request_body.MAX_STALLED_PER_CONNECTION),
        (BACKEND, 90, request_body.MAX_KNOWN_STALLED_PER_CONNECTION),
    ],
)
async def test_request_stall_limit_per_connection(server: Server, token: str, many: int, most: int) -> None:
    async with raw_connection(server.address) as raw:
        streams = [half(path_of(PUBLISH), raw, token) for _ in range(many)]
        with ahead(request_body.STALLED_S):
            await wait_until(lambda: sum(raw.answers[stream].is_over for stream in streams) >= many - most)
        ended = [stream for stream in streams if raw.answers[stream].is_over]
        assert ended == streams[:-most], "those that wait for longest"
        assert {raw.answers[stream].status for stream in ended} == {"8"}


async def test_request_stall_is_no_overload_of_the_server(database_urls: DatabaseUrls, redis_url: str) -> None:
    ops = f"127.0.0.1:{free_port()}"
    most = request_body.MAX_STALLED_PER_CONNECTION
    async with running_server(database_urls, redis_url, OPS_LISTEN=ops) as server:
        async with raw_connection(server.address) as raw:
            streams = [half(path_of(PUBLISH), raw) for _ in range(3 * most)]
            with ahead(request_body.STALLED_S):
                await wait_until(lambda: sum(raw.answers[stream].is_over for stream in streams) >= 2 * most)
        async with aiohttp.ClientSession() as session, session.get(f"http://{ops}/metrics") as page:
            metrics = await page.text()
    assert 'grpc_code="RESOURCE_EXHAUSTED",grpc_method="PublishChanges"' in metrics
    assert "syncbeat_calls_overloaded_total{" not in metrics


async def test_request_stall_limit_of_unauthenticated_callers(server: Server) -> None:
    async with AsyncExitStack() as stack:
        raws = [await stack.enter_async_context(raw_connection(server.address)) for _ in range(40)]
        streams = [
            (raw, half(path_of(REFRESH), raw)) for raw in raws for _ in range(request_body.MAX_STALLED_PER_CONNECTION)
        ]
        with ahead(request_body.STALLED_S):
            left = request_body.MAX_STALLED
            await wait_until(lambda: sum(not raw.answers[stream].is_over for raw, stream in streams) <= left)
        assert sum(not raw.answers[stream].is_over for raw, stream in streams) == left


async def test_request_stall_affects_only_its_own_connection(server: Server) -> None:
    many = request_body.MAX_UNCHECKED_READS + request_body.MAX_CONCURRENT_READS
    async with raw_connection(server.address) as raw, raw_connection(server.address) as other:
        for _ in range(many):
            half(path_of(REFRESH), raw)
        waiting, served = raw.start(CHECK, grpc_message(b"")), other.start(CHECK, grpc_message(b""))
        await wait_until(lambda: other.answers[served].status == "0")
        assert not raw.answers[waiting].is_over


async def test_request_stall_of_few_affects_nobody(server: Server) -> None:
    async with raw_connection(server.address) as raw:
        stalled = [half(path_of(REFRESH), raw) for _ in range(request_body.MAX_UNCHECKED_READS // 2)]
        served = raw.start(CHECK, grpc_message(b""))
        await wait_until(lambda: raw.answers[served].status == "0")
        assert not any(raw.answers[stream].is_over for stream in stalled)


async def test_request_burst_that_arrives_is_served(server: Server) -> None:
    await server.register("alice", "phone")
    request = sync_service_pb2.GetHintRequest(user_id="alice", device_id="phone")
    answers = await asyncio.gather(*(server.backend(request) for _ in range(500)))
    assert len(answers) == 500
