"""Lets any process of a group answer with the metrics of all: each offers its own on a socket in a private folder.

Nothing is written until metrics are asked for. Who is asked reads the others within `_ASK_S`. Each process keeps in the
folder what it last told, before it tells it: by that it still counts when it has ended, or does not answer, and its
counters never go back. What it counted after that is lost with it. Only the process itself writes its document, so that
none is replaced by an older one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import stat
import sys
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric

from syncbeat_server.ops.group_metrics.snapshot import MOST_OCTETS, Collected, Merged, decode, encode, merge

_log = logging.getLogger(__name__)

_ASK_S = 0.5
_MOST_ENDED = 64  # whose documents are kept
# The path of a socket has 107 octets on Linux and 103 on other systems (unix(7)), the name of ours up to 21 of them.
# Linux reaches a folder with a longer path by its number as an open file.
_MOST_FOLDER = 80
_SOCKET, _KEPT = ".sock", ".json"


class ProcessExchange:
    """Adds up the metrics of the processes that share a folder."""

    def __init__(self, folder: Path, own: Collected) -> None:
        """`own`: the metrics of this process."""
        self._folder = folder
        self._sockets = folder  # by the name that the system calls for sockets take
        self._own = own
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"

    @asynccontextmanager
    async def offered(self) -> AsyncIterator[None]:
        """Offer the metrics of this process for the block. Raises OSError: the folder cannot be used."""
        async with AsyncExitStack() as stack:
            if len(os.fsencode(self._folder)) > _MOST_FOLDER:
                if sys.platform != "linux":
                    raise OSError(errno.ENAMETOOLONG, f"its path has more than {_MOST_FOLDER} octets")
                number = os.open(self._folder, os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, number)
                self._sockets = Path(f"/proc/self/fd/{number}")
            path = self._sockets / f"{self._name}{_SOCKET}"
            server = await asyncio.start_unix_server(self._answer, str(path))
            try:
                yield
            finally:
                server.close()
                self._told([*self._own.collect()])
                with suppress(OSError):
                    path.unlink()

    async def merged(self) -> Merged:
        """Return the metrics of all processes, with the number of those that answered, were late, or have ended."""
        names = sorted(path.stem for path in self._folder.glob(f"*{_SOCKET}") if path.stem != self._name)
        documents = await asyncio.gather(*(self._ask(name) for name in names))
        answered = {name: document for name, document in zip(names, documents, strict=True) if document}
        late = {name for name in set(names) - answered.keys() if (self._folder / f"{name}{_SOCKET}").exists()}
        own = [*self._own.collect()]
        self._told(own)
        metrics: list[Sequence[Metric]] = [own]
        for name, document in answered.items():
            metrics += self._read(name, document, ended=False)
        ended = self._ended(answered.keys() | late | {self._name})
        for name in [*ended, *late]:
            with suppress(OSError):
                document = _read_kept(self._folder / f"{name}{_KEPT}")
                metrics += self._read(name, document, ended=name not in late)
        counts = {"answered": len(answered) + 1, "late": len(late), "ended": len(ended)}
        return merge([*metrics, [processes_metric(counts)]])

    async def _answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(self._told([*self._own.collect()]))
            writer.close()
            await writer.wait_closed()

    def _told(self, own: Sequence[Metric]) -> bytes:
        """Return the document of this process, which is kept too, unless the folder takes none."""
        document = encode(Merged(own))
        with suppress(OSError):
            _keep(self._folder / f"{self._name}{_KEPT}", document)
        return document

    async def _ask(self, name: str) -> bytes:
        """Return the document of a process, empty if it is late or has ended; forgets the socket of one that has."""
        path = self._sockets / f"{name}{_SOCKET}"
        try:
            async with asyncio.timeout(_ASK_S):
                reader, writer = await asyncio.open_unix_connection(str(path), limit=MOST_OCTETS)
                try:
                    document = await reader.read(MOST_OCTETS)
                    while document and (more := await reader.read(MOST_OCTETS)):
                        document += more
                        if len(document) > MOST_OCTETS:
                            return b""
                    return document
                finally:
                    writer.close()
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
        except (OSError, TimeoutError):
            pass
        return b""

    def _ended(self, live: Set[str]) -> list[str]:
        """Return who has ended, by their documents. The oldest of many are forgotten: a crash loop is bounded."""
        kept = [path for path in self._folder.glob(f"*{_KEPT}") if path.stem not in live]
        kept.sort(key=_age, reverse=True)
        for path in kept[_MOST_ENDED:]:
            with suppress(OSError):
                path.unlink()
        return [path.stem for path in kept[:_MOST_ENDED]]

    def _read(self, name: str, document: bytes, *, ended: bool) -> list[list[Metric]]:
        try:
            return [decode(document, ended=ended)]
        except ValueError:
            _log.warning("metrics of a process cannot be read", extra={"document": name})
            return []


def processes_metric(counts: Mapping[str, int]) -> Metric:
    """Return the number of processes by what they have to do with an answer."""
    text = "Processes of this group: those whose metrics are in this answer, are late, or have ended"
    metric = GaugeMetricFamily("syncbeat_metrics_processes", text, labels=("state",))
    for state, count in counts.items():
        metric.add_metric((state,), count)
    return metric


def _keep(path: Path, document: bytes) -> None:
    """Write a document in place of the one before, at once."""
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        beside.write_bytes(document)
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise


def _read_kept(path: Path) -> bytes:
    """Return a kept document. Raises OSError: it cannot be read, is no regular file, or is too large."""
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)  # a FIFO is not waited for
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_OCTETS:
            raise OSError(errno.EINVAL, "no document of metrics")
        with open(number, "rb", closefd=False) as file:
            return file.read(MOST_OCTETS)
    finally:
        os.close(number)


def _age(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0
