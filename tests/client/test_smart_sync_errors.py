"""Tests what ends SmartSync, and what does not."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from syncbeat import SignedOut, SmartSync, explain
from syncbeat.v1.error_reason_pb2 import ErrorReason
from tests.support.client_servers import WAIT_S, Hold, Refusal
from tests.support.fake_clock import settle, wait_until
from tests.support.phones import DeviceClock, phone, reported

pytestmark = pytest.mark.rpc


@pytest.mark.parametrize("reason", ["TOKEN_REVOKED", "ACCESS_DENIED"])
async def test_smart_sync_ends_on_permanent_errors(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    async with phone() as device:
        device.script.prepare("ReportActivity", *[Refusal(grpc.StatusCode.UNAUTHENTICATED, reason)] * 2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with device.sync:
                await wait_until(lambda: "has ended" in caplog.text)
        assert explain(caught.value).reason == ErrorReason.Value(f"ERROR_REASON_{reason}")
        sync = SmartSync(device.client, "phone", clock=device.clock)
        with pytest.raises(grpc.aio.AioRpcError):
            async with sync, asyncio.timeout(WAIT_S):
                await anext(sync)


async def test_smart_sync_ends_on_dead_session_and_survives_network_loss() -> None:
    problems: list[Exception] = [OSError("no network"), TimeoutError(), SignedOut("over")]

    def token() -> str:
        raise problems.pop(0)

    async with phone(token=token) as device:
        await device.sync.__aenter__()
        while problems:
            await device.clock.advance(1.0)
        with pytest.raises(SignedOut):
            await asyncio.wait_for(device.sync.wait(), WAIT_S)
    assert not problems


async def test_smart_sync_renews_an_expired_token_unless_it_is_fixed() -> None:
    expired = Refusal(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")
    async with phone(token=lambda: "new") as device:
        device.script.prepare("ReportActivity", expired, reported(30))
        async with device.sync:
            await device.clock.travel(10)
            assert device.count("ReportActivity") == 2
    async with phone(token="fixed") as device:
        device.script.prepare("ReportActivity", expired)
        with pytest.raises(grpc.aio.AioRpcError):
            async with device.sync, asyncio.timeout(WAIT_S):
                await device.sync.wait()


async def test_smart_sync_close_mid_call_leaves_nothing_behind() -> None:
    async with phone() as device:
        device.script.prepare("ReportActivity", Hold())
        before = asyncio.all_tasks()
        async with device.sync:
            await wait_until(lambda: device.count("ReportActivity"))
            waiting = asyncio.ensure_future(device.sync.wait())
        await asyncio.wait_for(waiting, WAIT_S)
        await asyncio.wait_for(device.script.left.wait(), WAIT_S)
        await settle()
        assert {task.get_name() for task in asyncio.all_tasks() - before if "follower" in repr(task)} == set()
        await device.sync.close()
        with pytest.raises(RuntimeError, match="once"):
            await device.sync.__aenter__()


async def test_smart_sync_misuse_is_explained() -> None:
    async with phone() as device:
        with pytest.raises(RuntimeError, match="async with"):
            await device.sync.wait()
        with pytest.raises(RuntimeError, match="on_changes"):
            await anext(device.sync)
        with pytest.raises(RuntimeError, match="async with"):
            await anext(SmartSync(device.client, "phone", clock=DeviceClock()))
