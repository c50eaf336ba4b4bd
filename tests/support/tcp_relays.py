"""A TCP relay of a test's own: between clients and one server after the other, and where it is to be, a black hole."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_CHUNK = 1 << 16


@dataclass
class Path:
    """One connection through a relay."""

    target: str
    swallows: bool = False
    """Nothing that comes is passed on, nor that one side is gone: as of a router that forgot the connection."""
    octets_up: int = 0
    client_left: asyncio.Event = field(default_factory=asyncio.Event)
    server_left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_open(self) -> bool:
        """Return whether neither side has gone."""
        return not (self.client_left.is_set() or self.server_left.is_set())


class Relay:
    """Hands each connection to the next of its targets, over those that do not answer."""

    def __init__(self, targets: Sequence[str]) -> None:
        self.address = ""
        self.paths: list[Path] = []
        self._targets = itertools.cycle(targets)
        self._count = len(targets)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    def swallow(self) -> list[Path]:
        """Make the connections that are open black holes, and no later one: those it did."""
        found = [path for path in self.paths if path.is_open]
        for path in found:
            path.swallows = True
        return found

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        for target in itertools.islice(self._targets, self._count):
            host, _, port = target.rpartition(":")
            try:
                there, back = await asyncio.open_connection(host, int(port))
            except ConnectionError:
                continue
            path = Path(target)
            self.paths.append(path)
            self._writers += (writer, back)
            self._run(self._pump(path, reader, back, up=True))
            self._run(self._pump(path, there, writer, up=False))
            return
        writer.close()

    async def close(self) -> None:
        """End all that goes through it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.add(asyncio.ensure_future(work))

    async def _pump(self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        try:
            while data := await reader.read(_CHUNK):
                if not path.swallows:
                    path.octets_up += len(data) if up else 0
                    writer.write(data)
                    await writer.drain()
        except ConnectionError:
            pass  # one of the two has gone
        finally:
            (path.client_left if up else path.server_left).set()
            if not path.swallows:
                writer.close()


@asynccontextmanager
async def relayed(*targets: str) -> AsyncIterator[Relay]:
    """A relay to these addresses, for the block."""
    relay = Relay(targets)
    server = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    relay.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        server.close()
        await relay.close()
