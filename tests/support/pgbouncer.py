"""PgBouncer in transaction mode before the embedded PostgreSQL, for the service's login."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg

from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_devtools.embedded.postgres import APP, account_for_postgres, make_folder
from syncbeat_devtools.embedded.server_process import Program, Server

_PORT = 6432
_SOCKET = f".s.PGSQL.{_PORT}"

# `server_login_retry`: tests kill PostgreSQL and start it again, and its default is 15 s. `server_idle_timeout`: each
# test has a database of its own, whose pool would stay; PostgreSQL has 200 connections. `ignore_startup_parameters`
# stays empty: the service sends none that PgBouncer does not know.
_CONFIGURATION = """
[databases]
* = host={sockets} port={port}
[pgbouncer]
unix_socket_dir = {folder}
unix_socket_mode = 0777
listen_port = {own_port}
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
max_client_conn = 1000
default_pool_size = 20
server_login_retry = 0.2
server_idle_timeout = 3
query_wait_timeout = 3
log_connections = 0
log_disconnections = 0
"""


@contextmanager
def pooled(stores: EmbeddedStores, pgbouncer: Path) -> Iterator[EmbeddedStores]:
    """The same stores, with the service's address leading through the pooler; the owner's and superuser's do not."""
    account = account_for_postgres()
    query = parse_qs(urlsplit(stores.app_url).query)
    folder = Path(tempfile.mkdtemp(prefix="pooler-", dir=stores.folder.parent))
    make_folder(folder, account)
    folder.chmod(0o755)  # we connect there as ourselves
    for file in pgbouncer.parent.iterdir():  # where it is, the server's user may not be let in
        shutil.copy(file, folder / file.name)
    (folder / "users").write_text(f'"{APP}" ""\n', encoding="utf-8")
    (folder / "pgbouncer.ini").write_text(
        _CONFIGURATION.format(folder=folder, own_port=_PORT, sockets=query["host"][0], port=query["port"][0]),
        encoding="utf-8",
    )
    if account.uid >= 0:
        letting_in = _let_in(stores, Path(query["host"][0]), pwd.getpwuid(account.uid).pw_name)
        with ThreadPoolExecutor(1) as thread:  # the caller may have a loop that runs
            thread.submit(asyncio.run, letting_in).result()
    server = Server(
        Program(
            name="PgBouncer",
            command=["/usr/bin/env", f"LD_LIBRARY_PATH={folder}", str(folder / "pgbouncer"), f"{folder}/pgbouncer.ini"],
            cwd=folder,
            log=stores.folder / "pgbouncer.log",
            account=account,
            stop_signal=signal.SIGTERM,
            death_signal=signal.SIGTERM,
            is_ready=lambda _: _listens(folder / _SOCKET),
        )
    )
    server.start()
    try:
        yield replace(stores, app_url=f"postgresql://{APP}@/syncbeat?host={folder}&port={_PORT}")
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def _let_in(stores: EmbeddedStores, sockets: Path, user: str) -> None:
    # As root's PostgreSQL, its pooler runs as another user, who may log in as the service and as nobody else.
    with (sockets / "ident.conf").open("a", encoding="utf-8") as ident:
        ident.write(f'syncbeat "{user}" {APP}\n')
    conn = await asyncpg.connect(stores.admin_url)
    try:
        await conn.execute("SELECT pg_reload_conf()")
    finally:
        await conn.close()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(os.fspath(path)) == 0
