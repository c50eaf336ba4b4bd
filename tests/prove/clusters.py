"""PostgreSQL as Patroni runs it: two nodes, synchronous replication, and etcd to agree in who leads."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_devtools.embedded.binaries import find_binaries
from syncbeat_devtools.embedded.postgres import APP, DATABASE, OWNER, account_for_postgres, make_folder
from syncbeat_devtools.embedded.process_tree import Account
from syncbeat_devtools.embedded.server_process import Program, Server
from syncbeat_server.ops.process_group import launch_prefix
from tests.prove.tools import proof_programs, runs
from tests.support.ports import free_port

TTL_S = 20
"""Seconds for which a leader that is not heard of keeps its lease, at the least that Patroni allows."""
_ASK_S = 2.0
_NODES = ("one", "two")

# Patroni wants loop_wait + 2 * retry_timeout <= ttl.
_CLUSTER = {
    "ttl": TTL_S,
    "loop_wait": 3,
    "retry_timeout": 5,
    "synchronous_mode": True,
    "postgresql": {"use_pg_rewind": True, "parameters": {"max_connections": 100, "shared_buffers": "32MB"}},
}


@dataclass(frozen=True)
class Node:
    """A PostgreSQL and the Patroni that runs it."""

    name: str
    patroni: Server
    postgres_port: int
    rest_port: int
    folder: Path

    def asked(self, path: str) -> bool:
        """Return whether its Patroni says yes at this path: its answer is the status, 200 or 503."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=_ASK_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """End Patroni and its PostgreSQL by SIGKILL at once: whoever connects is refused."""
        self.patroni.kill()
        for process in self._postgres():
            process.kill()

    def stop(self) -> None:
        """Stop all of it by SIGSTOP, as a host that hangs: connections stay open, new ones too, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on, or start it again when it was killed."""
        if self.patroni.pid is None:
            self.patroni.start()
        else:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in (psutil.Process(self.patroni.pid), *self._postgres()):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _postgres(self) -> list[psutil.Process]:
        # No child of Patroni's, so that PostgreSQL survives its restarts.
        folder = self.folder / "postgres"
        with suppress(OSError, ValueError, IndexError, psutil.NoSuchProcess):
            postmaster = psutil.Process(int((folder / "postmaster.pid").read_text().splitlines()[0]))
            if Path(postmaster.cwd()) == folder:
                return [postmaster, *postmaster.children(recursive=True)]
        return []


@dataclass
class PatroniCluster:
    """Both nodes, the address that leads to whichever takes writes, and each login's password."""

    nodes: list[Node]
    passwords: dict[str, str] = field(repr=False)

    def url(self, login: str, database: str = DATABASE) -> str:
        """The address with both hosts: clients look for the one that takes writes."""
        hosts = ",".join(f"127.0.0.1:{node.postgres_port}" for node in self.nodes)
        return f"postgresql://{login}:{self.passwords[login]}@{hosts}/{database}?target_session_attrs=read-write"

    def leader(self) -> Node | None:
        """The node that takes writes."""
        return next((node for node in self.nodes if node.asked("/primary")), None)

    def synchronous(self) -> Node | None:
        """The node that has all that the leader has acknowledged."""
        return next((node for node in self.nodes if node.asked("/synchronous")), None)

    def statements(self) -> list[str]:
        """Return what makes the logins and roles of deploy/postgres/10-logins.sh, for the superuser."""
        return [
            "CREATE ROLE syncbeat_service NOLOGIN",
            "CREATE ROLE syncbeat_user NOLOGIN",
            f"CREATE ROLE {OWNER} LOGIN CREATEROLE PASSWORD '{self.passwords[OWNER]}'",
            f"CREATE ROLE {APP} LOGIN PASSWORD '{self.passwords[APP]}'",
            f"GRANT syncbeat_service, syncbeat_user TO {OWNER} WITH ADMIN OPTION",
            f"GRANT syncbeat_service TO {APP}",
            f"GRANT syncbeat_user TO {APP} WITH INHERIT FALSE, SET TRUE",
            f"CREATE DATABASE {DATABASE} OWNER {OWNER}",
        ]


def lacks_for_patroni() -> str:
    """Return why Patroni cannot run here though it is installed; empty when it can."""
    programs = (proof_programs() / "patroni", find_binaries().postgres_folder / "bin" / "pg_basebackup")
    if all(runs(*_as_account(account_for_postgres()), program, "--version") for program in programs):
        return ""
    return "root's PostgreSQL runs as 'nobody', who may not run what is in this folder: run as another user"


def _as_account(account: Account) -> list[str]:
    """The start of a command line that runs the rest as this user, and ends it when we die.

    Patroni and PostgreSQL are one user's. PostgreSQL refuses root, and root's Python is often where nobody else may
    look: so the user it runs as in place of root keeps the right to.
    """
    if account.uid < 0:
        return []
    passes = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    user = [f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"]
    # The change of user takes the death signal away: it is asked for anew.
    return ["/usr/bin/setpriv", *user, *passes, *launch_prefix(signal.SIGTERM)]


@contextmanager
def running_cluster(stores: EmbeddedStores) -> Iterator[PatroniCluster]:
    """Etcd and both nodes for the block, in a folder that goes with the stores; all end with this process.

    Blocks for a second or two.
    """
    account = account_for_postgres()
    folder = Path(tempfile.mkdtemp(prefix="patroni-", dir=stores.folder.parent))
    make_folder(folder, account)
    passwords = {login: secrets.token_hex(16) for login in ("postgres", "replicator", OWNER, APP)}
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        etcd_port = free_port()
        etcd = Server(_etcd(folder, etcd_port))
        cleanup.callback(etcd.kill)
        etcd.start()
        cluster = PatroniCluster([_node(name, folder, account, etcd_port, passwords) for name in _NODES], passwords)
        for node in cluster.nodes:
            cleanup.callback(node.kill)  # what would not stop by itself
            cleanup.callback(node.patroni.stop)
            node.patroni.start()
        yield cluster


def _etcd(folder: Path, port: int) -> Program:
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
    options = {
        "name": "etcd",
        "data-dir": str(folder / "etcd"),
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"etcd={peer}",
        "unsafe-no-fsync": "true",
        "log-level": "warn",
    }
    return Program(
        name="etcd",
        command=[str(proof_programs() / "etcd"), *(f"--{name}={value}" for name, value in options.items())],
        cwd=folder,
        log=_log(folder, "etcd"),
        account=Account(),
        stop_signal=signal.SIGTERM,
        death_signal=signal.SIGKILL,
        is_ready=lambda _: _listens(port),
    )


def _node(name: str, folder: Path, account: Account, etcd_port: int, passwords: dict[str, str]) -> Node:
    home = folder / name
    make_folder(home, account)
    rest_port, postgres_port = free_port(), free_port()
    # JSON is YAML, which Patroni reads.
    path = home / "patroni.yml"
    path.write_text(json.dumps(_settings(name, home, (etcd_port, rest_port, postgres_port), passwords)))
    os.chown(path, account.uid, account.gid)
    path.chmod(0o600)
    program = Program(
        name=f"Patroni {name}",
        command=[*_as_account(account), str(proof_programs() / "patroni"), str(path)],
        cwd=home,
        log=_log(folder, name),
        account=Account(),
        # It stops its PostgreSQL before it ends.
        stop_signal=signal.SIGTERM,
        death_signal=signal.SIGTERM,
        is_ready=lambda _: _listens(rest_port),
    )
    return Node(name, Server(program), postgres_port, rest_port, home)


def _settings(name: str, home: Path, ports: tuple[int, int, int], passwords: dict[str, str]) -> dict[str, Any]:
    etcd_port, rest_port, postgres_port = ports
    rest, postgres = f"127.0.0.1:{rest_port}", f"127.0.0.1:{postgres_port}"
    return {
        "scope": "syncbeat",
        "name": name,
        "log": {"level": "INFO"},
        "restapi": {"listen": rest, "connect_address": rest},
        "etcd3": {"host": f"127.0.0.1:{etcd_port}"},
        "bootstrap": {"dcs": _CLUSTER, "initdb": ["no-sync", {"encoding": "UTF8"}, {"locale": "C"}]},
        "postgresql": {
            "listen": postgres,
            "connect_address": postgres,
            "data_dir": str(home / "postgres"),
            "bin_dir": str(find_binaries().postgres_folder / "bin"),
            "pgpass": str(home / "pgpass"),
            "authentication": {
                "superuser": {"username": "postgres", "password": passwords["postgres"]},
                "replication": {"username": "replicator", "password": passwords["replicator"]},
            },
            "pg_hba": [
                "host all all 127.0.0.1/32 scram-sha-256",
                "host replication replicator 127.0.0.1/32 scram-sha-256",
            ],
            "parameters": {"unix_socket_directories": "", "io_method": "sync"},
        },
    }


def _log(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
