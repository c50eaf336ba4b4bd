"""Redis is away for a whole load run: calls take at most 1.5 times as long (p95), and hardly any fails."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

from syncbeat.v1 import auth_service_pb2, core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.clock import SystemClock
from tests.faults.matrix import Call, Dependency
from tests.faults.measure import add_pollers
from tests.faults.stage import POLLING_USERS, FaultStage, fault_stage
from tests.support.databases import create_database, drop_database
from tests.support.rpc_server import Caller
from tests.support.tcp_relays import Fault

pytestmark = pytest.mark.prove

SLICE_S, WARM_S = 5.0, 5.0
PER_S = {Call.POLL: 40, Call.PUBLISH: 8, Call.PUSH: 8, Call.REFRESH: 4}
LANES = 8
MOST_TIMES, MOST_ERRORS = 1.5, 0.001
DEADLINE_S = 10.0
AWAY = {"there": None, "refuses": Fault.RESET, "silent": Fault.BLACK_HOLE}
"""The state of Redis in each of three services; the first is what the others are compared with."""

_clock = SystemClock()


@dataclass
class Run:
    """The load on one service: calls at a constant rate, each timed from when it was due."""

    stage: FaultStage
    took_s: dict[Call, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)
    counts: Counter[Call] = field(default_factory=Counter)
    refresh_tokens: dict[int, str] = field(default_factory=dict)

    async def prepare(self) -> None:
        """Register the devices that are pushed to, and begin the sessions that are refreshed."""
        for lane in range(LANES):
            await self.stage.backend(lane)(
                directory_service_pb2.RegisterDeviceRequest(
                    user_id=f"user-{lane}",
                    device_id="phone",
                    platform=directory_service_pb2.PLATFORM_ANDROID,
                    registration_token=f"token-{lane}",
                )
            )
            made = await self.stage.backend(lane)(auth_service_pb2.CreateSessionRequest(user_id=f"user-{lane}"))
            self.refresh_tokens[lane] = made.refresh_token

    async def load(self, seconds: float) -> None:
        """Call for so long, and wait for the last answers."""
        calls: dict[Call, Callable[[int], Awaitable[None]]] = {
            Call.POLL: self._poll,
            Call.PUBLISH: self._publish,
            Call.PUSH: self._push,
            Call.REFRESH: self._refresh,
        }
        async with asyncio.TaskGroup() as group:
            for call, per_s in PER_S.items():
                group.create_task(self._at_a_rate(call, calls[call], per_s, seconds))

    def forget(self) -> None:
        """Drop what was measured so far."""
        self.took_s.clear()
        self.errors.clear()

    def p95_ms(self, *calls: Call) -> float:
        """Return the 95th percentile of these calls."""
        took = [one for call in calls for one in self.took_s[call]]
        return round(statistics.quantiles(took, n=20)[-1] * 1_000, 2)

    async def _at_a_rate(self, call: Call, make: Callable[[int], Awaitable[None]], per_s: int, seconds: float) -> None:
        begun_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(round(per_s * seconds)):
                due_s = begun_s + number / per_s
                await _clock.sleep(max(0.0, due_s - time.monotonic()))
                self.counts[call] += 1
                group.create_task(self._timed(call, partial(make, self.counts[call]), due_s))

    async def _timed(self, call: Call, make: Callable[[], Awaitable[None]], due_s: float) -> None:
        try:
            await make()
        except grpc.aio.AioRpcError as error:
            self.errors[f"{call} {error.code().name}"] += 1
        self.took_s[call].append(time.monotonic() - due_s)

    async def _call(self, caller: Caller, request: Message) -> Message:
        answer: Message = await caller(request, DEADLINE_S)
        return answer

    async def _poll(self, number: int) -> None:
        token = self.stage.issuer.token(f"poller-{number % POLLING_USERS}")
        await self._call(self.stage.caller(token, number), sync_service_pb2.GetHintRequest(device_id="phone"))

    async def _publish(self, number: int) -> None:
        change = core_pb2.NewChange(scope=f"scope-{number % LANES}", key=f"k{number}", merge_patch_json="1")
        await self._call(self.stage.backend(number), sync_service_pb2.PublishChangesRequest(changes=[change]))

    async def _push(self, number: int) -> None:
        request = push_service_pb2.SendNotificationRequest(
            request_id=f"push-{number}",
            user_ids=core_pb2.UserIds(ids=[f"user-{number % LANES}"]),
            notification=core_pb2.Notification(title=f"push-{number}"),
        )
        await self._call(self.stage.backend(number), request)

    async def _refresh(self, number: int) -> None:
        lane = number % LANES
        request = auth_service_pb2.RefreshSessionRequest(refresh_token=self.refresh_tokens[lane])
        answer = await self.stage.caller("", lane)(request, DEADLINE_S)
        self.refresh_tokens[lane] = answer.refresh_token


@pytest.mark.timeout(600)
async def test_redis_down_for_a_whole_run_slows_no_call(
    stores: EmbeddedStores,
    template: str,
    tmp_path: Path,
    soak_s: float,
    record: Callable[[str, dict[str, object]], None],
) -> None:
    runs: dict[str, Run] = {}
    async with AsyncExitStack() as stack:
        for number, (name, fault) in enumerate(AWAY.items()):
            urls = await create_database(stores, f"redis_{name}", template)
            stack.push_async_callback(drop_database, stores, urls.name)
            (tmp_path / name).mkdir()
            stage = await stack.enter_async_context(
                fault_stage(urls, f"{stores.redis_url}?db={110 + number}", tmp_path / name, asyncio.Lock())
            )
            await add_pollers(stage)
            runs[name] = Run(stage)
            await runs[name].prepare()
            if fault is not None:
                stage.relays[Dependency.REDIS].begin(fault)
        for run in runs.values():
            await run.load(WARM_S)
            run.forget()
        # In turns, so that all meet the same machine; Redis is away from before the first to after the last.
        for _ in range(round(soak_s / SLICE_S)):
            for run in runs.values():
                await run.load(SLICE_S)
    figures = {name: figures_of(run) for name, run in runs.items()}
    record(
        "redis-down",
        {"command": "make prove ARGS='-k redis_down'", "seconds": soak_s, "per_s": PER_S, "redis": figures},
    )
    for name, run in runs.items():
        calls = sum(map(len, run.took_s.values()))
        assert run.errors.total() < MOST_ERRORS * calls, (name, run.errors)
        assert run.p95_ms(*PER_S) <= MOST_TIMES * runs["there"].p95_ms(*PER_S), (name, figures)


def figures_of(run: Run) -> dict[str, object]:
    """Return what is recorded of a run."""
    return {
        "calls": sum(map(len, run.took_s.values())),
        "errors": dict(run.errors),
        "p95_ms": run.p95_ms(*PER_S),
        "p95_ms_of": {call: run.p95_ms(call) for call in PER_S},
    }
