"""Calls that are served in a row by a real server: each is its own, and is counted once, whatever becomes of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from syncbeat.v1 import sync_service_pb2
from syncbeat_server.auth.service import Authenticator
from syncbeat_server.clock import Clock
from syncbeat_server.ops.metrics.rpc import RpcMetrics
from syncbeat_server.rpc.pipeline import handler_pipeline
from syncbeat_server.rpc.pipeline.handler_pipeline import CallObserver, HandlerPipeline
from syncbeat_server.rpc.pipeline.load_shedding import Admission
from syncbeat_server.runtime.adaptive_batching import BatchTrigger
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.rpc_server import Caller, Server, refusal_of, running_server

pytestmark = pytest.mark.rpc

WARM, COLD = ("ann", "anna", "annabel"), ("bob", "bobby", "bobbie-joe")


class Late:
    """The clock of a server, which goes on at a word."""

    def __init__(self, clock: Clock) -> None:
        self.now, self.sleep = clock.now, clock.sleep
        self._monotonic = clock.monotonic
        self.passed_s = 0.0

    def monotonic(self) -> float:
        return self._monotonic() + self.passed_s


class HeldServer:
    """A server whose rows of polls begin when the test says so."""

    server: Server

    def __init__(self, pipeline: HandlerPipeline, clock: Late) -> None:
        self.clock = clock
        self.admission: Admission = pipeline.admission
        self._pipeline = pipeline

    def hold(self) -> None:
        """Let polls wait from here on."""

        class Held(BatchTrigger):
            def arm(self) -> None:
                pass

        self._pipeline.batcher._gathering = Held((), 0, lambda: None)

    @property
    def waiting(self) -> int:
        """Return how many polls wait whose caller is still there."""
        return sum(not future.done() for _, future in self._pipeline.batcher._waiting)

    async def serve(self, count: int) -> None:
        """Let so many polls come together, and serve them in a row, which no pause of the machine cuts in two."""
        await wait_until(lambda: self.waiting == count)
        while self._pipeline.batcher._waiting:
            Context().run(self._pipeline.batcher._serve_batch)

    async def refuses_calls(self) -> bool:
        """Return whether the server has begun to end."""
        try:
            await health_pb2_grpc.HealthStub(self.server.channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNAVAILABLE
        return False

    def handled(self) -> Counter[str]:
        """Return how many polls ended with each code."""
        observer = self._pipeline.observer
        assert isinstance(observer, RpcMetrics)
        return Counter(
            {
                sample.labels["grpc_code"]: int(sample.value)
                for metric in observer.registry.collect()
                for sample in metric.samples
                if sample.name == "grpc_server_handled_total" and sample.labels["grpc_method"] == "GetHint"
            }
        )

    async def settle_in(self, user: str) -> None:
        """The user has a device, and a scope of its name with as many changes as that has letters."""
        await self.server.register(user, "phone")
        await self.server.add(user, user)
        for letter in range(len(user)):
            await self.server.publish(user, f"{letter}")


@asynccontextmanager
async def held_server(
    monkeypatch: pytest.MonkeyPatch, urls: DatabaseUrls, redis_url: str, max_in_flight: int = 2_000
) -> AsyncIterator[HeldServer]:
    made: list[HeldServer] = []

    class Noted(HandlerPipeline):
        def __init__(self, authenticator: Authenticator, observer: CallObserver, clock: Clock, *rest: Any) -> None:
            late = Late(clock)
            super().__init__(authenticator, observer, late, *rest)
            made.append(HeldServer(self, late))

    monkeypatch.setattr(handler_pipeline, "HandlerPipeline", Noted)
    async with running_server(urls, redis_url, MAX_IN_FLIGHT=f"{max_in_flight}") as server:
        made[0].server = server
        yield made[0]


def poll(user_id: str = "", device_id: str = "phone") -> sync_service_pb2.GetHintRequest:
    return sync_service_pb2.GetHintRequest(user_id=user_id, device_id=device_id)


def under(caller: Caller, request_id: str) -> Caller:
    return Caller(caller.channel, (*caller.metadata, ("x-request-id", request_id)))


async def told(call: Awaitable[Any]) -> tuple[str, str]:
    """The scope of a hint and how many changes are in it, or the reason and the call's id of a refusal."""
    try:
        (head,) = (await call).hint.heads
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        return refusal.reason, refusal.metadata["request_id"]
    return head.scope, f"{head.sequence}"


async def test_request_batching_keeps_calls_apart_and_counts_each_once(
    monkeypatch: pytest.MonkeyPatch, database_urls: DatabaseUrls, redis_url: str
) -> None:
    async with held_server(monkeypatch, database_urls, redis_url) as here:
        server = here.server
        await asyncio.gather(*map(here.settle_in, (*WARM, *COLD)))
        known = {user: server.user(user) for user in WARM}
        for caller in known.values():
            await caller(poll())
        here.hold()
        handled, started = here.handled(), here.admission.counts.started

        calls: list[tuple[Caller, sync_service_pb2.GetHintRequest, tuple[str, str]]] = []
        for user, other in zip(WARM, COLD, strict=True):
            calls += [
                (known[user], poll(), (user, f"{len(user)}")),
                (under(server.bearer(f"bad.{user}"), f"of {user}"), poll(), ("TOKEN_INVALID", f"of {user}")),
                (server.user(other), poll(), (other, f"{len(other)}")),
                (server.backend, poll(user), (user, f"{len(user)}")),
                (server.backend, poll(other), (other, f"{len(other)}")),
                (under(known[user], f"by {user}"), poll(other), ("ACCESS_DENIED", f"by {user}")),
                (under(known[user], f"no {user}"), poll("", ""), ("INVALID_FIELD", f"no {user}")),
            ]
        answers = [asyncio.ensure_future(told(caller(request))) for caller, request, _ in calls]
        leaving = [asyncio.ensure_future(caller(poll())) for caller in known.values()]
        await wait_until(lambda: here.waiting == len(calls) + len(leaving))
        for call in leaving:
            call.cancel()
        await here.serve(len(calls))
        assert await asyncio.gather(*answers) == [wanted for _, _, wanted in calls]
        # Who is refused may hear of it before it is counted.
        await wait_until(lambda: (here.handled() - handled).total() == len(calls) + len(leaving))
        assert here.handled() - handled == Counter(
            OK=12, UNAUTHENTICATED=3, PERMISSION_DENIED=3, INVALID_ARGUMENT=3, CANCELLED=3
        )
        assert (here.admission.counts.in_flight, here.admission.counts.started - started) == (0, len(calls))


async def test_request_batching_is_not_limited_by_admission(
    monkeypatch: pytest.MonkeyPatch, database_urls: DatabaseUrls, redis_url: str
) -> None:
    async with held_server(monkeypatch, database_urls, redis_url, 3) as here:
        await here.settle_in("ann")
        await here.settle_in("bob")
        ann, bad = here.server.user("ann"), here.server.bearer("bad")
        await ann(poll())
        here.hold()
        row = [asyncio.ensure_future(told(caller(poll()))) for caller in (ann, bad) * 10]
        await here.serve(20)
        assert Counter(name for name, _ in await asyncio.gather(*row)) == {"ann": 10, "TOKEN_INVALID": 10}

        strangers = [here.server.user("bob", 3_600 + number) for number in range(10)]
        row = [asyncio.ensure_future(told(caller(poll()))) for caller in (*strangers, ann)]
        await here.serve(11)
        assert Counter(name for name, _ in await asyncio.gather(*row)) == {"bob": 3, "OVERLOADED": 8}
        assert (here.admission.counts.in_flight, here.admission.counts.shed) == (0, 8)


async def test_request_batching_time_counts_against_the_deadline(
    monkeypatch: pytest.MonkeyPatch, database_urls: DatabaseUrls, redis_url: str
) -> None:
    async with held_server(monkeypatch, database_urls, redis_url) as here:
        await here.settle_in("ann")
        here.hold()
        conn = await asyncpg.connect(database_urls.admin_url)
        async with conn.transaction():
            await conn.execute("LOCK TABLE users")
            call = asyncio.ensure_future(told(here.server.user("ann")(poll(), 60.0)))
            await wait_until(lambda: here.waiting)
            here.clock.passed_s = 9.9  # of the ten seconds that a server takes at most
            served = asyncio.get_running_loop().time()
            await here.serve(1)
            assert (await call)[0] == "DEADLINE_EXCEEDED"
            assert asyncio.get_running_loop().time() - served < 9.0
        await conn.close()
        assert here.admission.counts.in_flight == 0


async def test_request_batching_serves_during_shutdown(
    monkeypatch: pytest.MonkeyPatch, database_urls: DatabaseUrls, redis_url: str
) -> None:
    async with held_server(monkeypatch, database_urls, redis_url) as here:
        await here.settle_in("ann")
        ann, bob = here.server.user("ann"), here.server.user("bob")
        await ann(poll())
        here.hold()
        row = [asyncio.ensure_future(told(caller(poll()))) for caller in (ann, ann, bob)]
        await wait_until(lambda: here.waiting == 3)
        here.server.stop.set()
        await wait_until(here.refuses_calls)
        await here.serve(3)
        assert [one for one, _ in await asyncio.gather(*row)] == ["ann", "ann", "ACCESS_DENIED"]
    assert here.admission.counts.in_flight == 0


async def test_request_batching_admission_counts_an_opening_stream_apart(
    monkeypatch: pytest.MonkeyPatch, database_urls: DatabaseUrls, redis_url: str
) -> None:
    async with held_server(monkeypatch, database_urls, redis_url) as here:
        await here.settle_in("ann")
        assert here.admission.streams is not None
        calls, streams = here.admission.counts, here.admission.streams.counts
        started = calls.started
        stream = here.server.user("ann").watch(device_id="phone")
        await stream.opened()
        assert (streams.in_flight, streams.started) == (0, 1)
        with pytest.raises(grpc.aio.AioRpcError):
            await here.server.bearer("bad").watch(device_id="phone").opened()
        stream.call.cancel()
        assert (streams.in_flight, streams.started) == (0, 2)
        assert (calls.in_flight, calls.started) == (0, started), "they fill no room of other calls"
