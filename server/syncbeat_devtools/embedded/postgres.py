"""PostgreSQL from its wheel: a cluster with the logins and the database of production, and the program to run it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from syncbeat_devtools.embedded.binaries import Binaries
from syncbeat_devtools.embedded.process_tree import Account
from syncbeat_devtools.embedded.server_process import Program, run
from syncbeat_server.errors import EmbeddedUnavailable

SUPERUSER = "postgres"
OWNER = "syncbeat_owner"
APP = "syncbeat_app"
DATABASE = "syncbeat"

_PARTIAL = "postgres.partial-"
_PORT = 5432
_READY_LINE = 7  # of postmaster.pid: "ready" once connections are accepted (PostgreSQL: utils/pidfile.h)
_PREDECESSOR_STILL_RUNS = ("pre-existing shared memory block", 'lock file "postmaster.pid" already exists')

# The logins and roles of deploy/postgres/10-logins.sh, without passwords: peer authentication identifies the user.
# In single-user mode a statement ends with a semicolon and an empty line.
_LOGINS = f"""
CREATE ROLE syncbeat_service NOLOGIN;

CREATE ROLE syncbeat_user NOLOGIN;

CREATE ROLE {OWNER} LOGIN CREATEROLE;

CREATE ROLE {APP} LOGIN;

GRANT syncbeat_service, syncbeat_user TO {OWNER} WITH ADMIN OPTION;

GRANT syncbeat_service TO {APP};

GRANT syncbeat_user TO {APP} WITH INHERIT FALSE, SET TRUE;

CREATE DATABASE {DATABASE} OWNER {OWNER};

REVOKE CONNECT, TEMPORARY ON DATABASE {DATABASE} FROM PUBLIC;

GRANT CONNECT ON DATABASE {DATABASE} TO {APP};

"""

_INITDB = (
    *("--username", SUPERUSER, "--auth", "peer", "--no-instructions", "--encoding", "UTF8"),
    # The server's builtin collation, so that every machine sorts alike.
    *("--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
)

_SETTINGS = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The log explains failed starts; it must not grow with every refused statement, nor contain its values.
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
}

# A temporary cluster must survive `kill_postgres` but not a crash of the machine: commits reach the operating system
# at once, and the disk at any time.
_NOT_DURABLE_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "io_method": "sync",
}


@dataclass(frozen=True)
class Cluster:
    """The location of a cluster. `account` owns `data` and the socket's folder."""

    data: Path
    sockets: Path
    log: Path
    account: Account
    durable: bool

    @property
    def data_argument(self) -> str:
        """Return the path of `data` as the server is told it; `data` is its working directory."""
        # Another user may not be allowed to traverse the path to `data` (a 0700 home above it), but may use its
        # working directory.
        dropped = self.account.uid >= 0
        return "/proc/self/cwd" if dropped and sys.platform == "linux" else str(self.data)

    def url(self, login: str) -> str:
        """Return the address for `login`, valid in every process of the user who started the server."""
        return f"postgresql://{login}@/{DATABASE}?host={quote(str(self.sockets), safe='/')}&port={_PORT}"


def account_for_postgres() -> Account:
    """Return the user to run PostgreSQL as: it refuses root, so root runs it as `nobody`.

    Raises:
        EmbeddedUnavailable: the system does not know that user, or ours, which PostgreSQL requires.
    """
    us = os.geteuid()
    try:
        if us != 0:
            pwd.getpwuid(us)
            return Account()
        entry = pwd.getpwnam("nobody")
        return Account(entry.pw_uid, entry.pw_gid)
    except KeyError:
        missing = f"user {us}" if us != 0 else "user 'nobody', as whom to run PostgreSQL for root"
        raise EmbeddedUnavailable(
            f"the system does not know the {missing}: add it to /etc/passwd, "
            "or set SYNCBEAT_DATABASE_URL and SYNCBEAT_REDIS_URL"
        ) from None


def create_cluster(cluster: Cluster, binaries: Binaries) -> None:
    """Create the cluster, its logins and its database, unless it exists. It appears atomically.

    Raises:
        EmbeddedUnavailable: it cannot be created, or belongs to another user.
    """
    owner = cluster.account.uid if cluster.account.uid >= 0 else os.geteuid()
    if cluster.data.exists():
        if cluster.data.stat().st_uid != owner:
            raise EmbeddedUnavailable(f"{cluster.data} belongs to another user: use another directory")
        return
    # A killed predecessor's processes may still write to its partial cluster for a moment: use another name, and
    # remove as much as possible.
    for half_made in cluster.data.parent.glob(f"{_PARTIAL}*"):
        shutil.rmtree(half_made, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=cluster.data.parent))
    make_folder(partial, cluster.account)
    place = replace(cluster, data=partial)
    initdb = [binaries.initdb, "-D", place.data_argument, *_INITDB]
    single = [binaries.postgres, "--single", "-j", "-D", place.data_argument, "-c", "exit_on_error=on"]
    if not cluster.durable:
        initdb += ["--no-sync", "--no-data-checksums", "--wal-segsize", "4"]
        single += ["-c", "fsync=off"]
    run("initdb", initdb, cwd=partial, account=cluster.account)
    run("postgres --single", [*single, "postgres"], cwd=partial, account=cluster.account, stdin=_LOGINS)
    partial.rename(cluster.data)


def program(cluster: Cluster, binaries: Binaries) -> Program:
    """Return the program that runs the cluster."""
    make_folder(cluster.sockets, cluster.account)
    settings = {
        **_SETTINGS,
        **({} if cluster.durable else _NOT_DURABLE_SETTINGS),
        "unix_socket_directories": str(cluster.sockets),
        **_access_files(cluster),
    }
    return Program(
        name="PostgreSQL",
        command=[
            *(binaries.postgres, "-D", cluster.data_argument),
            *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
        ],
        cwd=cluster.data,
        log=cluster.log,
        account=cluster.account,
        # Fast shutdown, or immediate where no data is kept.
        stop_signal=signal.SIGINT if cluster.durable else signal.SIGQUIT,
        death_signal=signal.SIGINT if cluster.durable else signal.SIGQUIT,
        is_ready=lambda pid: _accepts(cluster.data / "postmaster.pid", pid),
        retry_on=_PREDECESSOR_STILL_RUNS,
    )


def _access_files(cluster: Cluster) -> dict[str, str]:
    # The user who started the server may use every login; no other user may, not even the one it runs as.
    us = pwd.getpwuid(os.geteuid()).pw_name
    texts = {"hba": "local all all peer map=syncbeat\n", "ident": f'syncbeat "{us}" all\n'}
    settings = {}
    for name, text in texts.items():
        path = cluster.sockets / f"{name}.conf"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        settings[f"{name}_file"] = str(path)
    return settings


def _accepts(pid_file: Path, pid: int) -> bool:
    try:
        lines = pid_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > _READY_LINE and lines[0].strip() == str(pid) and lines[_READY_LINE].strip() == "ready"


def make_folder(path: Path, account: Account) -> None:
    """Create a folder that only `account` may enter."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if account.uid >= 0:
        os.chown(path, account.uid, account.gid)
