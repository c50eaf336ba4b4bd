"""Runs `syncbeat-server import-rtdb` as a process, and kills it when it has come to a place."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil

from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import DatabaseUrls
from tests.support.operator_commands import PROGRAM, command_environment

_LOOK_EVERY_S = 0.05
_BACKENDS = """SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'syncbeat-import%'"""


@dataclass(frozen=True)
class ImportRun:
    """Outcome of a run.

    Attributes:
        status: Its exit status.
        out: What it said on standard output.
        err: What it said on standard error.
        peak_octets: The most memory that was resident.
        seconds: From its start to its end.
        cpu_s: Seconds of CPU that it took, start included.
        database_cpu_s: Seconds of CPU that its connection of PostgreSQL took.
    """

    status: int
    out: str
    err: str
    peak_octets: int
    seconds: float
    cpu_s: float
    database_cpu_s: float


@dataclass(frozen=True)
class ImportCommand:
    """The command with the settings of a test's stores, and its arguments."""

    stores: EmbeddedStores
    urls: DatabaseUrls
    arguments: tuple[str, ...]

    async def run(self, kill_at: int | None = None) -> ImportRun:
        """Run it to its end, or kill it as soon as so many places are done."""
        stores = {"SYNCBEAT_DATABASE_URL": self.urls.app_url, "SYNCBEAT_REDIS_URL": self.stores.redis_url}
        loop = asyncio.get_running_loop()
        started = loop.time()
        process = await asyncio.create_subprocess_exec(
            *(*PROGRAM, "import-rtdb", *self.arguments),
            env=command_environment(stores),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        ended = asyncio.ensure_future(process.communicate())
        watched = psutil.Process(process.pid)
        peak, cpu_s = 0, 0.0
        backends: dict[int, float] = {}
        conn = await asyncpg.connect(self.urls.admin_url)
        try:
            while not ended.done():
                with suppress(psutil.Error):
                    peak, cpu_s = max(peak, watched.memory_info().rss), cpu_of(process.pid)
                for row in await conn.fetch(_BACKENDS):
                    with suppress(psutil.Error):
                        backends[row["pid"]] = cpu_of(row["pid"])
                if kill_at is not None and await self._places(conn) >= kill_at:
                    kill_at = None
                    if process.returncode is None:
                        process.kill()
                await asyncio.wait([ended], timeout=_LOOK_EVERY_S)
        finally:
            await conn.close()
            if process.returncode is None:
                process.kill()
        out, err = await ended
        seconds = loop.time() - started
        status, database_cpu_s = process.returncode or 0, sum(backends.values())
        return ImportRun(status, out.decode(), err.decode(), peak, seconds, cpu_s, database_cpu_s)

    @staticmethod
    async def _places(conn: asyncpg.Connection) -> int:
        return int(await conn.fetchval("SELECT coalesce(max(places), 0) FROM imports"))


def cpu_of(pid: int) -> float:
    """Return the seconds of CPU that a process has taken."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def arguments(export: Path, transfer_map: Path, *more: str) -> tuple[str, ...]:
    """Return the arguments of an import."""
    return (str(export), "--map", str(transfer_map), *more)
