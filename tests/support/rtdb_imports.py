"""Runs `syncbeat-server import-rtdb` as a process, and kills it when it has come to a place."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil

from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import DatabaseUrls

_LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class ImportRun:
    """Outcome of a run: its exit status, what it said, its largest resident memory in octets, and its seconds."""

    status: int
    out: str
    err: str
    peak_octets: int
    seconds: float


@dataclass(frozen=True)
class ImportCommand:
    """The command with the settings of a test's stores, and its arguments."""

    stores: EmbeddedStores
    urls: DatabaseUrls
    arguments: tuple[str, ...]

    async def run(self, kill_at: int | None = None) -> ImportRun:
        """Run it to its end, or kill it as soon as so many places are done."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("SYNCBEAT_")}
        stores = {"SYNCBEAT_DATABASE_URL": self.urls.app_url, "SYNCBEAT_REDIS_URL": self.stores.redis_url}
        loop = asyncio.get_running_loop()
        started = loop.time()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "syncbeat_server.cli", "import-rtdb", *self.arguments),
            env={**own, **stores},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        ended = asyncio.ensure_future(process.communicate())
        watched = psutil.Process(process.pid)
        peak = 0
        conn = await asyncpg.connect(self.urls.admin_url)
        try:
            while not ended.done():
                with suppress(psutil.Error):
                    peak = max(peak, watched.memory_info().rss)
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
        return ImportRun(process.returncode or 0, out.decode(), err.decode(), peak, loop.time() - started)

    @staticmethod
    async def _places(conn: asyncpg.Connection) -> int:
        return int(await conn.fetchval("SELECT coalesce(max(places), 0) FROM imports"))


def arguments(export: Path, transfer_map: Path, *more: str) -> tuple[str, ...]:
    """Return the arguments of an import."""
    return (str(export), "--map", str(transfer_map), *more)
