"""A TCP relay of a test's own: between clients and one server after the other, over a network that fails as told."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

_CHUNK = 1 << 16
LATENCY_S = 0.5
STALL_S, STALL_SHARE = 0.2, 0.01
SLOW_CLOSE_S, LIFE_BEFORE_CLOSE_S = 2.0, 1.0


class Fault(StrEnum):
    """The ways in which the network between a client and a server fails."""

    LATENCY = "latency"
    """Each answer comes 500 ms late."""
    JITTER = "jitter"
    """Each answer comes up to 500 ms late."""
    STALLS = "stalls"
    """One segment of a hundred, to and fro, is held for 200 ms, and those after it."""
    RESET = "reset"
    """Open connections are reset, and new ones as soon as they carry anything."""
    BLACK_HOLE = "black hole"
    """Connections are made and carry nothing; those of that time never will, and neither side is told."""
    HALF_OPEN = "half-open"
    """The open connections carry nothing any more, and neither side is told; new ones work."""
    SLOW_CLOSE = "slow close"
    """The server closes connections, a second old at most, and the client hears of it two seconds later."""


SLOW = frozenset({Fault.LATENCY, Fault.JITTER, Fault.STALLS})
"""The faults in which everything arrives."""


class _Line:
    """One direction of a connection: passes everything on in order, each piece when its time has come."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self._late: deque[bytes] = deque()
        self._due_s = 0.0
        self._empty = asyncio.Event()
        self._empty.set()

    async def send(self, piece: bytes, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        if not self._late and delay_s <= 0:
            self.writer.write(piece)
            await self.writer.drain()
            return
        self._due_s = max(self._due_s, loop.time() + delay_s)
        self._late.append(piece)
        self._empty.clear()
        loop.call_at(self._due_s, self._pass_on)

    def _pass_on(self) -> None:
        piece = self._late.popleft()
        if not self.writer.is_closing():
            self.writer.write(piece)
        if not self._late:
            self._empty.set()

    async def close(self) -> None:
        """Close when everything has been passed on."""
        await self._empty.wait()
        self.writer.close()


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


@dataclass
class _Ends:
    """The two lines of a path."""

    path: Path
    to_server: _Line
    to_client: _Line

    def reset(self) -> None:
        for line in (self.to_server, self.to_client):
            _reset(line.writer)

    def close_slowly(self) -> None:
        self.path.swallows = True
        self.to_server.writer.close()
        asyncio.get_running_loop().call_later(SLOW_CLOSE_S, self.to_client.writer.close)


class Relay:
    """Hands each connection to the next of its targets, over those that do not answer.

    A target is `host:port`, or the path of a Unix socket.
    """

    def __init__(self, targets: Sequence[str], seed: int = 0) -> None:
        self.address = ""
        self.paths: list[Path] = []
        self.fault: Fault | None = None
        self._targets = itertools.cycle(targets)
        self._count = len(targets)
        self._dice = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: list[_Ends] = []

    def swallow(self) -> list[Path]:
        """Make the connections that are open black holes, and no later one: those it did."""
        found = [path for path in self.paths if path.is_open]
        for path in found:
            path.swallows = True
        return found

    def begin(self, fault: Fault) -> None:
        """Fail in this way from now on."""
        self.fault = fault
        for ends in [ends for ends in self._ends if ends.path.is_open]:
            match fault:
                case Fault.RESET:
                    ends.reset()
                case Fault.BLACK_HOLE | Fault.HALF_OPEN:
                    ends.path.swallows = True
                case Fault.SLOW_CLOSE:
                    ends.close_slowly()
                case _:
                    pass

    def end(self) -> None:
        """Carry everything again; what has become of connections meanwhile stays."""
        self.fault = None

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        for target in itertools.islice(self._targets, self._count):
            try:
                there, back = await _dial(target)
            except (ConnectionError, FileNotFoundError):
                continue
            path = Path(target, swallows=self.fault is Fault.BLACK_HOLE)
            ends = _Ends(path, _Line(back), _Line(writer))
            self.paths.append(path)
            self._ends.append(ends)
            if self.fault is Fault.SLOW_CLOSE:
                asyncio.get_running_loop().call_later(LIFE_BEFORE_CLOSE_S, ends.close_slowly)
            self._run(self._pump(ends, reader, up=True))
            self._run(self._pump(ends, there, up=False))
            return
        writer.close()

    async def close(self) -> None:
        """End all that goes through it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in [line.writer for ends in self._ends for line in (ends.to_client, ends.to_server)]:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.add(asyncio.ensure_future(work))

    async def _pump(self, ends: _Ends, reader: asyncio.StreamReader, *, up: bool) -> None:
        path, line = ends.path, ends.to_server if up else ends.to_client
        try:
            while piece := await reader.read(_CHUNK):
                if self.fault is Fault.RESET:
                    ends.reset()
                elif not path.swallows:
                    path.octets_up += len(piece) if up else 0
                    await line.send(piece, self._delay_s(up=up))
        except ConnectionError:
            pass  # one of the two has gone
        finally:
            (path.client_left if up else path.server_left).set()
            if not path.swallows:
                await line.close()

    def _delay_s(self, *, up: bool) -> float:
        match self.fault:
            case Fault.LATENCY if not up:
                return LATENCY_S
            case Fault.JITTER if not up:
                return self._dice.uniform(0.0, LATENCY_S)
            case Fault.STALLS if self._dice.random() < STALL_SHARE:
                return STALL_S
            case _:
                return 0.0


async def _dial(target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if target.startswith("/"):
        return await asyncio.open_unix_connection(target)
    host, _, port = target.rpartition(":")
    return await asyncio.open_connection(host, int(port))


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX and not writer.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def relayed(*targets: str, seed: int = 0) -> AsyncIterator[Relay]:
    """A relay to these addresses, for the block."""
    relay = Relay(targets, seed)
    server = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    relay.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        server.close()
        await relay.close()
