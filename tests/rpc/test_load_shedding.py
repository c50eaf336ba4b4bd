"""More calls than can be served: who is shed, what those are told, and how those fare that are let in."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import asyncpg
import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from syncbeat.v1 import directory_service_pb2, sync_service_pb2
from syncbeat_server.auth.model import Principal, PrincipalKind
from syncbeat_server.errors import Overloaded
from syncbeat_server.rpc.pipeline.access import access_policies
from syncbeat_server.rpc.pipeline.load_shedding import Admission, Criticality, criticality_of
from syncbeat_server.rpc.server import CONTRACT
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.ports import free_port
from tests.support.process_rules import DEADLINE_S, PATIENT
from tests.support.rpc_server import Caller, refusal_of, running_server

pytestmark = pytest.mark.rpc

CALLS = 600
SHED = CALLS // 4  # at the least, before those are served that were let in
USER, SERVICE, OPERATOR = (Principal(kind, "somebody") for kind in PrincipalKind)
CRITICALITIES = {
    method.name: criticality_of(method, access_policies(service)[method.name])
    for service in CONTRACT
    for method in service.methods
}


async def outcome(caller: Caller) -> tuple[str, float]:
    """Return how a device's report ended, and in how long it shall be made again."""
    try:
        activity = sync_service_pb2.Activity(state=sync_service_pb2.ACTIVITY_STATE_FOREGROUND)
        await caller(sync_service_pb2.ReportActivityRequest(device_id="phone", activity=activity))
    except grpc.aio.AioRpcError as error:
        return refusal_of(error).reason, delay_of(error)
    return "OK", 0.0


def delay_of(error: grpc.aio.AioRpcError) -> float:
    """Return what RetryInfo says, and the pushback with it."""
    refusal = refusal_of(error)
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    delay_s: float = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    # Cut to milliseconds both; what is a part of one above five seconds is five here, and too long there.
    assert int(refusal.pushback) == (pytest.approx(delay_s * 1000, abs=1) if delay_s < 5 else -1)
    return delay_s


@asynccontextmanager
async def reports_waiting(urls: DatabaseUrls) -> AsyncIterator[None]:
    """Let whatever devices report wait for the end of the block."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        async with conn.transaction():
            await conn.execute("SELECT 1 FROM devices WHERE device_id = 'phone' FOR UPDATE")
            yield
    finally:
        await conn.close()


async def test_load_shedding_under_overload_keeps_served_calls_in_time(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    ops = f"127.0.0.1:{free_port()}"
    # No call ends since it waited for a lock, which is OVERLOADED too: on a busy machine the storm takes as long.
    rules = replace(PATIENT, database=replace(PATIENT.database, lock_ms=60_000))
    async with running_server(database_urls, redis_url, rules=rules, MAX_IN_FLIGHT="8", OPS_LISTEN=ops) as server:
        await server.register("alice", "phone")
        alice = server.user("alice")
        await alice(sync_service_pb2.GetHintRequest(device_id="phone"))
        register = directory_service_pb2.RegisterDeviceRequest(
            user_id="bob", device_id="tablet", platform=directory_service_pb2.PLATFORM_ANDROID
        )
        health = health_pb2_grpc.HealthStub(server.channel)
        async with reports_waiting(database_urls):
            storm = [asyncio.ensure_future(outcome(alice)) for _ in range(CALLS)]
            healthy, registered = await asyncio.gather(
                health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S), server.backend(register)
            )
            await wait_until(lambda: sum(call.done() for call in storm) >= SHED)
        ended = await asyncio.gather(*storm)
        async with aiohttp.ClientSession() as session, session.get(f"http://{ops}/metrics") as answer:
            metrics = await answer.text()
    told = Counter(one[0] for one in ended)
    assert set(told) == {"OK", "OVERLOADED"}
    assert told["OVERLOADED"] >= SHED
    assert f'syncbeat_shed_total{{rank="poll"}} {told["OVERLOADED"]}.0' in metrics
    assert "syncbeat_stretch " in metrics
    assert healthy.status == health_pb2.HealthCheckResponse.SERVING
    assert registered.device.device_id == "tablet", "a service is let in where devices are not"
    returns = sorted(retry_s for reason, retry_s in ended if reason == "OVERLOADED")
    assert returns[0] >= 0.5
    assert returns[-1] - returns[0] >= len(returns) / 1_000, "spread over the time it takes to serve them"


def admission(in_flight: int, overload: float = 0.0, draw: float = 0.5) -> tuple[Admission, list[str]]:
    shed: list[str] = []
    made = Admission(100, lambda: overload, lambda: 7.0, lambda: draw, shed.append)
    made.counts.in_flight = in_flight
    return made, shed


@pytest.mark.parametrize(
    ("criticality", "principal", "room"),
    [
        (Criticality.POLL, USER, 100),
        (Criticality.POLL, None, 100),
        (Criticality.DEVICE, USER, 125),
        (Criticality.SIGN_IN, None, 150),
        (Criticality.POLL, SERVICE, 200),
        (Criticality.SERVICE, SERVICE, 200),
    ],
)
def test_load_shedding_order_is_by_cost_of_waiting(
    criticality: Criticality, principal: Principal | None, room: int
) -> None:
    admission(room)[0].check(criticality, principal)
    full, shed = admission(room + 1)
    with pytest.raises(Overloaded) as raised:
        full.check(criticality, principal)
    assert raised.value.retry_after_s == 7.75
    assert shed == [Criticality.SERVICE if principal is SERVICE else criticality]
    assert full.counts.shed == 1


def test_load_shedding_spares_operators() -> None:
    admission(1_000_000)[0].check(Criticality.OPERATOR, OPERATOR)
    admission(1_000_000)[0].check(Criticality.POLL, OPERATOR)


def test_above_the_capacity_of_the_cluster_that_share_of_the_polls_is_shed() -> None:
    with pytest.raises(Overloaded):
        admission(0, overload=0.6, draw=0.59)[0].check(Criticality.POLL, USER)
    admission(0, overload=0.6, draw=0.61)[0].check(Criticality.POLL, USER)
    for criticality, principal in (
        (Criticality.DEVICE, USER),
        (Criticality.SIGN_IN, None),
        (Criticality.POLL, SERVICE),
    ):
        admission(0, overload=0.99, draw=0.0)[0].check(criticality, principal)


def test_criticality_of_methods() -> None:
    assert {name for name, criticality in CRITICALITIES.items() if criticality is Criticality.POLL} == {
        "GetHint",
        "ReportActivity",
    }
    assert CRITICALITIES["WatchHints"] is Criticality.DEVICE
    assert CRITICALITIES["RefreshSession"] is Criticality.SIGN_IN
    assert CRITICALITIES["SendNotification"] is Criticality.SERVICE
    assert CRITICALITIES["RedriveDeliveries"] is Criticality.OPERATOR


def test_streams_are_admitted_apart_from_unary_calls() -> None:
    calls, streams = admission(1_000)[0], admission(0)[0]
    methods = {method.name: method for service in CONTRACT for method in service.methods}
    assert calls.of(methods["WatchHints"]) is calls
    calls.streams = streams
    assert calls.of(methods["WatchHints"]) is streams
    assert calls.of(methods["GetHint"]) is calls
    calls.of(methods["WatchHints"]).check(CRITICALITIES["WatchHints"], USER)
    with pytest.raises(Overloaded):
        calls.of(methods["GetHint"]).check(CRITICALITIES["GetHint"], USER)
