"""Many clients at once: what their calls answered, what connections they cost, and what was found in memory."""

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
from tests.support.rpc_server import Caller

_PER_CHANNEL = 50  # calls at once; a connection takes 100
_SAMPLE_S = 0.05
# Of a client's eight calls one publishes, one is a transaction of its own, and the others are polls.
_ROUND = 8

Token = Callable[[str], str]


@dataclass
class Load:
    """Records what clients met."""

    seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
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


async def run_load(clients: Sequence[Caller], seconds: float, load: Load) -> None:
    """Let all clients call for so long, a round each at least; they begin at once: every connection is wanted."""
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + seconds

    async def call(number: int, caller: Caller) -> None:
        turn = 0
        while turn < _ROUND or loop.time() < ends_s:
            began_s = loop.time()
            try:
                await caller(_request(number, turn))
            except grpc.aio.AioRpcError as error:
                load.errors[f"{error.code().name}: {error.details()}"] += 1
            load.seconds.append(loop.time() - began_s)
            turn += 1

    await asyncio.gather(*(call(number, caller) for number, caller in enumerate(clients)))


@asynccontextmanager
async def connections_sampled(admin_url: str, ops: Sequence[str], load: Load) -> AsyncIterator[None]:
    """Sample for the block how many connections there are, as PostgreSQL and as the processes see it."""
    conn = await asyncpg.connect(admin_url)
    query = """SELECT count(*) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name LIKE 'syncbeat %'"""

    over = asyncio.Event()

    async def sample() -> None:
        while not over.is_set():
            load.connections = max(load.connections, await conn.fetchval(query))
            counts = await asyncio.gather(*(figure(one, "syncbeat_pool_connections") for one in ops))
            load.pooled = max(load.pooled, int(sum(counts)))
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
