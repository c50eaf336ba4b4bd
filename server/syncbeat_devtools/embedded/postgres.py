"""PostgreSQL from its wheel: a cluster with the logins and the database of production, and how to run it."""

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
from syncbeat_devtools.embedded.servers import Account, Program, run
from syncbeat_server.errors import EmbeddedUnavailable

SUPERUSER = "postgres"
OWNER = "syncbeat_owner"
APP = "syncbeat_app"
DATABASE = "syncbeat"

_PARTIAL = "postgres.partial-"
_PORT = 5432
_READY_LINE = 7  # of postmaster.pid: "ready" once connections are accepted (PostgreSQL: utils/pidfile.h)
_DYING_PREDECESSOR = ("pre-existing shared memory block", 'lock file "postmaster.pid" already exists')

# The logins and roles of deploy/postgres/10-logins.sh. They have no passwords: the socket tells who connects.
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
    # The collation is the server's own, so that every machine sorts alike.
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
    # The log is for why it did not start; it must not grow with every refused statement, nor hold its values.
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
}

# A temporary cluster survives `kill_postgres`, and need not survive the machine: what is committed reaches the
# operating system at once, the disk whenever.
_HASTY_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "io_method": "sync",
}


@dataclass(frozen=True)
class Cluster:
    """Where a cluster lives. `data` belongs to `account`, as does the folder of its socket."""

    data: Path
    sockets: Path
    log: Path
    account: Account
    durable: bool

    @property
    def data_argument(self) -> str:
        """How the server names `data`, in which it is started."""
        # As another user it may lack the way to `data` (a 0700 home above it); where it stands, it may be.
        dropped = self.account.uid >= 0
        return "/proc/self/cwd" if dropped and sys.platform == "linux" else str(self.data)

    def url(self, login: str) -> str:
        """The address for `login`, good in every process of the user who started it."""
        return f"postgresql://{login}@/{DATABASE}?host={quote(str(self.sockets), safe='/')}&port={_PORT}"


def account_for_postgres() -> Account:
    """Whom to run as: PostgreSQL refuses root, so root's runs as `nobody`.

    Raises:
        EmbeddedUnavailable: that user, or our own, is not known to the system, which PostgreSQL insists on.
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


def make_cluster(cluster: Cluster, binaries: Binaries) -> None:
    """Make the cluster, its logins and its database, unless it is there. It appears whole or not at all.

    Raises:
        EmbeddedUnavailable: it cannot be made, or belongs to somebody else.
    """
    owner = cluster.account.uid if cluster.account.uid >= 0 else os.geteuid()
    if cluster.data.exists():
        if cluster.data.stat().st_uid != owner:
            raise EmbeddedUnavailable(f"{cluster.data} belongs to another user: use another directory")
        return
    # What a killed predecessor was making may still be written to for a moment: take another name, remove what one can.
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
    """How to run the cluster."""
    make_folder(cluster.sockets, cluster.account)
    settings = {
        **_SETTINGS,
        **({} if cluster.durable else _HASTY_SETTINGS),
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
        # Fast shutdown, or none at all where there is nothing to keep.
        stop_signal=signal.SIGINT if cluster.durable else signal.SIGQUIT,
        death_signal=signal.SIGINT if cluster.durable else signal.SIGQUIT,
        answers=lambda pid: _accepts(cluster.data / "postmaster.pid", pid),
        retry_on=_DYING_PREDECESSOR,
    )


def _access_files(cluster: Cluster) -> dict[str, str]:
    # Who started it may log in as anybody; nobody else may, not even the user the server itself runs as.
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
    """Make a folder that only `account` may enter."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if account.uid >= 0:
        os.chown(path, account.uid, account.gid)
