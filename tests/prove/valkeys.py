"""Valkeys that replicate, sentinels that watch them, and an address that leads to one and later to another."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis

from syncbeat_devtools.embedded.binaries import find_binaries
from syncbeat_devtools.embedded.servers import Account, Program, Server
from tests.support.ports import free_port

NAME = "heart"
"""What the sentinels call the primary they watch."""
DOWN_AFTER_S = 2.0
_SENTINELS = 3
_QUORUM = 2
_CHUNK_BYTES = 1 << 16

# `failover-timeout` bounds a failover that stalls; another is tried after twice as long.
_SENTINEL = """
port {port}
bind 127.0.0.1
dir {folder}
sentinel monitor {name} 127.0.0.1 {primary} {quorum}
sentinel down-after-milliseconds {name} {down_after_ms}
sentinel failover-timeout {name} 10000
sentinel parallel-syncs {name} 1
"""


@dataclass(frozen=True)
class Valkey:
    """One Valkey, or one sentinel, on a port of this machine."""

    server: Server
    port: int

    def client(self) -> redis.Redis:
        """A client of its own, for a `with`."""
        return redis.Redis(port=self.port, socket_timeout=5.0)

    def follow(self, other: Valkey | None) -> None:
        """Become a replica of the other, or a primary."""
        with self.client() as client:
            client.replicaof(*(("127.0.0.1", str(other.port)) if other else ("NO", "ONE")))

    def leads(self) -> bool:
        """Return whether it takes writes."""
        with suppress(redis.RedisError, OSError), self.client() as client:
            return bool(client.info("replication")["role"] == "master")
        return False

    def has_replica(self) -> bool:
        """Return whether a replica has all that it has."""
        with self.client() as client:
            return any(
                replica["state"] == "online"
                for name, replica in client.info("replication").items()
                if name.startswith("slave") and isinstance(replica, dict)
            )


@dataclass
class Pair:
    """A primary and its replica, and the sentinels that watch them, if any."""

    primary: Valkey
    replica: Valkey
    sentinels: list[Valkey] = field(default_factory=list)

    def url(self) -> str:
        """The address of the primary by its sentinels."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{NAME}"

    def watched(self) -> bool:
        """Return whether each sentinel knows the replica and the other sentinels: only then they can fail over."""

        def knows_all(sentinel: Valkey) -> bool:
            with sentinel.client() as client:
                known = client.sentinel_master(NAME)
            return bool(known["num-slaves"] == 1 and known["num-other-sentinels"] == len(self.sentinels) - 1)

        return all(map(knows_all, self.sentinels))


@contextmanager
def running_pair(folder: Path, *, sentinels: bool) -> Iterator[Pair]:
    """A primary and a replica for the block, with three sentinels or none; all end with this process."""
    with ExitStack() as cleanup:

        def started(name: str) -> Valkey:
            port = free_port()
            valkey = Valkey(Server(_program(folder, name, port)), port)
            cleanup.callback(valkey.server.kill)
            valkey.server.start()
            return valkey

        pair = Pair(started("primary"), started("replica"))
        pair.replica.follow(pair.primary)
        for number in range(_SENTINELS if sentinels else 0):
            pair.sentinels.append(_sentinel(folder, f"sentinel-{number}", pair.primary.port, cleanup))
        yield pair


def _sentinel(folder: Path, name: str, primary: int, cleanup: ExitStack) -> Valkey:
    port, path = free_port(), folder / f"{name}.conf"  # it writes there what it learns
    path.write_text(
        _SENTINEL.format(
            port=port,
            folder=folder,
            name=NAME,
            primary=primary,
            quorum=_QUORUM,
            down_after_ms=int(DOWN_AFTER_S * 1_000),
        )
    )
    command = [str(find_binaries().valkey_server), str(path), "--sentinel"]
    sentinel = Valkey(Server(_described(folder, name, port, command)), port)
    cleanup.callback(sentinel.server.kill)
    sentinel.server.start()
    return sentinel


def _program(folder: Path, name: str, port: int) -> Program:
    settings = {
        "--port": str(port),
        "--bind": "127.0.0.1",
        "--dir": str(folder),
        "--save": "",
        "--appendonly": "no",
        "--dbfilename": f"{name}.rdb",
        # A replica gets all at once, and not after five seconds of collecting others.
        "--repl-diskless-sync-delay": "0",
    }
    command = [str(find_binaries().valkey_server), *(part for setting in settings.items() for part in setting)]
    return _described(folder, name, port, command)


def _described(folder: Path, name: str, port: int, command: list[str]) -> Program:
    return Program(
        name=f"Valkey {name}",
        command=command,
        cwd=folder,
        log=folder / f"{name}.log",
        account=Account(),
        stop_signal=signal.SIGTERM,
        death_signal=signal.SIGKILL,
        is_ready=lambda _: _listens(port),
    )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Address:
    """One address that leads whoever connects from now on to `target`; open connections stay where they are."""

    port: int
    target: int

    @property
    def url(self) -> str:
        """The address, for the service."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what comes, in both directions, until either side ends."""
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
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()


@asynccontextmanager
async def moving_address(target: Valkey) -> AsyncIterator[Address]:
    """An address that leads to this Valkey, until it is told another."""
    address = Address(0, target.port)
    server = await asyncio.start_server(address.serve, "127.0.0.1", 0)
    address.port = server.sockets[0].getsockname()[1]
    try:
        yield address
    finally:
        server.close()
