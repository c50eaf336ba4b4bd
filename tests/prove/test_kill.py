"""kill -9 of servers and workers, again and again, under load."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import pytest

from syncbeat import SyncbeatClient
from syncbeat_devtools.demo.devices import StreamingDevice, eventually
from syncbeat_devtools.demo.processes import Process, start_process
from syncbeat_devtools.demo.stage import Stage
from tests.prove.load import Promises, publish_for_ever, register, send_for_ever, settled, streams

pytestmark = pytest.mark.prove


class Victims:
    """Two servers on fixed ports and two workers, each started again when it was killed."""

    def __init__(self, stage: Stage, ports: list[int]) -> None:
        self._stage = stage
        self._ports = ports
        self._running: dict[str, Process] = {}
        self.kills = 0

    async def start(self) -> None:
        for index in range(len(self._ports)):
            await self._start(f"server-{index}")
            await self._start(f"worker-{index}")
        self._stage.servers.extend(p for name, p in self._running.items() if name.startswith("server"))

    async def _start(self, name: str) -> None:
        kind, _, index = name.partition("-")
        settings = {
            **self._stage.settings,
            "SYNCBEAT_ROLE": "rpc",
            "SYNCBEAT_LISTEN": f"127.0.0.1:{self._ports[int(index)]}",
        }
        command = "serve" if kind == "server" else "worker"
        self._running[name] = await start_process([command], settings, self._stage.folder / f"{name}.log")

    async def kill_for(self, seconds: float, dice: random.Random) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            await self.kill_one(dice)

    async def kill_one(self, dice: random.Random) -> None:
        """Kill one of them, and start it again."""
        name = dice.choice(sorted(self._running))
        await self._running[name].kill()
        self.kills += 1
        await self._start(name)

    async def stop(self) -> None:
        await asyncio.gather(*(process.stop() for process in self._running.values()))


@pytest.mark.timeout(900)
async def test_crash_loop_loses_nothing_and_shows_nothing_twice(
    stage: Stage, two_ports: list[int], soak_s: float, record: Callable[[str, dict[str, object]], None]
) -> None:
    victims = Victims(stage, two_ports)
    await victims.start()
    promises, over = Promises(), asyncio.Event()
    async with stage.client(stage.identity.service_token) as backend:
        await register(backend)
        opened = await streams(stage)
        load = [
            *(asyncio.ensure_future(send_for_ever(backend, n, promises, over)) for n in range(8)),
            *(asyncio.ensure_future(publish_for_ever(backend, n, promises, over)) for n in range(8)),
        ]
        await victims.kill_for(soak_s, random.Random(7))
        over.set()
        await asyncio.gather(*load)
        counts = await settled(backend)
        gaps = await _gaps(opened, promises)
    await _close(opened)
    stats = await stage.fake_fcm.stats()
    await victims.stop()
    record(
        "kill",
        {
            "command": "make prove ARGS='-k crash_loop'",
            "seconds": soak_s,
            "kills": victims.kills,
            "failed_calls_retried": promises.failures,
            "notifications_accepted": len(promises.notifications),
            "deliveries": counts,
            "shown": stats["shown"],
            "sent_twice_replaced_in_place": stats["replaced"],
            "changes_published": sum(map(len, promises.changes.values())),
            "changes_missed_or_doubled_by_streams": gaps,
        },
    )
    assert victims.kills > 0
    assert counts == {"SENT": len(promises.notifications)}
    assert stats["shown"] == len(promises.notifications)
    assert gaps == 0


async def _gaps(opened: list[tuple[SyncbeatClient, StreamingDevice]], promises: Promises) -> int:
    """Return how many changes were not seen exactly once, in order, by the stream of their scope's only member."""
    gaps = 0
    for number, (_, device) in enumerate(opened):
        expected = promises.changes[f"scope-{number}"]

        async def complete(device: StreamingDevice = device, expected: list[int] = expected) -> bool:
            return len(device.sequences) >= len(expected)

        await eventually(complete, 60.0)
        gaps += device.sequences != expected
    return gaps


async def _close(opened: list[tuple[SyncbeatClient, StreamingDevice]]) -> None:
    for client, device in opened:
        await device.close()
        await client.close()
