"""The Python client: what it adds to calls, what it repeats, how it reads errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import grpc
import pytest

from syncbeat import SyncbeatClient, Token, Violation, explain
from syncbeat.retry import SERVICES, is_repeatable, service_config
from syncbeat.v1 import auth_service_pb2, core_pb2, directory_service_pb2, push_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat.v1.error_reason_pb2 import ErrorReason
from tests.support.client_servers import (
    BACKEND,
    Hold,
    Refusal,
    Scripted,
    client_of,
    real_server,
    scripted_server,
    user_token,
)
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.ports import free_port

pytestmark = pytest.mark.rpc

DOWN = Refusal(grpc.StatusCode.UNAVAILABLE)


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Scripted, str]]:
    async with scripted_server() as served:
        yield served


async def test_retry_of_a_read_until_the_server_is_back(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    hint = pb.GetHintResponse(hint=pb.Hint(explanation="at last"))
    script.prepare("GetHint", DOWN, DOWN, hint)
    async with client_of(address) as client:
        answer = await client.sync.GetHint(pb.GetHintRequest(device_id="phone"))
    assert answer == hint
    assert len(script.attempts["GetHint"]) == 3


async def test_retry_after_a_server_shutdown(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("GetHint", Refusal(grpc.StatusCode.CANCELLED), pb.GetHintResponse())
    script.prepare("RefreshSession", Refusal(grpc.StatusCode.CANCELLED))
    async with client_of(address) as client:
        await client.sync.GetHint(pb.GetHintRequest(device_id="phone"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.auth.RefreshSession(auth_service_pb2.RefreshSessionRequest(refresh_token="r"))
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert (len(script.attempts["GetHint"]), len(script.attempts["RefreshSession"])) == (2, 1)


async def test_cancelled_call_is_not_retried(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("GetHint", Hold(), pb.GetHintResponse(), pb.GetHintResponse())
    async with client_of(address) as client:
        call = asyncio.ensure_future(client.sync.GetHint(pb.GetHintRequest(device_id="phone")))
        await wait_until(lambda: len(script.attempts["GetHint"]) == 1, what="the call reaches the server")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(script.left.wait(), 10)
        await client.sync.GetHint(pb.GetHintRequest(device_id="tablet"))
    assert [attempt.request.device_id for attempt in script.attempts["GetHint"]] == ["phone", "tablet"]


async def test_retry_gives_up_after_four_attempts(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("GetHint", DOWN, DOWN, DOWN, DOWN, pb.GetHintResponse())
    async with client_of(address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.sync.GetHint(pb.GetHintRequest(device_id="phone"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(script.attempts["GetHint"]) == 4


async def test_retry_waits_for_the_server_pushback(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    shed = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after_s=0.7)
    script.prepare("GetHint", shed, pb.GetHintResponse())
    async with client_of(address) as client:
        await client.sync.GetHint(pb.GetHintRequest(device_id="phone"))
    first, second = script.attempts["GetHint"]
    assert 0.65 <= second.at - first.at < 5.0


async def test_retry_never_repeats_refresh_session_and_sends_no_token(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("RefreshSession", DOWN, auth_service_pb2.RefreshSessionResponse())
    async with client_of(address) as client:
        with pytest.raises(grpc.aio.AioRpcError):
            await client.auth.RefreshSession(auth_service_pb2.RefreshSessionRequest(refresh_token="r"))
    assert [attempt.authorization for attempt in script.attempts["RefreshSession"]] == [None]


@pytest.mark.parametrize("code", [grpc.StatusCode.ABORTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT])
async def test_retry_skips_permanent_errors(scripted: tuple[Scripted, str], code: grpc.StatusCode) -> None:
    script, address = scripted
    script.prepare("GetHint", Refusal(code), pb.GetHintResponse())
    async with client_of(address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.sync.GetHint(pb.GetHintRequest(device_id="phone"))
    assert caught.value.code() is code
    assert len(script.attempts["GetHint"]) == 1


def test_retry_excludes_refresh_session_and_streams_only() -> None:
    others = {m.name for service in SERVICES for m in service.methods if not is_repeatable(m)}
    assert others == {"RefreshSession", "WatchHints", "WatchDeliveries"}
    (config,) = json.loads(service_config(shuffle=True))["methodConfig"]
    assert not others & {name["method"] for name in config["name"]}
    assert {"service": "syncbeat.v1.SyncService", "method": "PublishChanges"} in config["name"]


async def test_retry_of_publish_keeps_its_request_id(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("PublishChanges", DOWN, pb.PublishChangesResponse(), pb.PublishChangesResponse())
    request = pb.PublishChangesRequest(changes=[core_pb2.NewChange(scope="s", key="k", merge_patch_json="1")])
    async with client_of(address) as client:
        await client.sync.PublishChanges(request)
        await client.sync.PublishChanges(request)
    first, again, other = [attempt.request.request_id for attempt in script.attempts["PublishChanges"]]
    assert first == again
    assert first not in ("", other)
    assert request.request_id == ""


async def test_retry_of_a_large_publish(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("PublishChanges", DOWN, pb.PublishChangesResponse())
    patches = [json.dumps("x" * 200_000)] * 4
    changes = [core_pb2.NewChange(scope="s", key="k", merge_patch_json=patch) for patch in patches]
    async with client_of(address) as client:
        await client.sync.PublishChanges(pb.PublishChangesRequest(changes=changes))
    assert len(script.attempts["PublishChanges"]) == 2


async def test_explicit_request_id_deadline_and_metadata_are_kept(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    answer = push_service_pb2.SendNotificationResponse()
    script.prepare("SendNotification", answer, answer)
    async with client_of(address, app_id="app-1", timeout_s=60.0) as client:
        await client.push.SendNotification(push_service_pb2.SendNotificationRequest(request_id="mine", app_id="mine"))
        await client.push.SendNotification(
            push_service_pb2.SendNotificationRequest(),
            timeout=7.0,
            metadata=grpc.aio.Metadata(("authorization", "Bearer other")),
        )
    own, filled = script.attempts["SendNotification"]
    assert (own.request.request_id, own.request.app_id, own.authorization) == ("mine", "mine", f"Bearer {BACKEND}")
    assert (filled.request.app_id, filled.authorization) == ("app-1", "Bearer other")
    assert own.deadline_s is not None
    assert 50.0 < own.deadline_s < 61.0
    assert filled.deadline_s is not None
    assert filled.deadline_s < 8.0


async def test_deadline_default_ends_a_call() -> None:
    async with client_of(f"127.0.0.1:{free_port()}", timeout_s=0.3) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.sync.GetHint(pb.GetHintRequest(device_id="phone"), wait_for_ready=True)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert explain(caught.value).reason == ErrorReason.ERROR_REASON_UNSPECIFIED


async def returned_later() -> str:
    await asyncio.sleep(0)
    return "later"


@pytest.mark.parametrize(
    ("token", "sent"),
    [("fixed", "Bearer fixed"), (lambda: "now", "Bearer now"), (returned_later, "Bearer later"), ("", None)],
    ids=["fixed", "function", "coroutine", "none"],
)
async def test_token_is_sent(scripted: tuple[Scripted, str], token: Token, sent: str | None) -> None:
    script, address = scripted
    script.prepare("GetHint", pb.GetHintResponse())
    async with client_of(address, token=token) as client:
        await client.sync.GetHint(pb.GetHintRequest(device_id="phone"))
    assert script.attempts["GetHint"][0].authorization == sent


async def test_token_function_error_is_raised_by_the_call(scripted: tuple[Scripted, str]) -> None:
    def signed_out() -> str:
        raise LookupError("signed out")

    script, address = scripted
    async with client_of(address, token=signed_out) as client:
        with pytest.raises(LookupError, match="signed out"):
            await client.sync.GetHint(pb.GetHintRequest(device_id="phone"))
    assert not script.attempts["GetHint"]


async def test_token_function_has_a_deadline(scripted: tuple[Scripted, str]) -> None:
    async def stuck() -> str:
        await asyncio.Event().wait()
        return ""

    async with client_of(scripted[1], token=stuck, timeout_s=0.05) as client:
        with pytest.raises(TimeoutError):
            await client.sync.GetHint(pb.GetHintRequest(device_id="phone"))


async def failure_of(client: SyncbeatClient, request: pb.GetHintRequest) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.sync.GetHint(request)
    return caught.value


async def test_error_of_a_real_server_is_explained(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with real_server(database_urls, redis_url) as address:
        async with client_of(address, token=user_token("alice")) as client:
            invalid = explain(await failure_of(client, pb.GetHintRequest()))
            denied = explain(await failure_of(client, pb.GetHintRequest(device_id="nobodys")))
        async with client_of(address, token="nonsense") as client:
            refused = explain(await failure_of(client, pb.GetHintRequest(device_id="phone")))
        async with client_of(address, token=user_token("alice", life_s=-60)) as client:
            expired = explain(await failure_of(client, pb.GetHintRequest(device_id="phone")))
        async with client_of(address) as client:
            await client.directory.RegisterDevice(
                directory_service_pb2.RegisterDeviceRequest(
                    user_id="alice", device_id="phone", platform=directory_service_pb2.PLATFORM_ANDROID
                )
            )
            hint = await client.sync.GetHint(pb.GetHintRequest(user_id="alice", device_id="phone"))
    assert (invalid.code, invalid.reason) == (grpc.StatusCode.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_INVALID_FIELD)
    assert invalid.violations == (Violation("device_id", invalid.violations[0].description, "REQUIRED"),)
    assert invalid.metadata["request_id"]
    assert invalid.message
    assert invalid.retry_after_s is None
    assert (denied.code, denied.reason) == (
        grpc.StatusCode.PERMISSION_DENIED,
        ErrorReason.ERROR_REASON_ACCESS_DENIED,
    )
    assert refused.reason == ErrorReason.ERROR_REASON_TOKEN_INVALID
    assert expired.reason == ErrorReason.ERROR_REASON_TOKEN_EXPIRED
    assert hint.hint.poll_interval.seconds >= 10


def error_with(*trailers: tuple[str, str | bytes], code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), "refused")


def test_error_details_known_and_unknown_are_explained() -> None:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    limited = explain(error_with(*Refusal(code, "RATE_LIMITED", {"a": "b"}, 1.5).trailers(), code=code))
    assert limited.reason == ErrorReason.ERROR_REASON_RATE_LIMITED
    assert (limited.metadata, limited.retry_after_s) == ({"a": "b"}, 1.5)
    newer = explain(error_with(*Refusal(code, "OF_NEXT_YEAR", {"a": "b"}).trailers(), code=code))
    assert (newer.reason, newer.metadata) == (ErrorReason.ERROR_REASON_UNSPECIFIED, {"a": "b"})


@pytest.mark.parametrize("value", [b"", b"\xff\xff\xff", b"\x1a\x02\x12\xff"])
def test_error_details_damaged_are_ignored(value: bytes) -> None:
    details = explain(error_with(("grpc-status-details-bin", value), code=grpc.StatusCode.INTERNAL))
    assert details.code is grpc.StatusCode.INTERNAL
    assert details.reason == ErrorReason.ERROR_REASON_UNSPECIFIED
    assert explain(grpc.aio.AioRpcError(grpc.StatusCode.UNKNOWN)).message == ""


async def test_tls_is_required_unless_disabled(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("GetHint", pb.GetHintResponse())
    async with SyncbeatClient(address, token="secret", timeout_s=1.0) as client:
        await failure_of(client, pb.GetHintRequest(device_id="phone"))
    assert not script.attempts["GetHint"]
