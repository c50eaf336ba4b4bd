"""Servers behind one name: the Python client's connections spread over them, and again when one of them came back."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

import pytest

from syncbeat import SyncbeatClient
from syncbeat.v1 import sync_service_pb2 as pb
from tests.support.client_servers import Scripted, client_of, scripted_server
from tests.support.fake_clock import wait_until
from tests.support.phones import polled

pytestmark = pytest.mark.rpc

CLIENTS = 24
HOSTS = ("127.0.0.1", "127.0.0.2")
# As servers of ours have: then clients connect anew.
AGE = [("grpc.max_connection_age_ms", 500)]
_IPV4 = 1  # the type of an address record, RFC 1035


class NameServer(asyncio.DatagramProtocol):
    """Says of every name that it has all of `HOSTS`, always in that order."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        question = data[12 : data.index(b"\0", 12) + 5]
        hosts = HOSTS if question[-4:-2] == struct.pack("!H", _IPV4) else ()
        answer = data[:2] + struct.pack("!HHHHH", 0x8180, 1, len(hosts), 0, 0) + question
        for host in hosts:
            octets = bytes(map(int, host.split(".")))
            answer += struct.pack("!HHHIH", 0xC00C, _IPV4, 1, 0, len(octets)) + octets
        self._transport.sendto(answer, addr)


@asynccontextmanager
async def named(port: int) -> AsyncIterator[str]:
    """The gRPC target of a name that has all of `HOSTS`."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    try:
        yield f"dns://127.0.0.1:{transport.get_extra_info('sockname')[1]}/syncbeat.test:{port}"
    finally:
        transport.close()


def answering() -> Scripted:
    script = Scripted()
    script.prepare("GetHint", *[polled(30)] * 100_000)
    return script


async def ask(client: SyncbeatClient) -> None:
    await client.sync.GetHint(pb.GetHintRequest(device_id="d"))


@pytest.mark.parametrize("target", ["a name", "a list"])
async def test_dns_name_spreads_connections_and_a_list_keeps_its_order(target: str) -> None:
    first, second = answering(), answering()
    async with AsyncExitStack() as stack:
        _, address = await stack.enter_async_context(scripted_server(first))
        port = int(address.rpartition(":")[2])
        await stack.enter_async_context(scripted_server(second, listen=f"{HOSTS[1]}:{port}"))
        name = await stack.enter_async_context(named(port))
        chosen = name if target == "a name" else "ipv4:" + ",".join(f"{host}:{port}" for host in HOSTS)
        clients = [await stack.enter_async_context(client_of(chosen)) for _ in range(CLIENTS)]
        await asyncio.gather(*map(ask, clients))
    found = [len(script.attempts["GetHint"]) for script in (first, second)]
    assert sum(found) == CLIENTS
    # By chance, one has fewer than two of 24 in one of 335,000 runs.
    assert min(found) >= 2 if target == "a name" else found == [CLIENTS, 0]


async def test_dns_name_rebalances_to_a_server_that_returned() -> None:
    first, second = answering(), answering()
    async with AsyncExitStack() as stack:
        _, address = await stack.enter_async_context(scripted_server(first, options=AGE))
        port = int(address.rpartition(":")[2])
        name = await stack.enter_async_context(named(port))
        clients = [await stack.enter_async_context(client_of(name)) for _ in range(CLIENTS)]
        await asyncio.gather(*map(ask, clients))
        assert len(first.attempts["GetHint"]) == CLIENTS
        await stack.enter_async_context(scripted_server(second, options=AGE, listen=f"{HOSTS[1]}:{port}"))

        async def both_serve() -> bool:
            before = len(first.attempts["GetHint"]), len(second.attempts["GetHint"])
            await asyncio.gather(*map(ask, clients))
            after = len(first.attempts["GetHint"]), len(second.attempts["GetHint"])
            return all(now - then >= 2 for now, then in zip(after, before, strict=True))

        await wait_until(both_serve, what="clients are on both")
