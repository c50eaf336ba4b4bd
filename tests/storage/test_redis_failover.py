"""A failover of Redis is followed within seconds, under load: by sentinels, and behind one address."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.redis import bus as storage_redis
from syncbeat_server.storage.redis.address import parse_redis_url
from syncbeat_server.storage.redis.bus import RedisBus, open_redis
from syncbeat_server.storage.redis.capability_check import describe_refusals
from syncbeat_server.storage.redis.failover_monitor import RedisMonitor
from syncbeat_server.storage.redis.failure_causes import Cause
from syncbeat_server.storage.redis.time_limits import RedisTimings
from tests.support.fake_clock import wait_until
from tests.support.valkeys import PRIMARY, Valkey, moving_address, running_sentinel, running_valkey, sentinel_url

pytestmark = pytest.mark.store

# Sentinels take a second to see it and some to choose; the rest is for a busy machine.
FOLLOWED_S = 45.0


class Process:
    """One process of two: it listens, looks after Redis, and uses it all the time."""

    def __init__(self, bus: RedisBus) -> None:
        self.bus = bus
        self.heard: set[str] = set()
        self.resumed = 0
        self.written = 0
        self.watch = RedisMonitor(bus, every_s=1.0, again_s=0.2)

    def work(self) -> list[Coroutine[Any, Any, None]]:
        return [
            self.watch.run(),
            self.bus.run_publisher(),
            self.bus.run_listener(["news"], lambda _, text: self.heard.add(text), self._resume),
            self._load(),
        ]

    def _resume(self) -> None:
        self.resumed += 1

    async def _load(self) -> None:
        clock = SystemClock()
        while True:
            try:
                await self.bus.tally({"count": {1: 1}}, ["count"], 60.0)
                self.written += 1
            except DependencyDown:
                pass
            await clock.sleep(0.02)


@asynccontextmanager
async def two_processes(url: str) -> AsyncIterator[tuple[Process, Process]]:
    async with open_redis(url, SystemClock(), "ours") as one, open_redis(url, SystemClock(), "ours") as two:
        processes = Process(one), Process(two)
        tasks = [asyncio.ensure_future(work) for process in processes for work in process.work()]
        try:
            yield processes
        finally:
            for task in tasks:
                task.cancel()
            _, pending = await asyncio.wait(tasks, timeout=20)
            assert not pending, "a cancellation was lost"
            assert all(task.cancelled() for task in tasks), "a loop ended by itself"


async def hear_each_other(*processes: Process) -> None:
    """Return when what either publishes reaches both, and both write."""
    before = [process.written for process in processes]
    number = 0

    def all_heard() -> bool:
        nonlocal number
        number += 1
        for sender in range(2):
            processes[sender].bus.publish("news", f"{sender} {number}")
        return all(
            any(text.startswith(f"{sender} ") for text in process.heard) and process.written > count
            for sender in range(2)
            for process, count in zip(processes, before, strict=True)
        )

    for process in processes:
        process.heard.clear()
    await wait_until(all_heard, FOLLOWED_S, "all hear and write")


async def all_is_well(*processes: Process) -> None:
    await wait_until(
        lambda: all(process.bus.health.is_up and process.bus.listening for process in processes),
        FOLLOWED_S,
        "all is well",
    )
    await hear_each_other(*processes)


@contextmanager
def pair(folder: Path) -> Iterator[tuple[Valkey, Valkey]]:
    with running_valkey(folder) as primary, running_valkey(folder) as replica:
        replica.follow(primary)
        yield primary, replica


def listeners(valkey: Valkey) -> int:
    with valkey.client() as client:
        return len(client.client_list(_type="pubsub"))


def callers(valkey: Valkey) -> int:
    """Return how many connections give it commands or listen to it, beside that which asks and its replicas."""
    with valkey.client() as client:
        return len(client.client_list(_type="normal")) - 1 + listeners(valkey)


def stop(primary: Valkey, _: list[Valkey]) -> None:
    assert primary.server.pid is not None
    os.kill(primary.server.pid, signal.SIGSTOP)


def plan(_: Valkey, sentinels: list[Valkey]) -> None:
    with sentinels[-1].client() as client:
        client.sentinel_failover(PRIMARY)


def kill_with_a_sentinel(primary: Valkey, sentinels: list[Valkey]) -> None:
    sentinels[0].server.kill()
    primary.server.kill()


def stop_a_sentinel(primary: Valkey, sentinels: list[Valkey]) -> None:
    stop(sentinels[0], [])
    primary.server.kill()


HARMS: dict[str, Callable[[Valkey, list[Valkey]], None]] = {
    "killed": lambda primary, _: primary.server.kill(),
    "stopped": stop,
    "planned": plan,
    "killed with a sentinel": kill_with_a_sentinel,
    "killed while a sentinel hangs": stop_a_sentinel,
}


@pytest.mark.parametrize("how", HARMS)
async def test_redis_failover_by_sentinel_under_load(how: str, tmp_path: Path) -> None:
    with pair(tmp_path) as (primary, replica), ExitStack() as cleanup:
        sentinels = [cleanup.enter_context(running_sentinel(tmp_path, primary, quorum=2)) for _ in range(3)]
        await wait_until(lambda: all(knows_all(one) for one in sentinels), FOLLOWED_S, "the sentinels know all")
        await wait_until(replica.is_in_step)
        async with two_processes(sentinel_url(*sentinels)) as processes:
            await all_is_well(*processes)
            HARMS[how](primary, sentinels)
            await wait_until(replica.is_primary, FOLLOWED_S, "the replica is primary")
            await wait_until(lambda: listeners(replica) >= len(processes), FOLLOWED_S, "they listen to the new primary")
            await all_is_well(*processes)
            with replica.client() as client:
                assert client.exists("syncbeat:ours:count") == 1
            assert await describe_refusals(parse_redis_url(sentinel_url(*sentinels)), "check") == []


def knows_all(sentinel: Valkey) -> bool:
    with sentinel.client() as client:
        known = client.sentinel_master(PRIMARY)
    return bool(known["num-slaves"] == 1 and known["num-other-sentinels"] == 2)


async def test_redis_failover_by_address_moves_all_connections(tmp_path: Path) -> None:
    with pair(tmp_path) as (primary, replica):
        async with moving_address(primary) as address, two_processes(f"redis://127.0.0.1:{address.port}") as processes:
            await all_is_well(*processes)
            await wait_until(replica.is_in_step)
            # The former primary lives on, as a replica that publishes and is listened to.
            replica.follow(None)
            primary.follow(replica)
            address.target = replica.port
            await wait_until(lambda: callers(primary) == 0, FOLLOWED_S, "nobody speaks with the former primary")
            await all_is_well(*processes)
            assert {process.bus.health.errors[Cause.READ_ONLY] > 0 for process in processes} == {True}


async def test_redis_failover_by_address_while_the_former_primary_takes_writes(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as former, running_valkey(tmp_path) as later:
        async with moving_address(former) as address, two_processes(f"redis://127.0.0.1:{address.port}") as processes:
            await all_is_well(*processes)
            address.target = later.port  # no call fails
            await wait_until(lambda: callers(former) == 0, FOLLOWED_S, "nobody speaks with the former server")
            await all_is_well(*processes)


async def test_redis_failover_by_late_address(tmp_path: Path) -> None:
    with pair(tmp_path) as (primary, replica):
        async with moving_address(primary) as address, two_processes(f"redis://127.0.0.1:{address.port}") as processes:
            await all_is_well(*processes)
            await wait_until(replica.is_in_step)
            replica.follow(None)
            primary.follow(replica)
            await wait_until(lambda: all(one.bus.health.cause is Cause.READ_ONLY for one in processes))
            before = [process.resumed for process in processes]
            looks = [process.bus.health.errors[Cause.READ_ONLY] for process in processes]
            await wait_until(
                lambda: all(
                    process.bus.health.errors[Cause.READ_ONLY] > count + 150  # some trials long
                    for process, count in zip(processes, looks, strict=True)
                )
            )
            # As long as there is nothing better, what is heard of the replica is heard on.
            assert [process.resumed for process in processes] == before
            address.target = replica.port
            await wait_until(lambda: callers(primary) == 0, FOLLOWED_S, "nobody speaks with the former primary")
            await all_is_well(*processes)


async def test_redis_subscription_is_trusted_only_when_confirmed(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as one:
        with one.client() as client:
            client.execute_command("ACL SETUSER", "deaf", "on", "nopass", "~*", "+@all", "resetchannels")
        async with open_redis(f"redis://deaf:any@127.0.0.1:{one.port}", SystemClock(), "ours") as bus:
            resumed: list[None] = []
            task = asyncio.ensure_future(bus.run_listener(["news"], lambda *_: None, lambda: resumed.append(None)))
            await wait_until(lambda: bus.health.errors[Cause.NOT_PERMITTED] >= 2)
            assert (bus.listening, resumed) == (False, [])
            task.cancel()


async def test_redis_connections_are_bounded(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as one:
        async with open_redis(one.url, SystemClock(), "ours", RedisTimings(call_s=20.0)) as bus:
            # How fast they are is not the question.
            await asyncio.gather(*(bus.write({f"key {number}": b"value"}, 60.0) for number in range(500)))
            assert 1 <= callers(one) <= storage_redis._CALLS


async def test_redis_hang_blocks_no_call_beyond_its_timeout(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as one:
        async with open_redis(one.url, SystemClock(), "ours") as bus:
            await bus.present(["key"])
            stop(one, [])
            calls = [asyncio.ensure_future(bus.present(["key"])) for _ in range(100)]
            done, _ = await asyncio.wait(calls, timeout=bus.timings.call_s + 15)
            assert len(done) == len(calls)
            assert all(isinstance(call.exception(), DependencyDown) for call in done)
            assert bus.health.errors[Cause.NO_ANSWER] == len(calls)


def test_reconnect_to_redis_backs_off_with_jitter() -> None:
    for failures, most_s in ((0, 0.5), (1, 1.0), (2, 2.0), (3, 4.0), (4, 4.0), (10_000, 4.0)):
        pauses = {RedisTimings().pause_s(failures) for _ in range(100)}
        assert len(pauses) > 50
        assert most_s / 2 <= min(pauses) <= max(pauses) <= most_s
