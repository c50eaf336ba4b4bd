"""One push followed through a collector, over two processes: accepted, claimed, attempted, acknowledged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web

from syncbeat.v1 import (
    core_pb2,
    directory_service_pb2,
    directory_service_pb2_grpc,
    push_service_pb2,
    push_service_pb2_grpc,
)
from syncbeat_devtools.demo.processes import Identity, start_process
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.http_sites import sites
from tests.support.otlp import Collector, ReceivedSpan, collecting

pytestmark = pytest.mark.process

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ACCEPT, ACKNOWLEDGE = "syncbeat.v1.PushService/SendNotification", "syncbeat.v1.PushService/AcknowledgeDelivery"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as running:
        yield running


async def only(collector: Collector, name: str) -> ReceivedSpan:
    async def came() -> bool:
        return bool(collector.named(name))

    await wait_until(came)
    (span,) = collector.named(name)
    return span


async def is_recorded(push: Any, metadata: Any) -> bool:
    """Tell whether a worker has recorded what it sent."""
    wanted = push_service_pb2.ListDeliveriesRequest(
        filter=push_service_pb2.DeliveryFilter(state=push_service_pb2.DELIVERY_STATE_SENT)
    )
    return bool((await push.ListDeliveries(wanted, metadata=metadata)).deliveries)


@pytest.mark.parametrize(
    ("sampler", "receipt"),
    [("parentbased_always_on", ACKNOWLEDGE), ("parentbased_always_off", "acknowledge deliveries")],
)
async def test_push_is_followed_over_two_processes(
    database_urls: DatabaseUrls, redis_url: str, collector: Collector, tmp_path: Path, sampler: str, receipt: str
) -> None:
    """To its end, also where no call is sampled but the one that accepted it."""
    pushed: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def relay(request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        pushed.put_nowait((request.headers.get("traceparent", ""), body["ack_token"]))
        return web.Response(status=204)

    identity = Identity.new()
    async with AsyncExitStack() as stack:
        relay_address = await stack.enter_async_context(sites(web.post("/push", relay)))
        settings = {
            **identity.settings(),
            **collector.variables(),
            "SYNCBEAT_DATABASE_URL": database_urls.app_url,
            "SYNCBEAT_REDIS_URL": redis_url,
            "SYNCBEAT_LISTEN": "127.0.0.1:0",
            "SYNCBEAT_WEBHOOK_URL": f"http://{relay_address}/push",
            "SYNCBEAT_WEBHOOK_PRIVATE": "true",
            "SYNCBEAT_DELIVERY_POLL_S": "0.1",
            "SYNCBEAT_TRACE_CALLERS": "true",
            "OTEL_TRACES_SAMPLER": sampler,
        }
        started = []
        for role in ("rpc", "worker"):
            own = {"SYNCBEAT_ROLE": role, "OTEL_SERVICE_NAME": f"syncbeat-{role}"}
            process = await start_process(["serve"], settings | own, tmp_path / f"{role}.log")
            stack.push_async_callback(process.stop)
            started.append(process)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(started[0].address))
        backend = (("authorization", f"Bearer {identity.service_token}"),)
        register = directory_service_pb2.RegisterDeviceRequest(
            user_id="ann", device_id="phone", platform=directory_service_pb2.PLATFORM_ANDROID, registration_token="t"
        )
        await directory_service_pb2_grpc.DirectoryServiceStub(channel).RegisterDevice(register, metadata=backend)
        push = push_service_pb2_grpc.PushServiceStub(channel)
        send = push_service_pb2.SendNotificationRequest(
            user_ids=core_pb2.UserIds(ids=["ann"]), notification=core_pb2.Notification(title="hello")
        )
        await push.SendNotification(send, metadata=(*backend, ("traceparent", f"00-{TRACE}-{SPAN}-01")))
        traceparent, ack_token = await asyncio.wait_for(pushed.get(), 20)

        accepted = await only(collector, ACCEPT)
        claimed = await only(collector, "claim deliveries")
        attempted = await only(collector, "attempt deliveries")
        assert (accepted.service, accepted.ids[0], accepted.parent) == ("syncbeat-rpc", TRACE, SPAN)
        assert (claimed.service, claimed.links) == ("syncbeat-worker", [accepted.ids])
        assert (attempted.service, attempted.links) == ("syncbeat-worker", [accepted.ids, claimed.ids])
        assert tuple(traceparent.split("-")[1:3]) == attempted.ids
        assert attempted.attributes["syncbeat.delivery.state"] == "SENT"

        await wait_until(partial(is_recorded, push, backend))
        await push.AcknowledgeDelivery(
            push_service_pb2.AcknowledgeDeliveryRequest(
                ack_token=ack_token, kind=push_service_pb2.ACKNOWLEDGE_KIND_RECEIVED
            )
        )
        acknowledged = await only(collector, receipt)
        assert (acknowledged.parent, acknowledged.links) == ("", [attempted.ids])

        statements = {span.name for span in collector.spans if span.ids[0] == TRACE}
        assert "INSERT notifications" in statements
