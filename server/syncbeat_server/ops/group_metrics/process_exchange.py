"""Lets any process of a group answer with the metrics of all: each offers its own on a socket in a private folder.

Nothing is written until metrics are asked for. Who is asked reads the others within `_ASK_S`, and keeps each document
in the folder, by which a process that has ended, or does not answer, still counts: its counters never go back. What
it counted after it was last read is lost with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric

from syncbeat_server.ops.group_metrics.snapshot import MOST_OCTETS, Collected, Merged, decode, encode, merge

_log = logging.getLogger(__name__)

_ASK_S = 0.5
_MOST_ENDED = 64
_SOCKET, _KEPT = ".sock", ".json"


class ProcessExchange:
    """Adds up the metrics of the processes that share a folder."""

    def __init__(self, folder: Path, own: Collected) -> None:
        """`own`: the metrics of this process."""
        self._folder = folder
        self._own = own
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"

    @asynccontextmanager
    async def offered(self) -> AsyncIterator[None]:
        """Offer the metrics of this process for the block. Raises OSError: the folder cannot be used."""
        path = self._folder / f"{self._name}{_SOCKET}"
        server = await asyncio.start_unix_server(self._answer, str(path))
        try:
            yield
        finally:
            server.close()
            with suppress(OSError):
                _keep(self._folder / f"{self._name}{_KEPT}", encode(self._own))
                path.unlink()

    async def merged(self) -> Merged:
        """Return the metrics of all processes, with the number of those that answered, were late, or have ended."""
        names = sorted(path.stem for path in self._folder.glob(f"*{_SOCKET}") if path.stem != self._name)
        documents = await asyncio.gather(*(self._ask(name) for name in names))
        answered = {name: document for name, document in zip(names, documents, strict=True) if document}
        late = {name for name in set(names) - answered.keys() if (self._folder / f"{name}{_SOCKET}").exists()}
        metrics: list[Sequence[Metric]] = [[*self._own.collect()]]
        for name, document in answered.items():
            metrics += self._read(name, document, ended=False)
            with suppress(OSError):
                _keep(self._folder / f"{name}{_KEPT}", document)
        ended = self._kept() - answered.keys() - {self._name}
        for name in ended:
            with suppress(OSError):
                metrics += self._read(name, (self._folder / f"{name}{_KEPT}").read_bytes(), ended=name not in late)
        counts = {"answered": len(answered) + 1, "late": len(late), "ended": len(ended - late)}
        return merge([*metrics, [processes_metric(counts)]])

    async def _answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(encode(self._own))
            writer.close()
            await writer.wait_closed()

    async def _ask(self, name: str) -> bytes:
        """Return the document of a process, empty if it is late or has ended; forgets the socket of one that has."""
        path = self._folder / f"{name}{_SOCKET}"
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

    def _kept(self) -> set[str]:
        """Return whose documents are kept. The oldest of many are forgotten, so that a crash loop is bounded."""
        paths = sorted(self._folder.glob(f"*{_KEPT}"), key=_age, reverse=True)
        for path in paths[_MOST_ENDED:]:
            path.unlink(missing_ok=True)
        return {path.stem for path in paths[:_MOST_ENDED]}

    def _read(self, name: str, document: bytes, *, ended: bool) -> list[list[Metric]]:
        try:
            return [decode(document, ended=ended)]
        except ValueError:
            _log.warning("metrics of a process cannot be read", extra={"process": name})
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
    beside.write_bytes(document)
    beside.replace(path)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
