"""A process ends in time, whatever its stores do: stopped ones still take connections."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from syncbeat_devtools.demo.processes import Identity, Process, start_process
from syncbeat_devtools.embedded import EmbeddedStores, running_stores
from syncbeat_server.storage.migrate import migrate
from tests.support.databases import run_sql
from tests.support.fake_clock import wait_until

pytestmark = pytest.mark.process

DRAIN_S = 2.0
PROMISED_S = DRAIN_S + 2.0
BUSY_S = 1.0  # what a busy machine may take beside, to end a process and to tell of it


@pytest.fixture(scope="module")
def own_stores() -> Iterator[EmbeddedStores]:
    """Stores that may be stopped, since nobody else uses them."""
    with running_stores() as stores:
        asyncio.run(migrate(stores.owner_url, app_login="syncbeat_app"))
        yield stores


def settings_of(stores: EmbeddedStores, role: str, **more: str) -> dict[str, str]:
    return {
        **Identity.new().settings(),
        "SYNCBEAT_ROLE": role,
        "SYNCBEAT_LISTEN": "127.0.0.1:0",
        "SYNCBEAT_DATABASE_URL": stores.app_url,
        "SYNCBEAT_DATABASE_SESSION_URL": stores.app_url,
        "SYNCBEAT_REDIS_URL": stores.redis_url,
        "SYNCBEAT_DRAIN_S": str(DRAIN_S),
        **more,
    }


@contextmanager
def stopped(pid: int | None) -> Iterator[None]:
    """Make a server and its children hang: they take connections and answer nothing.

    The server is stopped first and continued last, for it reaps children that ended; those keep their pids until then.
    """
    assert pid is not None
    server = psutil.Process(pid)
    server.send_signal(signal.SIGSTOP)
    children: list[psutil.Process] = []
    try:
        children = server.children(recursive=True)
        for child in children:
            child.send_signal(signal.SIGSTOP)
        yield
    finally:
        for one in [*children, server]:
            one.send_signal(signal.SIGCONT)


async def ended_after(process: Process) -> float:
    """Seconds from SIGTERM to the end."""
    began = time.monotonic()
    await process.stop()
    return time.monotonic() - began


@pytest.mark.parametrize("role", ["worker", "rpc", "all"])
@pytest.mark.parametrize("store", ["postgres", "redis"])
async def test_shutdown_is_in_time_though_a_store_hangs(
    own_stores: EmbeddedStores, tmp_path: Path, role: str, store: str
) -> None:
    process = await start_process(["serve"], settings_of(own_stores, role), tmp_path / "log")
    try:
        with stopped(own_stores.pids[0 if store == "postgres" else 1]):
            # It asks each second; now it waits for an answer.
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(process.wait(), 1.5)
            took_s = await ended_after(process)
    finally:
        await process.kill()
    assert took_s < PROMISED_S + BUSY_S


async def test_shutdown_of_child_processes_is_in_time_though_the_database_hangs(
    own_stores: EmbeddedStores, tmp_path: Path, free_port: int
) -> None:
    settings = settings_of(own_stores, "worker", SYNCBEAT_WORKERS="2", SYNCBEAT_LISTEN=f"127.0.0.1:{free_port}")
    process = await start_process(["serve"], settings, tmp_path / "log")
    try:
        copies = psutil.Process(process.pid).children(recursive=True)
        with stopped(own_stores.pids[0]):
            took_s = await ended_after(process)
            await wait_until(lambda: not any(copy.is_running() for copy in copies), what="the copies end too")
    finally:
        await process.kill()
    assert took_s < PROMISED_S + BUSY_S


async def test_shutdown_during_start_is_immediate_though_the_database_hangs(
    own_stores: EmbeddedStores, tmp_path: Path
) -> None:
    with stopped(own_stores.pids[0]), (tmp_path / "log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "syncbeat_server.cli", "serve"),
            env={**os.environ, **settings_of(own_stores, "all")},
            stdout=log,
            stderr=log,
        )
        connected = psutil.Process(child.pid)
        try:
            await wait_until(lambda: connected.net_connections("unix") or connected.num_threads() > 1)
            began = time.monotonic()
            child.send_signal(signal.SIGTERM)
            await asyncio.wait_for(child.wait(), 30)
            took_s = time.monotonic() - began
        finally:
            if child.returncode is None:
                child.kill()
    assert took_s < PROMISED_S + BUSY_S


async def test_shutdown_is_in_time_though_a_lock_is_held(own_stores: EmbeddedStores, tmp_path: Path) -> None:
    process = await start_process(["serve"], settings_of(own_stores, "all"), tmp_path / "log")
    held = asyncio.ensure_future(run_sql(own_stores.admin_url, "BEGIN; LOCK TABLE deliveries; SELECT pg_sleep(60)"))
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 1.5)
        took_s = await ended_after(process)
    finally:
        held.cancel()
        await asyncio.wait([held])
        await process.kill()
    assert took_s < PROMISED_S + BUSY_S


async def test_shutdown_with_healthy_stores_exits_with_success(own_stores: EmbeddedStores, tmp_path: Path) -> None:
    process = await start_process(["serve"], settings_of(own_stores, "all"), tmp_path / "log")
    assert await process.stop() == 0
    assert "hangs" not in process.log_text()
