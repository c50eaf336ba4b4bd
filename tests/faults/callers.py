"""Callers of every kind, who never stop while a network fails: they note each answer, and what it promised."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message

from syncbeat import SyncbeatClient, explain
from syncbeat.v1 import auth_service_pb2, core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_server.clock import SystemClock
from tests.faults.matrix import CALL_S, Call, Dependency
from tests.faults.stage import POLLING_USERS, WEBHOOK_APP, FaultStage
from tests.faults.verdicts import Ended, Sample
from tests.support.rpc_server import Caller
from tests.support.tcp_relays import Fault

LANES = 4
PACE_S = 0.4
_numbers = itertools.count(1)
_clock = SystemClock()


@dataclass
class Noted:
    """Everything that the callers of one condition noted."""

    samples: dict[Call, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    published: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    """The sequence and moment of each acknowledged change, by scope and key."""
    arrived: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    """The sequences and moments at which each change came on the stream."""
    sent: dict[str, float] = field(default_factory=dict)
    """The moment at which each notification was accepted, by title."""
    opened: list[tuple[float, float | None]] = field(default_factory=list)
    """Pairs of the moments at which a stream of a new key was wanted, and was open."""
    gone: list[str] = field(default_factory=list)
    """Streams and sessions that ended for good."""


def ended_by(error: grpc.aio.AioRpcError) -> tuple[Ended, str]:
    """Return how a call ended, and what it was told."""
    told = explain(error)
    text = f"{told.code.name} {told.message[:120]}"
    if told.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
        return (Ended.FAILED if told.retry_after_s is None else Ended.REFUSED), text
    return (Ended.LATE if told.code is grpc.StatusCode.DEADLINE_EXCEEDED else Ended.FAILED), text


class Callers:
    """The callers of one condition, on scopes, devices and sessions of their own."""

    def __init__(self, stage: FaultStage, dependency: Dependency, fault: Fault) -> None:
        self.noted = Noted()
        self._stage = stage
        self._number = next(_numbers)
        self._name = f"{dependency}-{fault}-{self._number}".replace(" ", "-")
        self._over = asyncio.Event()
        self._calling: list[asyncio.Task[None]] = []
        self._watches: list[asyncio.Task[None]] = []
        self._kids = {"old": stage.issuer.kids[-1]}
        self._refresh_tokens: dict[int, str] = {}
        self._watching = asyncio.Event()

    def scopes(self) -> list[str]:
        """Return the scopes that are published to."""
        return [f"{self._name}-{lane}" for lane in range(LANES)]

    async def begin(self) -> None:
        """Prepare what the callers need, and let them begin; returns once the stream is open."""
        for scope in self.scopes():
            members = [directory_service_pb2.ScopeMember(user_id=self._watcher, role=directory_service_pb2.ROLE_READER)]
            await self._surely(directory_service_pb2.AddScopeMembersRequest(scope=scope, members=members))
        await self._register(self._watcher, "")
        for lane in range(LANES):
            await self._register(f"{self._name}-{lane}", f"token-{self._name}-{lane}", self._app_of(lane))
            session = await self._surely(auth_service_pb2.CreateSessionRequest(user_id=f"{self._name}-{lane}"))
            self._refresh_tokens[lane] = session.refresh_token
        self._watches.append(asyncio.ensure_future(self._watch(self._kids["old"], self._noted_changes)))
        await self._watching.wait()
        for lane in range(LANES):
            for one in (self._poll, self._publish, self._push, self._refresh):
                self._calling.append(asyncio.ensure_future(self._repeat(one, lane)))

    def new_key(self) -> None:
        """Let half of the pollers, and another stream, come with a key that nobody has fetched yet."""
        self._stage.issuer.rotate()
        self._kids["new"] = self._stage.issuer.kids[-1]
        wanted_s, position = time.monotonic(), len(self.noted.opened)
        self.noted.opened.append((wanted_s, None))

        async def opened(_event: object) -> None:
            if self.noted.opened[position][1] is None:
                self.noted.opened[position] = (wanted_s, time.monotonic())

        self._watches.append(asyncio.ensure_future(self._watch(self._kids["new"], opened)))

    async def stop_calling(self) -> None:
        """Stop all but the streams; returns when the last call is answered."""
        self._over.set()
        await asyncio.gather(*self._calling)

    async def end(self) -> None:
        """Stop the streams too."""
        for task in self._watches:
            task.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)

    @property
    def _watcher(self) -> str:
        return f"{self._name}-watcher"

    def _app_of(self, lane: int) -> str:
        return WEBHOOK_APP if lane % 2 else ""

    async def _register(self, user: str, token: str, app_id: str = "") -> None:
        await self._surely(
            directory_service_pb2.RegisterDeviceRequest(
                app_id=app_id,
                user_id=user,
                device_id="phone",
                platform=directory_service_pb2.PLATFORM_ANDROID,
                registration_token=token,
            )
        )

    async def _surely(self, request: Message) -> Any:
        """The answer, however often it takes: what an earlier fault left may still be in the way."""
        for attempt in itertools.count():
            try:
                return await self._stage.backend(attempt)(request, CALL_S)
            except grpc.aio.AioRpcError:
                if attempt >= LANES:
                    raise
        raise AssertionError("unreachable")

    async def _repeat(self, one: Callable[[int, int], Awaitable[None]], lane: int) -> None:
        for count in itertools.count():
            if self._over.is_set():
                return
            await one(lane, count)
            await _clock.sleep(PACE_S)

    async def _note(self, call: Call, caller: Caller, request: Message, *, steady: bool = False) -> Any:
        """Make one call and note how it ended: its answer, None without one."""
        began_s = time.monotonic()
        try:
            answer, how, told = await caller(request, CALL_S), Ended.ANSWERED, ""
        except grpc.aio.AioRpcError as error:
            answer, (how, told) = None, ended_by(error)
        self.noted.samples[call].append(Sample(began_s, time.monotonic(), how, told, steady))
        return answer

    async def _until_accepted(self, call: Call, lane: int, request: Message) -> Any:
        """The answer of a call that is repeated under its id until it is accepted, at one server after the other.

        None if the callers stop before.
        """
        for attempt in itertools.count(lane):
            answer = await self._note(call, self._stage.backend(attempt), request)
            if answer is not None or self._over.is_set():
                return answer
            await _clock.sleep(PACE_S)
        raise AssertionError("unreachable")

    async def _poll(self, lane: int, count: int) -> None:
        # Somebody else each time, so that memory answers few; with new keys half of them come with one.
        user = f"poller-{(self._number * 97 + lane + LANES * count) % POLLING_USERS}"
        is_new = lane % 2 == 1 and "new" in self._kids
        token = self._stage.issuer.token(user, self._kids["new" if is_new else "old"])
        request = sync_service_pb2.GetHintRequest(device_id="phone")
        steady = "new" in self._kids and not is_new
        await self._note(Call.POLL, self._stage.caller(token, lane // 2), request, steady=steady)

    async def _publish(self, lane: int, count: int) -> None:
        scope, key = self.scopes()[lane], f"key-{count}"
        request = sync_service_pb2.PublishChangesRequest(
            request_id=f"{scope}-{key}",
            changes=[core_pb2.NewChange(scope=scope, key=key, merge_patch_json=f'"{key}"')],
        )
        answer = await self._until_accepted(Call.PUBLISH, lane, request)
        if answer is not None:
            self.noted.published[scope, key] = (answer.results[0].sequence, time.monotonic())

    async def _push(self, lane: int, count: int) -> None:
        title = f"{self._name}-{lane}-{count}"
        request = push_service_pb2.SendNotificationRequest(
            app_id=self._app_of(lane),
            request_id=title,
            user_ids=core_pb2.UserIds(ids=[f"{self._name}-{lane}"]),
            notification=core_pb2.Notification(title=title),
        )
        if await self._until_accepted(Call.PUSH, lane, request) is not None:
            self.noted.sent[title] = time.monotonic()

    async def _refresh(self, lane: int, _count: int) -> None:
        request = auth_service_pb2.RefreshSessionRequest(refresh_token=self._refresh_tokens[lane])
        answer = await self._note(Call.REFRESH, self._stage.caller("", lane), request)
        if answer is not None:
            self._refresh_tokens[lane] = answer.refresh_token

    async def _noted_changes(self, event: object) -> None:
        if isinstance(event, sync_service_pb2.Checkpoint):
            self._watching.set()
        if isinstance(event, sync_service_pb2.Change):
            self.noted.arrived[event.scope, event.key].append((event.sequence, time.monotonic()))

    async def _watch(self, kid: str, note: Callable[[object], Awaitable[None]]) -> None:
        token = self._stage.issuer.token(self._watcher, kid)
        address = self._stage.servers[1].address
        async with SyncbeatClient(address, token=token, tls=False) as client:
            try:
                async with client.watch("phone", heartbeat_s=5.0) as watch:
                    async for event in watch:
                        await note(event)
            except grpc.aio.AioRpcError as error:
                self.noted.gone.append(f"a stream ended: {ended_by(error)[1]}")
