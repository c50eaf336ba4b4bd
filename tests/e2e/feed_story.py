"""A consumer of a whole app's feed, writers that never stop, and what goes wrong between them; then all is compared.

What the consumer was told is held against the rows of the database: a row that it does not know, or knows an older
sequence of, was missed. Each watch of it must go up in every scope.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import grpc

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_devtools.demo.devices import eventually
from syncbeat_devtools.demo.processes import Process, start_process
from syncbeat_devtools.demo.stage import Stage
from tests.support.databases import DatabaseUrls

SKEWED = Path(__file__).with_name("skewed")
_MAX_TRIES = 300
_AT_ONCE = 500  # changes of one publish


class Hosts:
    """Two servers, each with a clock of its own, that are started again where they were killed."""

    def __init__(self, stage: Stage, ports: list[int], ahead_s: tuple[float, float]) -> None:
        self._stage = stage
        self._ports = ports
        self._ahead_s = ahead_s
        self._running: list[Process] = []
        self.kills = 0

    async def start(self) -> None:
        self._running = [await self._start(index) for index in range(len(self._ports))]
        self._stage.servers.extend(self._running)

    async def clocks_apart_s(self, token: str) -> float:
        """By how much the clocks of the two differ, as they tell the time themselves."""
        told = []
        for process in self._running:
            async with self._stage.client(token, process) as client, client.watch(all_scopes=True) as watch:
                hint = await anext(watch)
                assert isinstance(hint, pb.Hint)
                told.append(hint.next_poll_time.ToDatetime() - hint.poll_interval.ToTimedelta())
        return (told[0] - told[1]).total_seconds()

    async def kill(self, index: int) -> None:
        """kill -9, and start it again."""
        await self._running[index].kill()
        self.kills += 1
        self._running[index] = await self._start(index)

    async def stop(self) -> None:
        await asyncio.gather(*(process.stop() for process in self._running))

    async def _start(self, index: int) -> Process:
        settings = {
            **self._stage.settings,
            "SYNCBEAT_ROLE": "rpc",
            "SYNCBEAT_LISTEN": f"127.0.0.1:{self._ports[index]}",
            "PYTHONPATH": str(SKEWED),
            "CLOCK_AHEAD_S": str(self._ahead_s[index]),
        }
        return await start_process(["serve"], settings, self._stage.folder / f"host-{index}.log")


class Cable:
    """A way over TCP to the first server that takes a connection; it can be cut."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.cuts = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Drop every connection that is open."""
        self.cuts += bool(self._tasks)
        for task in self._tasks:
            task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for port in random.sample(self._ports, len(self._ports)):
            with suppress(OSError):
                there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
                break
        else:
            writer.close()
            return
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.ensure_future(_pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()


@dataclass
class Consumer:
    """Follows everything through watches, one after the other, and keeps of each key what it was told last."""

    client: SyncbeatClient
    rows: dict[tuple[str, str], tuple[int, bool, str]] = field(default_factory=dict)
    token: str = ""
    events: int = 0
    octets: int = 0
    longest_checkpoint: int = 0
    resets: int = 0
    watches: int = 0
    unordered: list[str] = field(default_factory=list)
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Go on from the token that was kept last."""
        self.reads.set()
        self.watches += 1
        self._task = asyncio.ensure_future(self._follow())

    async def stop(self) -> None:
        """End, as a process does that is killed: what came after the last token is forgotten."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    async def _follow(self) -> None:
        last: dict[str, int] = {}
        async with self.client.watch(all_scopes=True, token=self.token, heartbeat_s=5.0) as watch:
            async for event in watch:
                await self.reads.wait()
                self.octets += event.ByteSize()
                if isinstance(event, pb.Change):
                    self._take(event, last)
                elif isinstance(event, pb.Checkpoint):
                    self.token = watch.token
                    self.longest_checkpoint = max(self.longest_checkpoint, event.ByteSize())
                    self.opened.set()
                elif isinstance(event, pb.Reset):
                    self.resets += 1

    def _take(self, change: pb.Change, last: dict[str, int]) -> None:
        self.events += 1
        if change.sequence <= last.get(change.scope, 0):
            self.unordered.append(f"{change.scope}: {change.sequence} after {last[change.scope]}")
        last[change.scope] = change.sequence
        known = self.rows.get((change.scope, change.key))
        if known is None or known[0] < change.sequence:
            self.rows[change.scope, change.key] = (change.sequence, change.deleted, change.value_json)


@dataclass
class Writers:
    """Publish to random scopes, under ids until accepted."""

    backend: SyncbeatClient
    scopes: int
    over: asyncio.Event = field(default_factory=asyncio.Event)
    accepted: dict[tuple[str, str], int] = field(default_factory=dict)
    published: int = 0

    async def run(self, number: int) -> None:
        dice, count = random.Random(number), 0
        while not self.over.is_set():
            count += 1
            changes = []
            for _ in range(dice.choice((1, 1, 1, 30))):
                scope, key = f"scope-{dice.randrange(self.scopes):05}", f"key-{dice.randrange(5)}"
                deleted = dice.random() < 0.1
                patch = "" if deleted else f'{{"by":{number},"n":{count}}}'
                changes.append(core_pb2.NewChange(scope=scope, key=key, merge_patch_json=patch, deleted=deleted))
            await self.publish(f"writer-{number}-{count}", changes)

    async def to_many(self, name: str, count: int) -> None:
        """One change in each of so many scopes that nobody has heard of."""
        for begin in range(0, count, _AT_ONCE):
            changes = [
                core_pb2.NewChange(scope=f"{name}-{number:05}", key="only", merge_patch_json=str(number))
                for number in range(begin, min(count, begin + _AT_ONCE))
            ]
            await self.publish(f"{name}-{begin}", changes)

    async def publish(self, request_id: str, changes: list[core_pb2.NewChange]) -> None:
        request = pb.PublishChangesRequest(request_id=request_id, changes=changes)
        for _ in range(_MAX_TRIES):
            try:
                answer = await self.backend.sync.PublishChanges(request, timeout=10, wait_for_ready=True)
            except grpc.aio.AioRpcError:
                continue
            for result in answer.results:
                place = (result.scope, result.key)
                self.accepted[place] = max(self.accepted.get(place, 0), result.sequence)
            self.published += len(changes)
            return
        raise AssertionError(f"{request_id} was never accepted")


async def rows_there(urls: DatabaseUrls) -> dict[tuple[str, str], tuple[int, bool, str]]:
    """Every row of the feeds, as a consumer is told of it."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        rows = await conn.fetch("SELECT scope, key, sequence, deleted, coalesce(value::text, '') FROM changes")
    finally:
        await conn.close()
    return {(scope, key): (sequence, deleted, value) for scope, key, sequence, deleted, value in rows}


async def hold(urls: DatabaseUrls, over: asyncio.Event, *, numbered: bool) -> None:
    """Hold a foreign transaction and its snapshot until it is over; `numbered`: it has a number of its own."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        await conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await conn.execute("SELECT pg_current_xact_id()" if numbered else "SELECT count(*) FROM scopes")
        await over.wait()
    finally:
        await conn.close()


async def level(consumer: Consumer, urls: DatabaseUrls, writers: Writers, wait_s: float = 120.0) -> list[str]:
    """Return what the consumer still lacks of what is there now when it has had time enough."""
    there = await rows_there(urls)

    async def complete() -> bool:
        return not missed(consumer, there, writers.accepted)

    await eventually(complete, wait_s)
    return missed(consumer, there, writers.accepted)


def missed(
    consumer: Consumer, there: dict[tuple[str, str], tuple[int, bool, str]], accepted: dict[tuple[str, str], int]
) -> list[str]:
    """Return what the consumer does not know as it is, and what was accepted and is not there."""
    return [
        *(
            f"{place}: {consumer.rows.get(place)} instead of {row}"
            for place, row in there.items()
            if consumer.rows.get(place) != row
        ),
        *(
            f"{place}: {sequence} was accepted and is lost"
            for place, sequence in accepted.items()
            if there.get(place, (0,))[0] < sequence
        ),
    ]
