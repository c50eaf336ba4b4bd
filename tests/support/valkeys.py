"""Valkeys of a test's own: on a port, with settings that break something; sentinels; TLS, and addresses that move."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis

from syncbeat_devtools.embedded.binaries import find_binaries
from syncbeat_devtools.embedded.process_tree import Account
from syncbeat_devtools.embedded.server_process import Program, Server
from syncbeat_server.clock import Clock
from syncbeat_server.storage.redis import bus
from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.storage.redis.time_limits import RedisTimings
from tests.support.ports import free_port
from tests.support.process_rules import PATIENT

PASSWORD = "the-password-of-the-test"
PRIMARY = "heart"
"""The name that sentinels have for the primary."""
_CHUNK = 1 << 16
_SENTINEL = """
port {port}
bind 127.0.0.1 -::1
dir {folder}
sentinel monitor {name} 127.0.0.1 {primary} {quorum}
sentinel down-after-milliseconds {name} {down_after_ms}
sentinel failover-timeout {name} {failover_timeout_ms}
"""


def open_redis(
    url: str, clock: Clock, deployment: str = "", timings: RedisTimings = PATIENT.redis
) -> AbstractAsyncContextManager[RedisBus]:
    """Open the bus of a deployment, which waits for its Redis as long as a busy machine needs."""
    return bus.open_redis(url, clock, deployment, timings)


@dataclass(frozen=True)
class Valkey:
    """One Valkey or sentinel on a port of this machine."""

    server: Server
    port: int

    @property
    def url(self) -> str:
        """Its plain address."""
        return f"redis://127.0.0.1:{self.port}"

    def client(self, password: str | None = None) -> redis.Redis:
        """A client of its own, for a `with`."""
        return redis.Redis(port=self.port, password=password, socket_timeout=10.0)

    def follow(self, other: Valkey | None) -> None:
        """Become a replica of the other, or a primary."""
        with self.client() as client:
            client.replicaof(*(("127.0.0.1", str(other.port)) if other else ("NO", "ONE")))

    def is_primary(self) -> bool:
        """Return whether it is there and takes writes."""
        with suppress(redis.RedisError, OSError), self.client() as client:
            return bool(client.info("replication")["role"] == "master")
        return False

    def is_in_step(self) -> bool:
        """Return whether it is a replica that has all of its primary."""
        with self.client() as client:
            return bool(client.info("replication").get("master_link_status") == "up")


@contextmanager
def running_valkey(folder: Path, *settings: str) -> Iterator[Valkey]:
    """A Valkey for the block with these settings, as on its command line; it ends with this process."""
    port = free_port()
    own = folder / str(port)
    own.mkdir()
    usual: tuple[str, ...] = (
        "--bind",
        "127.0.0.1 -::1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--repl-diskless-sync-delay",
        "0",
    )
    if "--cluster-enabled" in settings:  # else ten thousand above, where systems give ports to whoever asks for any
        usual = (*usual, "--cluster-port", str(free_port()))
    command = [str(find_binaries().valkey_server), "--port", str(port), "--dir", str(own), *usual, *settings]
    with _running(own, port, command) as valkey:
        yield valkey


@contextmanager
def running_sentinel(
    folder: Path,
    primary: Valkey,
    *settings: str,
    quorum: int = 1,
    down_after_ms: int = 1_000,
    failover_timeout_ms: int = 6_000,
) -> Iterator[Valkey]:
    """A sentinel that watches the primary for the block."""
    port = free_port()
    path = folder / f"sentinel-{port}.conf"  # it writes there what it learns
    written = _SENTINEL.format(
        port=port,
        folder=folder,
        name=PRIMARY,
        primary=primary.port,
        quorum=quorum,
        down_after_ms=down_after_ms,
        failover_timeout_ms=failover_timeout_ms,
    )
    path.write_text("\n".join((written, *settings, "")))
    with _running(folder, port, [str(find_binaries().valkey_server), str(path), "--sentinel"]) as sentinel:
        yield sentinel


def sentinel_url(*sentinels: Valkey, name: str = PRIMARY) -> str:
    """The address of a primary by its sentinels."""
    return f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in sentinels)}/{name}"


@contextmanager
def _running(folder: Path, port: int, command: list[str]) -> Iterator[Valkey]:
    server = Server(
        Program(
            name="Valkey",
            command=command,
            cwd=folder,
            log=folder / f"{port}.log",
            account=Account(),
            stop_signal=signal.SIGTERM,
            death_signal=signal.SIGKILL,
            is_ready=lambda _: _listens(port),
        )
    )
    try:
        server.start()
        yield Valkey(server, port)
    finally:
        server.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Address:
    """An address that leads whoever connects from now on to `target`; open connections stay where they are."""

    port: int
    target: int

    @property
    def url(self) -> str:
        """The address, for the service."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what comes, both ways, until either side ends."""
        try:
            theirs, ours = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        passing = [asyncio.ensure_future(_pass(reader, ours)), asyncio.ensure_future(_pass(theirs, writer))]
        try:
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in passing:
                task.cancel()
            writer.close()
            ours.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()


@asynccontextmanager
async def moving_address(target: Valkey, tls: ssl.SSLContext | None = None) -> AsyncIterator[Address]:
    """An address that leads to this Valkey until it is told another; through TLS with a certificate."""
    address = Address(0, target.port)
    async with _listening(address.serve, tls) as address.port:
        yield address


@asynccontextmanager
async def saying(words: bytes) -> AsyncIterator[str]:
    """Serve no Redis: say this to all that is sent to it, and close the connection; its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(_CHUNK)
        writer.write(words)
        writer.close()

    async with _listening(answer, None) as port:
        yield f"redis://127.0.0.1:{port}"


@asynccontextmanager
async def _listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None
) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
