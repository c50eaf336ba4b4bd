"""Many clients at once: what their calls answered, what connections they cost, and what was found in memory.

Clients that are shed do as the contract asks of all: they come again once the server's time is over.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
import asyncpg
import grpc
from google.protobuf.message import Message

from syncbeat.v1 import core_pb2, directory_service_pb2, sync_service_pb2
from syncbeat_server.clock import SystemClock
from tests.support.fake_clock import wait_until
from tests.support.rpc_server import Caller, refusal_of

_PER_CHANNEL = 50  # calls at once; a connection takes 100
_SAMPLE_S = 0.05
_MOST_TRIES = 20
# Below the 2 s after which a lent connection has the server probed, and the 4 s that a statement waits for a lock.
_HELD_S, _MOST_FILLINGS = 1.5, 10
# Of a client's eight calls one publishes, one is a transaction of its own, and the others are polls.
_ROUND = 8

Token = Callable[[str], str]
_clock = SystemClock()


@dataclass
class Load:
    """Records what clients met."""

    seconds: list[float] = field(default_factory=list)
    """Of each call, until it was answered: with the times that a shed one waited to come again."""
    errors: Counter[str] = field(default_factory=Counter)
    """The ends of calls that were not answered."""
    shed: int = 0
    """Answers that a call came too many, and when to come again: what a bounded wait for a connection ends with."""
    connections: int = 0
    """The most connections that PostgreSQL had of the service."""
    pooled: int = 0
    """The most connections that the processes themselves had open, all together."""

    @property
    def p95_ms(self) -> float:
        """The time within which 95 % of the calls were answered."""
        ordered = sorted(self.seconds)
        return round(1_000 * ordered[int(0.95 * len(ordered))], 1)


@asynccontextmanager
async def clients_of(addresses: Sequence[str], count: int, token: Token) -> AsyncIterator[list[Caller]]:
    """Clients of these servers, each a user of its own that stays with one server."""
    channels = [
        grpc.aio.insecure_channel(addresses[number % len(addresses)], options=[("grpc.use_local_subchannel_pool", 1)])
        for number in range(max(len(addresses), -(-count // _PER_CHANNEL)))
    ]
    try:
        yield [
            Caller(channels[number % len(channels)], (("authorization", f"Bearer {token(f'user-{number}')}"),))
            for number in range(count)
        ]
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def people(url: str, count: int) -> None:
    """A device and a scope of its own for each user."""
    conn = await asyncpg.connect(url)
    try:
        await conn.execute(
            """INSERT INTO devices (app_id, user_id, device_id, platform, token_state, registered_at, updated_at)
               SELECT 'default', 'user-' || n, 'phone', 'ANDROID', 'NONE', now(), now()
               FROM generate_series(0, $1::int - 1) n""",
            count,
        )
        await conn.execute(
            """INSERT INTO scopes (app_id, scope, created_at)
               SELECT 'default', 'scope-' || n, now() FROM generate_series(0, $1::int - 1) n""",
            count,
        )
        await conn.execute(
            """INSERT INTO scope_members (app_id, scope, user_id, role, added_at)
               SELECT 'default', 'scope-' || n, 'user-' || n, 'WRITER', now() FROM generate_series(0, $1::int - 1) n""",
            count,
        )
    finally:
        await conn.close()


def _request(number: int, turn: int) -> Message:
    step = turn % _ROUND
    if step == _ROUND - 1:
        change = core_pb2.NewChange(scope=f"scope-{number}", key="k", merge_patch_json=str(turn))
        return sync_service_pb2.PublishChangesRequest(changes=[change])
    if step == 0:
        return directory_service_pb2.ListDevicesRequest()
    return sync_service_pb2.GetHintRequest(device_id="phone")


async def answer(caller: Caller, request: Message, load: Load) -> None:
    """Make a call, again when it was shed and its time has come, and record how it ends."""
    began_s = _clock.monotonic()
    for _ in range(_MOST_TRIES):
        try:
            await caller(request)
        except grpc.aio.AioRpcError as error:
            wait_s = _shed_for_s(error)
            if wait_s is None:
                load.errors[f"{error.code().name}: {error.details()}"] += 1
                break
            load.shed += 1
            await _clock.sleep(wait_s)
        else:
            break
    else:
        load.errors[f"shed {_MOST_TRIES} times"] += 1
    load.seconds.append(_clock.monotonic() - began_s)


def _shed_for_s(error: grpc.aio.AioRpcError) -> float | None:
    """Return when a shed call may come again; None: it was not shed, or not told so."""
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    refusal = refusal_of(error)
    return int(refusal.pushback) / 1_000 if refusal.reason == "OVERLOADED" and refusal.pushback else None


async def fill_pools(
    clients: Sequence[Caller], admin_url: str, ops: Sequence[str], connections: int, load: Load
) -> None:
    """Have all clients want a connection at once, which a lock makes last, until there are so many, or it was tried
    often enough: on a slow machine calls come too far apart to want many at once.
    """

    async def is_full() -> bool:
        return await _pooled(ops) >= connections

    conn = await asyncpg.connect(admin_url)
    try:
        for turn in range(_MOST_FILLINGS):
            async with conn.transaction():
                await conn.execute("LOCK TABLE devices IN ACCESS EXCLUSIVE MODE")
                wanting = asyncio.gather(*(answer(caller, _request(turn, 0), load) for caller in clients))
                with suppress(TimeoutError):
                    async with asyncio.timeout(_HELD_S):
                        await wait_until(is_full)
            await wanting
            if await is_full():
                return
    finally:
        await conn.close()


async def run_load(clients: Sequence[Caller], seconds: float, load: Load) -> None:
    """Let all clients call for so long, and make a round each at least."""
    ends_s = _clock.monotonic() + seconds

    async def call(number: int, caller: Caller) -> None:
        turn = 0
        while turn < _ROUND or _clock.monotonic() < ends_s:
            await answer(caller, _request(number, turn), load)
            turn += 1

    await asyncio.gather(*(call(number, caller) for number, caller in enumerate(clients)))


@asynccontextmanager
async def connections_sampled(admin_url: str, ops: Sequence[str], load: Load) -> AsyncIterator[None]:
    """Sample for the block how many connections there are, as PostgreSQL and as the processes see it.

    The probe that looks, for a moment, if a slow server is there is not among them.
    """
    conn = await asyncpg.connect(admin_url)
    query = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
               AND application_name LIKE 'syncbeat %' AND application_name <> 'syncbeat probe'"""

    over = asyncio.Event()

    async def sample() -> None:
        while not over.is_set():
            load.connections = max(load.connections, await conn.fetchval(query))
            load.pooled = max(load.pooled, await _pooled(ops))
            with suppress(TimeoutError):
                async with asyncio.timeout(_SAMPLE_S):
                    await over.wait()

    sampling = asyncio.create_task(sample())
    try:
        yield
    finally:
        over.set()
        await sampling
        await conn.close()


async def _pooled(ops: Sequence[str]) -> int:
    return int(sum(await asyncio.gather(*(figure(one, "syncbeat_pool_connections") for one in ops))))


async def figure(ops: str, name: str) -> float:
    """One metric of a process."""
    async with aiohttp.ClientSession() as http, http.get(f"http://{ops}/metrics") as answer:
        found = re.search(rf"^{name} (\S+)$", await answer.text(), re.MULTILINE)
    return float(found[1]) if found else 0.0


async def hit_rate(ops: Sequence[str], cache: str) -> float:
    """The share of look-ups in a cache that found something, over all processes."""
    hits = sum(await asyncio.gather(*(figure(one, f"{cache}_hits_total") for one in ops)))
    misses = sum(await asyncio.gather(*(figure(one, f"{cache}_misses_total") for one in ops)))
    return round(hits / max(1.0, hits + misses), 4)
