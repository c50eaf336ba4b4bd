"""kill -9 of a server or worker at each statement of an ingest or a retry: no effect is lost, and none comes twice."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import asyncpg
import grpc
import pytest

from syncbeat import SyncbeatClient
from syncbeat.v1 import directory_service_pb2, sync_service_pb2
from syncbeat.v1 import event_service_pb2 as pb
from syncbeat_devtools.demo.devices import eventually
from syncbeat_devtools.demo.processes import Process
from syncbeat_devtools.demo.stage import Stage
from tests.support.databases import DatabaseUrls
from tests.support.event_deaths import Death, doomed
from tests.support.event_requests import NOT_DONE, SOURCE, TIERS, change, done_once, effects_of, event, everything, told

pytestmark = pytest.mark.prove

RETRIES = "EventRetryWorker.run"
"""The task by which a worker retries what FAILED."""
MOST_STEPS = 120
ACCEPTED, FAILED, STALE = (("ACCEPTED",) * 2), (("FAILED",) * 2), (("STALE",) * 2)


@dataclass
class Kills:
    """The stage of the kills: who lives, and what came of it."""

    stage: Stage
    urls: DatabaseUrls
    live: SyncbeatClient
    steps: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    answers: dict[str, int] = field(default_factory=dict)

    async def ingest(self, request: pb.IngestEventRequest) -> tuple[str, str]:
        """Deliver it to the server that lives."""
        return told(await self.live.events.IngestEvent(request, timeout=20))

    async def fail(self, name: str) -> None:
        """Ingest an event that FAILS, and keep workers from it until `retry_at` or whoever dies."""
        assert await self.ingest(gated(name)) == FAILED
        await self.retry_at(name, "syncbeat_now() + '1 hour'")
        await self.open_gate(name)

    async def retry_at(self, name: str, moment: str) -> None:
        """Let it be due at a moment, as if a pause or the lease of a claim ended then."""
        conn = await asyncpg.connect(self.urls.admin_url)
        try:
            await conn.execute(
                f"UPDATE events SET next_attempt_at = {moment} WHERE event_id = $1 AND state = 'FAILED'", name
            )
        finally:
            await conn.close()

    async def is_accepted(self, name: str) -> bool:
        conn = await asyncpg.connect(self.urls.admin_url)
        try:
            return bool(await conn.fetchval("SELECT state = 'ACCEPTED' FROM events WHERE event_id = $1", name))
        finally:
            await conn.close()

    async def open_gate(self, name: str) -> None:
        opened = sync_service_pb2.PublishChangesRequest(changes=[change(f"gate-{name}", 1)])
        await self.live.sync.PublishChanges(opened)

    async def require(self, name: str, effects: dict[str, Any]) -> None:
        """Compare what stands in the database with the effects of `everything(name)`."""
        assert await effects_of(self.urls.admin_url, name) == effects, name


def gated(name: str) -> pb.IngestEventRequest:
    """An event that fails until its gate is open."""
    gate = change(f"gate-{name}", 2, expected_sequence=1)
    return event(name, everything(name, changes=[change(name, {"by": name}), gate]), subject=name, at=1)


class Scenario:
    """Names the work of the process that dies, what stood before, and what has to stand after."""

    origin = "IngestEvent"
    command = "serve"

    async def prepare(self, kills: Kills, name: str) -> None:
        """Nothing stood before."""

    async def act(self, client: SyncbeatClient, name: str) -> None:
        """Deliver it to the one that dies."""
        await client.events.IngestEvent(gated(name), timeout=20)

    async def check(self, kills: Kills, name: str) -> None:
        """Deliver it to the one that lives, and look."""
        raise NotImplementedError


class FirstDelivery(Scenario):
    """An event with effects of every kind comes for the first time."""

    async def prepare(self, kills: Kills, name: str) -> None:
        await kills.open_gate(name)

    async def check(self, kills: Kills, name: str) -> None:
        assert await kills.ingest(gated(name)) in (ACCEPTED, ("DUPLICATE", "ACCEPTED"))
        assert await kills.ingest(gated(name)) == ("DUPLICATE", "ACCEPTED")
        await kills.require(name, done_once(name))


class FailingDelivery(Scenario):
    """An event whose last effect fails comes for the first time."""

    async def check(self, kills: Kills, name: str) -> None:
        await kills.require(name, NOT_DONE)
        assert await kills.ingest(gated(name)) == FAILED
        await kills.require(name, NOT_DONE)
        await kills.open_gate(name)
        assert await kills.ingest(gated(name)) == ACCEPTED
        await kills.require(name, done_once(name))


class Redelivery(Scenario):
    """An event that FAILED comes again when its effects can be carried out."""

    async def prepare(self, kills: Kills, name: str) -> None:
        await kills.fail(name)

    async def check(self, kills: Kills, name: str) -> None:
        assert await kills.ingest(gated(name)) in (ACCEPTED, ("DUPLICATE", "ACCEPTED"))
        await kills.require(name, done_once(name))


class Retry(Redelivery):
    """RetryEvent of one that FAILED."""

    origin = "RetryEvent"

    async def act(self, client: SyncbeatClient, name: str) -> None:
        await client.events.RetryEvent(pb.RetryEventRequest(source=SOURCE, event_id=name), timeout=20)

    async def check(self, kills: Kills, name: str) -> None:
        again = pb.RetryEventRequest(source=SOURCE, event_id=name)
        assert told(await kills.live.events.RetryEvent(again, timeout=20)) == ACCEPTED
        await kills.require(name, done_once(name))


class StaleDelivery(Scenario):
    """An event comes after a later one of its subject."""

    async def prepare(self, kills: Kills, name: str) -> None:
        later = event(f"{name}-later", everything(name), subject=name, at=2)
        assert await kills.ingest(later) == ACCEPTED
        await kills.open_gate(name)

    async def check(self, kills: Kills, name: str) -> None:
        assert await kills.ingest(gated(name)) in (STALE, ("DUPLICATE", "STALE"))
        await kills.require(name, done_once(name))


SCENARIOS: dict[str, Scenario] = {
    "a first delivery": FirstDelivery(),
    "a delivery that fails": FailingDelivery(),
    "a redelivery of one that failed": Redelivery(),
    "a stale delivery": StaleDelivery(),
    "RetryEvent": Retry(),
}


async def with_device(kills: Kills, name: str) -> None:
    device = directory_service_pb2.RegisterDeviceRequest(
        user_id=name,
        device_id="phone",
        platform=directory_service_pb2.PLATFORM_ANDROID,
        registration_token=f"token-{name}",
    )
    await kills.live.directory.RegisterDevice(device)


async def kill_at(kills: Kills, scenario: Scenario, death: Death, name: str) -> bool:
    """Kill at one statement, and check; whether it came to that statement."""
    await with_device(kills, name)
    await scenario.prepare(kills, name)
    async with doomed(kills.stage, death) as victim:
        async with SyncbeatClient(victim.address, token=kills.stage.identity.service_token, tls=False) as client:
            try:
                await scenario.act(client, name)
            except grpc.aio.AioRpcError:
                assert await victim.died(20), "the call failed, and its server lives"
        died = victim.is_dead
    kills.kills += died
    await scenario.check(kills, name)
    return died


@pytest.fixture
def tiered_stage(stage: Stage) -> Stage:
    """The stage of an app with tiers."""
    apps = stage.folder / "apps.toml"
    apps.write_text(TIERS)
    stage.settings["SYNCBEAT_APPS_FILE"] = str(apps)
    return stage


@pytest.mark.timeout(3_000)
async def test_event_kills_at_each_statement_lose_and_double_nothing(
    tiered_stage: Stage, database_urls: DatabaseUrls, record: Callable[[str, dict[str, object]], None]
) -> None:
    stage = tiered_stage
    server = await stage.start_server()
    async with stage.client(stage.identity.service_token, server) as live:
        kills = Kills(stage, database_urls, live)
        for told_as, scenario in SCENARIOS.items():
            kills.steps[told_as] = await kill_servers(kills, scenario)
    record("event_kills", figures(kills))


@pytest.mark.timeout(6_000)
async def test_event_kills_of_retrying_workers_lose_and_double_nothing(
    tiered_stage: Stage, database_urls: DatabaseUrls, record: Callable[[str, dict[str, object]], None]
) -> None:
    """Kill workers, while the server that lives is stopped; after each kill it is the one that finishes."""
    server = await tiered_stage.start_server()
    async with tiered_stage.client(tiered_stage.identity.service_token, server) as live:
        kills = Kills(tiered_stage, database_urls, live)
        kills.steps["a worker's retry"] = await kill_workers(kills, server)
    record("event_worker_kills", figures(kills))


def figures(kills: Kills) -> dict[str, object]:
    """Return the record of kills that all went well."""
    return {
        "command": "make prove ARGS='-k event_kills'",
        "statements_killed_at": kills.steps,
        "kills": kills.kills,
        "effects_lost": 0,
        "effects_doubled": 0,
    }


async def kill_servers(kills: Kills, scenario: Scenario) -> int:
    """Kill a server before each of its statements, and after the last; the number of statements."""
    name = type(scenario).__name__.lower()
    steps = 0
    while await kill_at(kills, scenario, Death(scenario.origin, steps + 1), f"{name}-{steps + 1}"):
        steps += 1
        assert steps < MOST_STEPS
    assert steps > 2, f"no statement of {scenario.origin} was found"
    assert await kill_at(kills, scenario, Death(scenario.origin, steps, "after"), f"{name}-last")
    return steps


async def kill_workers(kills: Kills, server: Process) -> int:
    """Kill a worker at each statement by which it retries, and let a server finish; the number of statements."""
    for nth in itertools.count(1):
        assert nth < MOST_STEPS
        name = f"worker-{nth}"
        await with_device(kills, name)
        await kills.fail(name)
        accepted = partial(kills.is_accepted, name)
        os.kill(server.pid, signal.SIGSTOP)  # so that the one that is to die has the event for itself
        try:
            await kills.retry_at(name, "syncbeat_now()")
            async with doomed(kills.stage, Death(RETRIES, nth), "worker") as victim:
                while not victim.is_dead and not await accepted():
                    await victim.died(0.2)
                died = victim.is_dead  # and was not ended with the block
        finally:
            os.kill(server.pid, signal.SIGCONT)
        if not died:
            break
        kills.kills += 1
        await kills.retry_at(name, "syncbeat_now()")  # as if the lease of its claim had ended
        assert await eventually(accepted, 60.0)
        await kills.require(name, done_once(name))
    assert nth > 3, "no statement of a worker's retry was found"
    return nth - 1
