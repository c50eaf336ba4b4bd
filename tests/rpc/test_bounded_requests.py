"""Bounds the cost of unknown callers: bytes, fields, requests that do not arrive."""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from syncbeat.v1 import auth_service_pb2, core_pb2, push_service_pb2, sync_service_pb2
from syncbeat_server.rpc import request_body
from syncbeat_server.rpc.server import MAX_REQUEST_BYTES
from syncbeat_server.rpc.validation.wire_format import (
    MAX_PUBLIC_BYTES,
    MAX_PUBLIC_FIELDS,
    public_request_fault,
    undecodable_strings,
)
from tests.fakes import ahead, wait_until
from tests.raw_http2 import RawConnection, grpc_message, raw_connection
from tests.rpc.conftest import BACKEND, METHODS, Caller, Server, path_of

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
def test_a_public_request_is_refused_before_it_is_parsed(data: bytes) -> None:
    began = time.thread_time()
    for _ in range(100):
        assert public_request_fault(data)
    assert (time.thread_time() - began) / 100 < 0.001


def test_a_public_request_of_the_contract_is_let_in() -> None:
    longest = auth_service_pb2.RefreshSessionRequest(refresh_token="t" * 4_096)
    acknowledged = push_service_pb2.AcknowledgeDeliveryRequest(
        ack_token="t" * 4_096, kind=push_service_pb2.ACKNOWLEDGE_KIND_OPENED
    )
    for message in (longest, acknowledged, auth_service_pb2.RefreshSessionRequest()):
        assert not public_request_fault(message.SerializeToString())
    assert not public_request_fault(VARINT * MAX_PUBLIC_FIELDS)
    assert not public_request_fault(b"\x0a\xfd\x7f" + b"x" * (MAX_PUBLIC_BYTES - 3))


@pytest.mark.parametrize("data", [NOT_UTF8 + VARINT * 650_000, b"\x0a\x00" * 650_000], ids=["varints", "changes"])
def test_the_look_for_texts_that_are_not_utf8_ends(data: bytes) -> None:
    began = time.thread_time()
    assert undecodable_strings(PUBLISH.input_type, data) == []
    assert time.thread_time() - began < 0.05


@pytest.mark.parametrize("data", MANY_FIELDS.values(), ids=MANY_FIELDS)
async def test_public_methods_answer_what_is_too_much(server: Server, data: bytes) -> None:
    for method in (REFRESH, ACKNOWLEDGE):
        refusal = await Caller(server.channel, ()).raw_refusal(method, data)
        assert refusal.told == ("INVALID_ARGUMENT", "INVALID_FIELD")


@pytest.mark.parametrize("data", MANY_FIELDS.values(), ids=MANY_FIELDS)
async def test_public_methods_answer_what_decompresses_to_too_much(server: Server, data: bytes) -> None:
    async with raw_connection(server.address) as raw:
        body = grpc_message(gzip.compress(data), compressed=True)
        stream = raw.start(path_of(REFRESH), body, [("grpc-encoding", "gzip")])
        await wait_until(lambda: raw.answers[stream].is_over)
        assert raw.answers[stream].status == "3"


async def test_a_request_that_decompresses_to_too_much_is_refused_by_grpc(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw_connection(server.address) as raw:
        body = grpc_message(gzip.compress(b"\0" * (MAX_REQUEST_BYTES + 1)), compressed=True)
        stream = raw.start(path_of(REFRESH), body, [("grpc-encoding", "gzip")])
        await wait_until(lambda: raw.answers[stream].is_over)
        assert raw.answers[stream].status == "8"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


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


async def test_a_call_without_a_request_is_refused(server: Server) -> None:
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
async def test_half_a_request_is_waited_for_ten_seconds(server: Server, path: str) -> None:
    async with raw_connection(server.address) as raw:
        stream = half(path, raw)
        await health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert not raw.answers[stream].is_over
        with ahead(request_body.READ_TIMEOUT_S):
            await wait_until(lambda: raw.answers[stream].is_over)
        assert raw.answers[stream].status == "4"


async def test_a_slow_request_is_answered(server: Server) -> None:
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
async def test_few_requests_of_a_connection_may_stall(server: Server, token: str, many: int, most: int) -> None:
    async with raw_connection(server.address) as raw:
        streams = [half(path_of(PUBLISH), raw, token) for _ in range(many)]
        with ahead(request_body.STALLED_S):
            await wait_until(lambda: sum(raw.answers[stream].is_over for stream in streams) >= many - most)
        ended = [stream for stream in streams if raw.answers[stream].is_over]
        assert ended == streams[:-most], "those that wait for longest"
        assert {raw.answers[stream].status for stream in ended} == {"8"}


async def test_few_requests_of_callers_not_known_may_stall_in_all(server: Server) -> None:
    async with AsyncExitStack() as stack:
        raws = [await stack.enter_async_context(raw_connection(server.address)) for _ in range(40)]
        streams = [
            (raw, half(path_of(REFRESH), raw)) for raw in raws for _ in range(request_body.MAX_STALLED_PER_CONNECTION)
        ]
        with ahead(request_body.STALLED_S):
            left = request_body.MAX_STALLED
            await wait_until(lambda: sum(not raw.answers[stream].is_over for raw, stream in streams) <= left)
        assert sum(not raw.answers[stream].is_over for raw, stream in streams) == left


async def test_who_stalls_holds_up_only_its_own_connection(server: Server) -> None:
    async with raw_connection(server.address) as raw, raw_connection(server.address) as other:
        for _ in range(50):
            half(path_of(REFRESH), raw)
        waiting, served = raw.start(CHECK, grpc_message(b"")), other.start(CHECK, grpc_message(b""))
        await wait_until(lambda: other.answers[served].status == "0")
        assert not raw.answers[waiting].is_over


async def test_a_burst_of_requests_that_arrive_is_served(server: Server) -> None:
    await server.register("alice", "phone")
    request = sync_service_pb2.GetHintRequest(user_id="alice", device_id="phone")
    answers = await asyncio.gather(*(server.backend(request) for _ in range(500)))
    assert len(answers) == 500
